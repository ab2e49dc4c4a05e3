"""What L3RS needs of torch.distributed: the same loss on all ranks, and norms of whole tensors where each rank holds a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def average_over_ranks(loss: Tensor, device: torch.device, group: ProcessGroup | None) -> Tensor:
    """The mean of a loss over the ranks of `group` (None: all), on `device`, or the loss itself where only one process runs.

    Data-parallel training averages gradients, not losses; schedules that saw different losses would let the weights drift apart.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size(group) == 1:
        return loss
    mean = loss.to(device, torch.float32, copy=True)
    distributed.all_reduce(mean, group=group)
    return mean / distributed.get_world_size(group)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (DTensor); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """All parts of a sharded tensor, which every rank asks for; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_reduction(params: Sequence[Tensor]) -> Callable[[Tensor], Tensor] | None:
    """Sums squares, (L,) or (L, n) with a row for each parameter, over the ranks that hold the other parts; None if all are whole.

    Raises:
        ValueError: the parameters are sharded over different meshes, or hold pending sums.
    """
    sharded = [hasattr(p, "to_local") for p in params]
    if not any(sharded):
        return None
    tensors: list[Any] = [p for p, s in zip(params, sharded, strict=True) if s]
    if any(placement.is_partial() for t in tensors for placement in t.placements):
        raise ValueError("a parameter is a DTensor with a pending sum (Partial); L3RS takes sharded and replicated ones")
    kinds = {(t.device_mesh, tuple(i for i, placement in enumerate(t.placements) if placement.is_shard())) for t in tensors}
    if len(kinds) > 1:
        raise ValueError(f"parameters are sharded in {len(kinds)} different ways; L3RS takes one device mesh for all")
    mesh, dims = kinds.pop()
    groups = [mesh.get_group(dim) for dim in dims]
    rows = torch.tensor(sharded, device=tensors[0].to_local().device)

    def reduce(squares: Tensor) -> Tensor:
        total = squares.clone()
        for group in groups:
            distributed.all_reduce(total, group=group)
        return torch.where(rows.view(-1, *[1] * (squares.dim() - 1)), total, squares)

    return reduce
