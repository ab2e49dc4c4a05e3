"""What VeLO, Celo, Celo2 and small_fc_lopt remember of each parameter, and what their MLP sees (Metz et al. 2022, arXiv 2211.09760).

Momentum at three decays, a mean square, and Adafactor's row and column means of the squared gradient at three decays; without bias
correction. The 14 groups of features are 30 numbers for every element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from l3rs.learned.layout import factored_axes

DECAYS = (0.9, 0.99, 0.999)  # of momentum, and of the factored mean squares
CLIP = 1000.0  # gradients are clipped to this, element by element
CLIP_FEATURE = 0.1
WIDTHS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
"""Features in each group: g; clipped g; p; m; r; m s; s; fac; g s; R; C; (R + 1e-8)^-1/2; (C + 1e-8)^-1/2; m a b."""
VECTOR_GROUPS = 9
"""Groups that Celo2 gives vectors: those without rows and columns."""

State = dict[str, Tensor]


class Elements(NamedTuple):
    """Some rows (along the first axis) of a parameter, and what is remembered of them; shapes broadcast.

    Attributes:
        g, p, second: (*shape); the clipped gradient, the parameter before its step, the mean square r.
        momentum: (3, *shape).
        row, col: (3, *shape) with size 1 along d0, along d1; for a vector both are its mean squares.
        a, b: their factors, with which fac = g a b; of a vector, ones for b.
        c: of the last group, m c; for matrices None, and c = a b.
    """

    g: Tensor
    p: Tensor
    second: Tensor
    momentum: Tensor
    row: Tensor
    col: Tensor
    a: Tensor
    b: Tensor
    c: Tensor | None


def initial_state(p: Tensor) -> State:
    """Zeros, float32 (float64 for a float64 parameter)."""
    axes, shape = factored_axes(p.shape), list(p.shape)

    def zeros(*size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)

    state = {"momentum": zeros(len(DECAYS), *shape), "second": zeros(*shape)}
    if axes is None:
        return state | {"square": zeros(len(DECAYS), *shape)}
    for name, reduced in (("col", axes[0]), ("row", axes[1])):
        state[name] = zeros(len(DECAYS), *(1 if axis == reduced else n for axis, n in enumerate(shape)))
    return state


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Values along a first axis, (n, 1, ...), to broadcast over `like`, (n, ...), and of its dtype, in which 1 - x is then made."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.dim() - 1))


def _inverse_root(x: Tensor) -> Tensor:
    return x.clamp(min=1e-9).rsqrt()


def advance_factors(state: State, g: Tensor, betas: Sequence[float]) -> None:
    """Takes a clipped gradient, (*shape), into the row and column means of its square, or, of a vector, into the mean squares."""
    squares = g.square().add_(1e-30)
    axes = factored_axes(g.shape)
    means = {"square": squares}
    if axes is not None:
        means = {name: squares.mean(axis, keepdim=True) for name, axis in zip(("col", "row"), axes, strict=True)}
    for name, mean in means.items():
        beta = _column(betas, state[name])
        state[name].mul_(beta).add_((1 - beta) * mean)


def advance_moments(state: State, g: Tensor, rho: float, betas: Sequence[float]) -> None:
    """Takes a clipped gradient into momentum, and into the mean square, whose decay is rho."""
    momentum, second = state["momentum"], state["second"]
    beta, keep = _column(betas, momentum), torch.tensor(rho, dtype=second.dtype)
    momentum.mul_(beta).add_((1 - beta) * g)
    second.mul_(keep).add_(g.square() * (1 - keep))


def factors(state: State, p: Tensor, of_vectors: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """a, b and c of `Elements`."""
    axes = factored_axes(p.shape)
    if axes is None:
        v = state["square"]
        return _inverse_root(v + 1e-9), torch.ones_like(v), (v + of_vectors).rsqrt()
    row, col = state["row"], state["col"]
    return _inverse_root(row / (row.mean(axes[0] + 1, keepdim=True) + 1e-9)), _inverse_root(col), None


def elements(state: State, g: Tensor, p: Tensor, of_vectors: float = 0.0) -> Elements:
    """All elements of a parameter, after its state has taken in the clipped gradient g; of_vectors is added to a vector's squares in c."""
    row, col = (state["square"], state["square"]) if "square" in state else (state["row"], state["col"])
    return Elements(g, p, state["second"], state["momentum"], row, col, *factors(state, p, of_vectors))


def rows(e: Elements, start: int, stop: int) -> Elements:
    """The elements at start <= i < stop of the first axis of the parameter."""

    def cut(t: Tensor | None, axis: int) -> Tensor | None:
        return t if t is None or t.dim() <= axis or t.shape[axis] == 1 else t.narrow(axis, start, stop - start)

    return Elements(*(cut(t, 0) for t in e[:3]), *(cut(t, 1) for t in e[3:]))  # type: ignore[arg-type]


def features(e: Elements, eps: float, groups: int = len(WIDTHS)) -> Tensor:
    """The features of these elements before they are normalized, (sum of the first `groups` WIDTHS, *shape).

    Args:
        eps: in s = (r + eps)^-1/2.
    """
    s = (e.second + eps).rsqrt()
    alone = [
        e.g[None],
        e.g.clamp(-CLIP_FEATURE, CLIP_FEATURE)[None],
        e.p[None],
        e.momentum,
        e.second[None],
        e.momentum * s,
        s[None],
        e.g * e.a * e.b,
        (e.g * s)[None],
    ]
    if groups > VECTOR_GROUPS:
        alone += [e.row, e.col, (e.row + 1e-8).rsqrt(), (e.col + 1e-8).rsqrt(), e.momentum * (e.a * e.b if e.c is None else e.c)]
    return torch.cat([x.expand(-1, *e.g.shape) for x in alone])
