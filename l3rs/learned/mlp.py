"""The MLP that all elements of a parameter go through, in pieces that fit the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l3rs.learned.accumulators import (
    CLIP,
    DECAYS,
    VECTOR_GROUPS,
    WIDTHS,
    Elements,
    State,
    advance_factors,
    advance_moments,
    elements,
    features,
    rows,
)
from l3rs.learned.layout import matrix_axes

PIECE = 1 << 16  # elements at a time; 30 features of each are 8 MB


class MLP(NamedTuple):
    """Two hidden layers with ReLU; x @ w + b. Shapes: w0 (features, h), b0 (h), w1 (h, h), b1 (h), w2 (h, 3), b2 (3).

    The outputs are a direction, a log magnitude, and one that is unused."""

    w0: Tensor
    b0: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def like(self, p: Tensor) -> MLP:
        """The same on the device and in the dtype of a parameter."""
        return self if self.b0.dtype == p.dtype and self.b0.device == p.device else MLP(*(t.to(p) for t in self))

    def __call__(self, x: Tensor) -> Tensor:
        """(features, n) to (2, n): direction and log magnitude."""
        x = torch.relu(torch.addmm(self.b0[:, None], self.w0.T, x))
        x = torch.relu(torch.addmm(self.b1[:, None], self.w1.T, x))
        return torch.addmm(self.b2[:2, None], self.w2[:, :2].T, x)


class Member(NamedTuple):
    """A parameter that is stepped now.

    Attributes:
        param: itself.
        g, p: its gradient and its values, of the dtype of its state; a scalar as (1,).
        state: what is remembered of it.
        group: the parameter group it is in.
    """

    param: Tensor
    g: Tensor
    p: Tensor
    state: State
    group: dict[str, Any]


def pieces(e: Elements) -> Iterator[tuple[slice, Elements]]:
    """The parameter row by row along its first axis, some rows at a time."""
    count = e.g.shape[0]
    step = max(1, PIECE * count // max(e.g.numel(), 1))
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield slice(start, stop), rows(e, start, stop)


class Rule(NamedTuple):
    """What differs between the optimizers.

    Attributes:
        rho: decay of the mean square r.
        eps: in s = (r + eps)^-1/2.
        delta: added to a feature's mean square before it is normalized.
        exponent: multiplies the MLP's log magnitude.
        by_matrix: whether features are normalized over each spatial position's matrix, and vectors go without factored features; else over
            the whole parameter.
        momentum, factors: decays of momentum, and of the row and column means.
        clip: gradients are clipped to this, element by element.
        of_vectors: added to the mean squares of a vector in its last group of features.
    """

    rho: float
    eps: float
    delta: float
    exponent: float
    by_matrix: bool
    momentum: tuple[float, ...] = DECAYS
    factors: tuple[float, ...] = DECAYS
    clip: float = CLIP
    of_vectors: float = 0.0

    def axes(self, p: Tensor) -> tuple[int, ...]:
        """Over which features are normalized."""
        return matrix_axes(p.dim()) if self.by_matrix else tuple(range(p.dim()))

    def groups(self, p: Tensor) -> int:
        """How many groups of features there are."""
        return VECTOR_GROUPS if self.by_matrix and p.dim() < 2 else len(WIDTHS)


def direction(state: State, g: Tensor, p: Tensor, mlp: MLP, rule: Rule) -> Tensor:
    """Advances the state of one parameter by its gradient, and gives what the MLP makes of it: direction times exp(exponent magnitude).

    In torch operations, for any device and dtype.

    Args:
        g, p: (*shape), of the dtype of the state, with at least one axis.
    """
    g = g.clamp(-rule.clip, rule.clip)
    advance_factors(state, g, rule.factors)
    advance_moments(state, g, rule.rho, rule.momentum)
    return outputs(elements(state, g, p, rule.of_vectors), mlp, rule)


def outputs(e: Elements, mlp: MLP, rule: Rule) -> Tensor:
    """What the MLP makes of all elements of a parameter, (*shape): direction times exp(exponent magnitude)."""
    groups, axes = rule.groups(e.p), rule.axes(e.p)
    total = sum(features(part, rule.eps, groups).square_().sum([axis + 1 for axis in axes], keepdim=True) for _, part in pieces(e))
    assert isinstance(total, Tensor)
    normalize = (total / math.prod(e.g.shape[axis] for axis in axes) + rule.delta).rsqrt_()
    mlp = mlp._replace(w0=mlp.w0[: len(normalize)])
    d = torch.empty_like(e.g)
    for where, part in pieces(e):
        found, magnitude = mlp(features(part, rule.eps, groups).mul_(normalize).flatten(1))
        d[where] = (found * (magnitude * rule.exponent).exp_() if rule.exponent else found).view(part.g.shape)
    return d
