"""The controller: from the features of all layers to lambda and mu, and its meta-parameters as one flat vector."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from l3rs.config import L3RSConfig
from l3rs.directions import direction
from l3rs.features import feature_names

Meta = dict[str, Tensor]


class Decision(NamedTuple):
    """lambda in units of the layer's step, (L,), and mu, (L, P), which sums to 1 over P."""

    lam: Tensor
    mu: Tensor


def meta_shapes(config: L3RSConfig, layers: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the meta-parameters, in the order of the flat vector.

    `layers` names the slots of the embedding; it is empty for a controller without embeddings.
    """
    if bool(layers) != bool(config.embedding):
        raise ValueError(f"embedding is {config.embedding} and there are {len(layers)} layer names: both or neither")
    inputs, (h1, h2), outputs = len(feature_names(config)), config.hidden, 1 + len(config.directions)
    shapes: dict[str, tuple[int, ...]] = {
        "w1": (h1, inputs),
        "b1": (h1,),
        "w2": (h2, h1),
        "b2": (h2,),
        "w3": (outputs, h2),
        "b3": (outputs,),
    }
    if layers:
        shapes["embedding"] = (len(layers), config.embedding)
    for name in config.directions:
        shapes |= {f"{name}/{h}": () for h in direction(name).hyperparameters}
    return shapes


def unflatten(theta: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Meta:
    """Views of the flat vector by name; raises ValueError if its length is not the sum of the shapes."""
    sizes = [math.prod(s) for s in shapes.values()]
    if theta.shape != (sum(sizes),):
        raise ValueError(f"theta has shape {tuple(theta.shape)}; this controller has ({sum(sizes)},) meta-parameters")
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), theta.split(sizes), strict=True)}


def initial_theta(config: L3RSConfig, layers: tuple[str, ...], seed: int, head: Collection[str] = ()) -> Tensor:
    """Meta-parameters that already are a sane schedule, which meta-training starts from.

    The hidden layers are drawn at random (He's scale) and the output layer is zero, so that lambda and mu start alike for all
    layers whatever their features; except for paths through the MLP, one hidden unit of each layer, that carry

    - relative time: lambda shrinks by `initial_decay` nats, linearly in k/K, over a run. The sum of tanh(a (t - t_i)) over n
      points grows about linearly from -n to n while t goes from 0 to 1;
    - absolute time: lambda shrinks as K^-`initial_horizon`. The sum of tanh(K/s_i - 1) over log-spaced s_i is about linear in log K;
    - the first number of the embedding, 1 for the layers in `head` and 0 elsewhere: a head moves `initial_head` times as far.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, names = meta_shapes(config, layers), feature_names(config)
    meta = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name in ("w1", "w2"):
        meta[name] = torch.randn(shapes[name], generator=generator) * math.sqrt(2 / shapes[name][1])

    def path(unit: int, block: str, bias: float, height: float, effect: float) -> None:
        """Makes a unit ReLU(height * (sum of a block of features + bias)); `effect` is what 1 in there adds to log lambda."""
        meta["w1"][unit] = height * torch.tensor([float(name.startswith(block)) for name in names])
        meta["b1"][unit] = height * bias
        meta["w2"][unit] = 0.0
        meta["w2"][unit, unit] = 1.0
        meta["w3"][0, unit] = effect / height

    # Heights put the units at about 3 where they act: noise on the weights before them and on the last one then weighs alike.
    n = config.time_points
    path(0, "relative_time/", n, 3 / (2 * n), -config.initial_decay / (2 * n))
    shortest, tenfold = (float(torch.tanh(k / torch.tensor(config.time_scales) - 1).sum()) for k in (10.0, 100.0))
    path(1, "absolute_time/", -shortest, 1.0, -config.initial_horizon * math.log(10) / (tenfold - shortest))
    if layers:
        meta["embedding"] = torch.randn(shapes["embedding"], generator=generator)
        meta["embedding"][:, 0] = torch.tensor([float(layer in head) for layer in layers])
        path(2, "embedding/0", 0.0, 3.0, math.log(config.initial_head))
    meta["b3"][-1] = config.initial_mix
    return torch.cat([meta[name].flatten() for name in shapes])


def decide(meta: Meta, features: Tensor) -> Decision:
    """The MLP on all layers at once: features (L, F) to P + 1 logits a layer; lambda = exp of the first, mu = softmax of the rest."""
    hidden = F.relu(F.linear(features, meta["w1"], meta["b1"]))
    hidden = F.relu(F.linear(hidden, meta["w2"], meta["b2"]))
    logits = F.linear(hidden, meta["w3"], meta["b3"])
    return Decision(logits[:, 0].exp(), logits[:, 1:].softmax(dim=1))
