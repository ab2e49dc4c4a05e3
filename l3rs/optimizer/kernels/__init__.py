"""How a step is taken: in three launches of Triton on CUDA, in C on CPU, and in torch operations everywhere else.

All three take the same step; `why_not_compiled` says when it is the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from l3rs.controller.config import L3RSConfig
from l3rs.controller.features import feature_names
from l3rs.directions import Direction
from l3rs.optimizer.kernels.foreach import ForeachKernel
from l3rs.optimizer.kernels.memory_layout import refusal
from l3rs.optimizer.kernels.native import NativeKernel, library
from l3rs.optimizer.kernels.norms import Norms
from l3rs.optimizer.kernels.triton_kernel import WIDEST, TritonKernel, unusable

Kernel = ForeachKernel | NativeKernel | TritonKernel


def why_not_compiled(params: Sequence[Tensor], directions: Mapping[str, Direction], config: L3RSConfig) -> str | None:
    """Why no compiled kernel can step these parameters of one device by such a schedule; None if one can."""
    why = refusal(params, directions)
    if why is not None:
        return why
    if params[0].device.type == "cpu":
        return None if library() is not None else "the native kernel was not built: install l3rs where there is a C compiler"
    width = max(len(feature_names(config)), *config.hidden)
    if width > WIDEST:
        return f"the controller has {width} inputs or units in a layer; the Triton kernel takes {WIDEST}"
    return unusable(params[0].device)


def kernel_class(
    params: Sequence[Tensor], directions: Mapping[str, Direction], config: L3RSConfig, fused: bool | None
) -> type[ForeachKernel] | type[NativeKernel] | type[TritonKernel]:
    """What steps these parameters of one device: a compiled kernel where there is one for them, unless `fused` is False.

    Raises:
        ValueError: `fused` is True, and there is none; the message says why.
    """
    why = "fused=False asks for torch operations" if fused is False else why_not_compiled(params, directions, config)
    if why is None:
        return NativeKernel if params[0].device.type == "cpu" else TritonKernel
    if fused:
        raise ValueError(f"fused=True, but {why}")
    return ForeachKernel


__all__ = ["ForeachKernel", "Kernel", "NativeKernel", "Norms", "TritonKernel", "kernel_class", "why_not_compiled"]
