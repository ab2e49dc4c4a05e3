"""The two passes of a step over the parameters, norms and then the update: in torch operations, and in C for CPU.

Both say the same; `choose` takes the one that fits. Between the passes the controller decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from l3rs.directions import Direction
from l3rs.kernels.foreach import ForeachKernel
from l3rs.kernels.native import NativeKernel
from l3rs.kernels.norms import Norms


class Kernel(Protocol):
    """Made for a list of parameters and their states; valid as long as these stay where they are in memory."""

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        """The first pass.

        Args:
            grads: one for each parameter, of its dtype.
            steps: (L,), the number of this step for each parameter, from 1.
            ok: a bool, whether the step may go on as far as is known.
        """
        ...

    def apply(self, scales: Tensor) -> None:
        """The second pass: p <- p - sum_k scales[:, k] d_k. `scales` is (L, P)."""
        ...


def choose(
    params: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    directions: Mapping[str, Direction],
    constants: Mapping[str, tuple[float, ...]],
    reduce: Callable[[Tensor], Tensor] | None,
    fused: bool | None,
) -> Kernel:
    """The native kernel where it can be used, unless `fused` is False; raises ValueError if it cannot and `fused` is True."""
    if fused is not False:
        why = NativeKernel.refusal(params, directions)
        if why is None:
            return NativeKernel(params, states, directions, constants, reduce)
        if fused:
            raise ValueError(f"fused=True, but {why}")
    return ForeachKernel(params, states, directions, constants, reduce)


__all__ = ["ForeachKernel", "Kernel", "NativeKernel", "Norms", "choose"]
