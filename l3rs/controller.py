"""The controller: from the features of all layers to lambda and mu, and its meta-parameters as one flat vector."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
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

    A layerwise controller has the MLP of the others once for each layer, along a first dimension.

    Args:
        layers: names the slots of what is learned by layer: embeddings or MLPs. Empty where nothing is.

    Raises:
        ValueError: there are layer names and nothing is learned by layer, or the reverse.
    """
    if bool(layers) != config.by_layer:
        raise ValueError(
            f"there are {len(layers)} layer names, with embedding={config.embedding} and controller={config.controller!r}: "
            "an embedding or a layerwise controller needs names, and nothing else has them"
        )
    inputs, (h1, h2), outputs = len(feature_names(config)), config.hidden, 1 + len(config.directions)
    each = (len(layers),) if config.controller == "layerwise" else ()
    shapes: dict[str, tuple[int, ...]] = {
        "w1": (*each, h1, inputs),
        "b1": (*each, h1),
        "w2": (*each, h2, h1),
        "b2": (*each, h2),
        "w3": (*each, outputs, h2),
        "b3": (*each, outputs),
    }
    if config.embedding:
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
      A layerwise controller has the same in the output bias of the head's layers; its layers all start with the same MLP.
    """
    if config.controller == "layerwise":
        every = meta_shapes(config, layers)
        alike = replace(config, controller="shared")
        one = unflatten(initial_theta(alike, (), seed), meta_shapes(alike, ()))
        meta = {name: t.expand(every[name]).clone() for name, t in one.items()}
        meta["b3"][:, 0] += torch.tensor([math.log(config.initial_head) * (layer in head) for layer in layers])
        return torch.cat([meta[name].flatten() for name in every])
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


def decide(meta: Meta, features: Tensor, controller: str = "shared") -> Decision:
    """The MLP on all layers at once: features (L, F) to P + 1 logits a layer; lambda = exp of the first, mu = softmax of the rest.

    Args:
        meta: the meta-parameters; for `layerwise`, w1 to b3 of these L layers, in this order.
        controller: `shared`, one MLP for all layers; `layerwise`, one for each; `global`, one decision for all layers, from the mean
            of their features [choice].
    """
    x = features.mean(dim=0, keepdim=True) if controller == "global" else features
    for layer in ("1", "2"):
        x = F.relu(_affine(x, meta["w" + layer], meta["b" + layer]))
    logits = _affine(x, meta["w3"], meta["b3"]).expand(len(features), -1)
    return Decision(logits[:, 0].exp(), logits[:, 1:].softmax(dim=1))


def _affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x W' + b of (L, n) with one W for all rows, or with one for each."""
    return F.linear(x, w, b) if w.dim() == 2 else torch.baddbmm(b.unsqueeze(2), w, x.unsqueeze(2)).squeeze(2)
