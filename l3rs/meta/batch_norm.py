"""Batch normalization that is cheap to differentiate twice, and whose statistics can be differentiated.

torch derives the derivative of its derivative from some thirty operations a layer; written out, it is eleven. With M elements a channel,
x_hat = (x - mean) r, and sums over them:

    y = gamma x_hat + beta,    x' = gamma r (y' - sum(y') / M - x_hat sum(y' x_hat) / M)

where z' is the derivative of the loss with respect to z (Ioffe and Szegedy 2015). `_Backward.backward` is the derivative of x', gamma' and
beta' with respect to y', x and gamma.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes with the statistics of the batch.

    Args:
        x: (N, C, ...).
        weight, bias: (C,); None is 1 and 0.

    Returns:
        y, and the mean and the unbiased variance of each channel, (C,), with their derivative.
    """
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    return cast("tuple[Tensor, Tensor, Tensor]", _BatchNorm.apply(x, weight, bias, eps))  # type: ignore[no-untyped-call]


def _by_channel(t: Tensor, like: Tensor) -> Tensor:
    return t.view(1, -1, *[1] * (like.dim() - 2))


def _over(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, r = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        number = x.numel() / x.shape[1]
        var = (r.square().reciprocal_() - eps).clamp_min_(0) * (number / (number - 1))
        ctx.save_for_backward(x, weight, mean, r)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return y, mean.clone(), var

    @staticmethod
    def backward(ctx: Any, of_y: Tensor | None, of_mean: Tensor | None, of_var: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, r = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if of_y is not None:
            of_x, of_weight, of_bias = _Backward.apply(of_y, x, weight, mean, r, ctx.eps)  # type: ignore[no-untyped-call]
        if of_mean is not None or of_var is not None:  # of the statistics themselves: once, from the end of the run
            number = x.numel() / x.shape[1]
            slope = 2 * (torch.zeros_like(mean) if of_var is None else of_var) / (number - 1)
            shift = (torch.zeros_like(mean) if of_mean is None else of_mean) / number - mean * slope
            through = torch.addcmul(_by_channel(shift, x), x, _by_channel(slope, x))
            of_x = through if of_x is None else of_x + through
        return of_x, of_weight, of_bias, None


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, of_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_y, x, weight, None, None, mean, r, True, eps, [True, True, True]
        )
        ctx.save_for_backward(of_y, x, weight, mean, r, of_weight, of_bias)
        return of_x, of_weight, of_bias

    @staticmethod
    def backward(ctx: Any, a: Tensor, of_dweight: Tensor, of_dbias: Tensor) -> tuple[Tensor | None, ...]:
        of_y, x, weight, mean, r, y_hat, y_sum = ctx.saved_tensors  # y_hat: sum of y' x_hat, y_sum: of y'
        number, over = x.numel() / x.shape[1], _over(x)
        hat = torch.addcmul(_by_channel(-mean * r, x), x, _by_channel(r, x))
        a_sum, a_hat, a_y = a.sum(over), (a * hat).sum(over), (a * of_y).sum(over)
        scale = weight * r
        inner = a_y - (a_sum * y_sum + a_hat * y_hat) / number
        along = of_dweight - scale * a_hat / number  # of x_hat in both derivatives
        of_of_y = torch.addcmul(_by_channel(of_dbias - scale * a_sum / number, x), a, _by_channel(scale, x)).addcmul_(
            hat, _by_channel(along, x)
        )
        h_sum = along * y_sum - scale * a_sum * y_hat / number
        h_hat = along * y_hat - scale * a_hat * y_hat / number
        of_x = torch.addcmul(_by_channel(-r * h_sum / number, x), a, _by_channel(-r * scale * y_hat / number, x))
        of_x.addcmul_(of_y, _by_channel(r * along, x)).addcmul_(hat, _by_channel(-(r * h_hat + scale * r * inner) / number, x))
        return of_of_y, of_x, r * inner, None, None, None
