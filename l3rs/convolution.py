"""Convolutions of maps as small as their kernels, as matrix products.

An image of 32 px is a map of four pixels or one in the last stages of a ResNet. Most taps of a 3x3 kernel then meet padding alone, and
what torch's convolutions do for large maps takes longer than the products themselves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)
Pair = tuple[int, ...]


class SmallMapConv2d(nn.Conv2d):
    """`nn.Conv2d`, but where the matrix that maps all pixels to all pixels is at most twice as large as the kernel, it is multiplied."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        spread = self._spread(input, weight)
        if spread is None:
            result: Tensor = super()._conv_forward(input, weight, bias)
            return result
        out, into = weight.shape[:2]
        height, width = spread.shape[1:3]
        matrix = (weight.flatten(2) @ spread.flatten(1)).view(out, into, height * width, -1).transpose(1, 2)
        result = F.linear(input.flatten(1), matrix.reshape(out * height * width, -1)).view(-1, out, height, width)
        if bias is not None:
            result = result + bias[:, None, None]
        last = input.is_contiguous(memory_format=torch.channels_last)
        return result.contiguous(memory_format=torch.channels_last) if last else result

    def _spread(self, input: Tensor, weight: Tensor) -> Tensor | None:
        """`spread` of this layer and input, if it is to be used."""
        if input.dim() != 4 or self.groups > 1 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return None
        size, most = input.shape[-2:], 2 * weight.shape[2:].numel()
        if size.numel() > most:  # nearly all inputs: without another look
            return None
        found = spread(tuple(size), self.kernel_size, self.stride, self.padding, self.dilation, weight.dtype, weight.device)
        return found if 0 < found[0].numel() <= most else None


@lru_cache(maxsize=256)
def spread(size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which tap joins which pixels: 1 or 0 for (tap, row and column that come out, row and column that go in)."""
    axes = []
    for n, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True):
        tap, out, into = torch.arange(k), torch.arange(max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1)), torch.arange(n)
        axes.append((s * out[:, None] + d * tap[:, None, None] - p == into).to(device, dtype))
    return torch.einsum("yij,xkl->yxikjl", *axes).flatten(0, 1)


def for_small_maps(network: Network) -> Network:
    """The network, in place, its plain convolutions being `SmallMapConv2d`: the same function to rounding, of the same parameters."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = SmallMapConv2d
    return network
