"""The controller: from the features of all layers to lambda and mu, and its meta-parameters as one flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from l3rs.controller.config import L3RSConfig
from l3rs.controller.features import feature_names
from l3rs.directions import direction

Meta = dict[str, Tensor]


class Decision(NamedTuple):
    """lambda in units of the layer's step, (L,), and mu, (L, P), which sums to 1 over P."""

    lam: Tensor
    mu: Tensor


@lru_cache(maxsize=64)  # meta-training asks for each candidate
def meta_shapes(config: L3RSConfig, layers: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
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
    return MappingProxyType(shapes)


def unflatten(theta: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Meta:
    """Views of the flat vector by name; raises ValueError if its length is not the sum of the shapes."""
    sizes = [math.prod(s) for s in shapes.values()]
    if theta.shape != (sum(sizes),):
        raise ValueError(f"theta has shape {tuple(theta.shape)}; there are ({sum(sizes)},) meta-parameters")
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), theta.split(sizes), strict=True)}


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
