"""The start of meta-training: a controller that already is a sane schedule, with units that make it easy to change."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from l3rs.controller.config import L3RSConfig
from l3rs.controller.decide import meta_shapes, unflatten
from l3rs.controller.describe import KINDS
from l3rs.controller.features import feature_names

DEPTHS = 5
DESCRIPTION = ("head", *(f"depth {i / (DEPTHS - 1):g}" for i in range(DEPTHS)), "scale", "shift", "head's bias")
HEIGHT = 3.0  # of a unit where it acts; noise on its weights and on its way to the output then weigh alike


def paths(config: L3RSConfig) -> list[tuple[str, dict[str, float], float]]:
    """The units that carry something through both hidden layers: a name, the weights of its inputs, or of blocks of inputs, and its bias.

    - early, late: linear in relative time, from `HEIGHT` at the first step to 0 in the middle of the run, and from there to `HEIGHT`. The
      sum of tanh(a (t - t_i)) over the reference points grows about linearly while t goes from 0 to 1;
    - horizon: 0 at K = 10 and `HEIGHT` at K = 100. The sum of tanh(K / s_i - 1) over log-spaced s_i is about linear in log K;
    - what a layer is, one unit for each number of `DESCRIPTION`, from the first numbers of its embedding; without embeddings, one for each
      descriptor of its kind and depth;
    - early, late and horizon again, for the head alone.

    As many as there are units in the narrower hidden layer; without embeddings and descriptors, the first three.
    """
    points = torch.linspace(0, 1, config.time_points, dtype=torch.float32)
    span = float(torch.tanh(config.time_slope * (1 - points)).sum())  # the sum runs from -span to span
    shortest, tenfold = (float(torch.tanh(k / torch.tensor(config.time_scales, dtype=torch.float32) - 1).sum()) for k in (10.0, 100.0))
    time, horizon = HEIGHT / span, HEIGHT / (tenfold - shortest)
    clocks = [
        ("early", {"relative_time": -time}, 0.0),
        ("late", {"relative_time": time}, 0.0),
        ("horizon", {"absolute_time": horizon}, -horizon * shortest),
    ]
    if config.embedding:
        known = {what: f"embedding/{i}" for i, what in enumerate(DESCRIPTION[: config.embedding])}
    elif config.descriptors:
        known = {what: f"layer/{what}" for what in (*KINDS, "depth")}
    else:  # no unit can tell the head from the body
        return clocks[: min(config.hidden)]
    whats = [(what, {feature: HEIGHT}, 0.0) for what, feature in known.items()]
    gated = []
    for name, weights, bias in clocks:
        # Closed for the body: twice as far below 0 as the clock can reach above, with all its features at 1.
        far = 2 * (sum(abs(w) * sum(f.startswith(f"{block}/") for f in feature_names(config)) for block, w in weights.items()) + abs(bias))
        gated.append((f"head's {name}", {**weights, known["head"]: far}, bias - far))
    return [*clocks, *whats, *gated][: min(config.hidden)]


def initial_theta(config: L3RSConfig, layers: tuple[str, ...], seed: int, description: Tensor | None = None) -> Tensor:
    """Meta-parameters that already are a sane schedule, which meta-training starts from.

    The hidden layers are drawn at random (He's scale) and the output layer is zero, except for the units of `paths`. From them

    - lambda shrinks by `initial_decay` nats, linearly in k/K, over a run;
    - lambda shrinks as K^-`initial_horizon`;
    - a head moves `initial_head` times as far. A layerwise controller has this in the output bias of the head's layers; its layers all
      start with the same MLP.

    The first numbers of each embedding are the layer's description, and the others are random.

    Args:
        layers: as in `meta_shapes`.
        description: of each layer, see `l3rs.networks.description`; None describes none.
    """
    if description is None:
        description = torch.zeros(len(layers), len(DESCRIPTION), dtype=torch.float32)
    if config.controller == "layerwise":
        every = meta_shapes(config, layers)
        alike = replace(config, controller="shared")
        one = unflatten(initial_theta(alike, (), seed), meta_shapes(alike, ()))
        meta = {name: t.expand(every[name]).clone() for name, t in one.items()}
        meta["b3"][:, 0] += math.log(config.initial_head) * description[:, 0]
        return torch.cat([meta[name].flatten() for name in every])
    generator = torch.Generator().manual_seed(seed)
    shapes, inputs = meta_shapes(config, layers), feature_names(config)
    meta = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}
    for name in ("w1", "w2"):
        meta[name] = torch.randn(shapes[name], generator=generator, dtype=torch.float32) * math.sqrt(2 / shapes[name][1])
    for unit, (_, weights, bias) in enumerate(paths(config)):
        meta["w1"][unit] = torch.tensor([weights.get(name, 0.0) + weights.get(name.partition("/")[0], 0.0) for name in inputs])
        meta["b1"][unit] = bias
        meta["w2"][unit] = torch.eye(config.hidden[0])[unit]
    if layers:
        meta["embedding"] = torch.randn(shapes["embedding"], generator=generator, dtype=torch.float32)
        meta["embedding"][:, : len(DESCRIPTION)] = description[:, : config.embedding]
    meta["b3"][0], meta["b3"][-1] = -config.initial_decay / 2, config.initial_mix
    starts = {
        "early": config.initial_decay / 2,
        "late": -config.initial_decay / 2,
        "horizon": -config.initial_horizon * math.log(10),
        "head": math.log(config.initial_head),
    }
    for unit, (name, *_) in enumerate(paths(config)):
        meta["w3"][0, unit] = starts.get(name, 0.0) / HEIGHT
    return torch.cat([meta[name].flatten() for name in shapes])


def noise_scale(config: L3RSConfig, layers: tuple[str, ...], hidden: float) -> Tensor:
    """How strong the noise of meta-training is on each meta-parameter, (n,): 1 on the ways from `paths` to the output and on its bias.

    These change the schedule of many layers, over much of a run, alike, and a step there shows above the noise of evaluation; so most is
    learned there first.

    Args:
        hidden: the strength on all others.
    """
    shapes = meta_shapes(config, layers)
    scale = {name: torch.full(shape, hidden) for name, shape in shapes.items()}
    scale["w3"][..., : len(paths(config))] = 1.0
    scale["b3"][:] = 1.0
    return torch.cat([scale[name].flatten() for name in shapes])
