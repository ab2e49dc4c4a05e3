"""Operations of networks whose derivative torch cannot differentiate again, written as ones whose derivative it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(x + 3) / 6


def _hardswish(x: Tensor, inplace: bool = False) -> Tensor:
    return x * F.relu6(x + 3) / 6


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


TWICE: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    F.scaled_dot_product_attention: _attention,
}
"""What takes the place of each."""
