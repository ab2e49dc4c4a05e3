"""Convolutions that are faster as matrix products, in torch's channels-last format.

An image of 32 px is a map of four pixels or one in the last stages of a ResNet. Most taps of a 3x3 kernel then meet padding alone, and
what torch's convolutions do for large maps takes longer than the products themselves. `evaluate/convolution_cost.py` times them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)
Pair = tuple[int, ...]


class MatmulConv2d(nn.Conv2d):
    """`nn.Conv2d`, but two kinds of convolutions are matrix products.

    - A strided 1x1 convolution: of the pixels that it looks at. (oneDNN writes out of bounds in the gradient of such convolutions, in
      channels last, where they have fewer channels than one of its blocks, of 8 or 16: its issue 6035.)
    - Where every pixel that comes out sees every pixel that goes in, and the matrix between them is at most twice as large as the kernel.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.dim() == 4 and self.groups == 1 and self.padding_mode == "zeros" and isinstance(self.padding, tuple):
            if self.kernel_size == (1, 1) and self.stride != (1, 1) and self.padding == (0, 0):
                return _like(input, strided(input, weight, self.stride), bias)
            found = self._taps(input, weight, self.padding)
            if found is not None:
                return _like(input, product(input, weight, found), bias)
        result: Tensor = super()._conv_forward(input, weight, bias)
        return result

    def _taps(self, input: Tensor, weight: Tensor, padding: Pair) -> Tensor | None:
        """`taps` of this layer and input, if they are to be used."""
        size, most = input.shape[-2:], 2 * weight.shape[2:].numel()
        if size.numel() > most:  # nearly all inputs: without another look
            return None
        found = taps(tuple(size), self.kernel_size, self.stride, padding, self.dilation, weight.device)
        return found if found is not None and 0 < found.numel() <= most else None


def strided(input: Tensor, weight: Tensor, stride: Pair) -> Tensor:
    """A 1x1 convolution, images being (batch, row, column, channel) within."""
    pixels = input[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
    return F.linear(pixels, weight.flatten(1)).permute(0, 3, 1, 2)


def product(input: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
    """A convolution in which `taps` joins all pixels: one matrix, of (pixel and channel that come out, pixel and channel that go in)."""
    out, (height, width, _) = len(weight), taps.shape
    joined = weight.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, taps.flatten())
    matrix = joined.view(out, height * width, -1).transpose(0, 1).flatten(0, 1)
    return F.linear(input.permute(0, 2, 3, 1).flatten(1), matrix).view(-1, height, width, out).permute(0, 3, 1, 2)


def _like(input: Tensor, result: Tensor, bias: Tensor | None) -> Tensor:
    """With the bias, in the memory format of the input."""
    result = result if bias is None else result + bias[:, None, None]
    return result if input.is_contiguous(memory_format=torch.channels_last) else result.contiguous()


@lru_cache(maxsize=256)
def taps(size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, device: torch.device) -> Tensor | None:
    """Which tap joins which pixels: (row that comes out, column that comes out, pixel that goes in). None if any two are not joined."""
    axes = []
    for n, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True):
        out, into = torch.arange(max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1)), torch.arange(n)
        far = into + p - s * out[:, None]
        if (far % d).any() or (far < 0).any() or (far >= d * k).any():
            return None
        axes.append(far // d)
    rows, columns = axes
    return (kernel_size[1] * rows[:, None, :, None] + columns[:, None, :]).flatten(2).to(device)


def use_matmuls(network: Network) -> Network:
    """The network, in place, its plain convolutions being `MatmulConv2d`: the same function to rounding, of the same parameters."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = MatmulConv2d
    return network
