"""What the kernels that are compiled have in common: the order of their tables, and the layout of what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from l3rs.directions import DIRECTIONS, Direction

ORDER = ("sgd", "adam", "lion", "lamb", "adamax", "weight_decay")
MOMENTS = (*("adam/exp_avg", "adam/exp_avg_sq", "lion/exp_avg", "lamb/exp_avg", "lamb/exp_avg_sq", "adamax/exp_avg", "adamax/exp_inf"),)
SUMS = ("weights", "grads", "adam", "lion", "lamb", "adamax")
COLUMN = MappingProxyType({"sgd": "grads", "weight_decay": "weights"} | {name: name for name in SUMS[2:]})  # which sum is a direction's


def refusal(params: Sequence[Tensor], directions: Mapping[str, Direction]) -> str | None:
    """Why no compiled kernel can step these parameters along these directions; None if one can."""
    other = [name for name, d in directions.items() if DIRECTIONS.get(name) is not d]
    if other:
        return f"there is no fused kernel for direction {other[0]!r}, but for {', '.join(ORDER)}"
    for p in params:
        if p.device.type not in ("cpu", "cuda") or p.dtype != torch.float32:
            return f"a parameter is {p.dtype} on {p.device.type}; fused kernels are for torch.float32 on cpu and cuda"
        if torch.empty_like(p, device="meta").stride() != p.stride():  # preserve_format keeps the strides of dense tensors alone
            return f"a parameter of shape {tuple(p.shape)} is not dense in memory"
    return None


def chunks(params: Sequence[Tensor], size: int) -> list[tuple[int, int, int]]:
    """Pieces of at most `size` elements: layer, first element, end; in the order of the layers."""
    return [(layer, start, min(start + size, p.numel())) for layer, p in enumerate(params) for start in range(0, p.numel(), size)]


def addresses(tensors: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[int]:
    """Where tensors begin that lie in memory as their parameters do; 0 for None. The one place where the address of a moment is taken.

    Raises:
        ValueError: one has another shape, dtype, device or strides than its parameter, of which compiled code is told nothing.
    """
    for t, p in zip(tensors, params, strict=True):
        if t is not None and (t.shape, t.dtype, t.device, t.stride()) != (p.shape, p.dtype, p.device, p.stride()):
            like = f"a parameter of shape {tuple(p.shape)}, {p.dtype} on {p.device}"
            raise ValueError(f"a moment of {like} must be alike in memory (got {tuple(t.shape)}, {t.dtype} on {t.device})")
    found = [0 if t is None else t.data_ptr() for t in tensors]
    if any(not where and t is not None and t.numel() for where, t in zip(found, tensors, strict=True)):
        raise ValueError("a tensor that a kernel is given has no memory, which was freed, or which it never had")
    return found


def point_at(grads: Sequence[Tensor], params: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[int]]:
    """The gradients, which must be kept as long as they are pointed at, and where they begin."""
    found = list(map(Tensor.data_ptr, grads))
    if 0 in found:  # of no elements; or, from forward differentiation, zeros that take no memory
        grads = [torch.zeros_like(p) if g._is_zerotensor() else g for g, p in zip(grads, params, strict=True)]
        found = list(map(Tensor.data_ptr, grads))
    return grads, found


def held(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Aliases, with which the memory stays theirs, and its address is nothing else's, whatever becomes of the tensors themselves."""
    return [t.detach() for t in tensors if t is not None]


def align_moments(params: Sequence[Tensor], states: Sequence[dict[str, Tensor]]) -> None:
    """Makes the moments lie in memory as their parameters do, in place of those in `states` that do not."""
    for state, p in zip(states, params, strict=True):
        for key in MOMENTS:
            if key in state and state[key].shape == p.shape and state[key].stride() != p.stride():
                state[key] = torch.empty_like(p).copy_(state[key])
