"""The two passes of a step over the parameters, norms and then the update: in torch operations, in C for CPU, in Triton for CUDA.

All three give the same step; `choose` picks the one that fits. Between the passes the controller decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from l3rs.directions import Direction
from l3rs.optimizer.kernels.foreach import ForeachKernel
from l3rs.optimizer.kernels.memory_layout import refusal
from l3rs.optimizer.kernels.native import NativeKernel, library
from l3rs.optimizer.kernels.norms import Norms


class Kernel(Protocol):
    """The two passes for a list of parameters and their states; valid while these keep their place and form in memory."""

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        """The first pass.

        Args:
            grads: one for each parameter, alike in shape, strides, dtype and device (`tables.py` sees to it); float32 is fine for a
                parameter of half precision.
            steps: (L,), the number of this step for each parameter, from 1.
            ok: a bool; False if the loss is not finite.
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
    """The kernel for these parameters.

    On CPU this is the native kernel, where it can be used. On CUDA it is the Triton kernel, if `fused` is True. In all other cases it is
    foreach operations.

    Raises:
        ValueError: `fused` is True, and neither can be used; the message says why.
    """
    device = params[0].device.type
    if fused or (fused is None and device == "cpu"):
        why = refusal(params, directions)
        if why is None and device == "cpu":
            if library() is not None:
                return NativeKernel(params, states, directions, constants, reduce)
            why = "the native kernel was not built: install l3rs where there is a C compiler"
        elif why is None:
            try:
                from l3rs.optimizer.kernels.triton_kernel import TritonKernel

                return TritonKernel(params, states, directions, constants, reduce)
            except ImportError:
                why = "Triton is not installed"
        if fused:
            raise ValueError(f"fused=True, but {why}")
    return ForeachKernel(params, states, directions, constants, reduce)


__all__ = ["ForeachKernel", "Kernel", "NativeKernel", "Norms", "choose"]
