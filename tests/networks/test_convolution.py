"""Convolutions that are matrix products are torch's, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from l3rs.networks import convolution
from l3rs.networks.convolution import MatmulConv2d, use_matmuls
from l3rs.networks.create import resnet

PRODUCTS = [  # size of the map, kernel size, stride, padding; other options
    ((1, 3, 1, 1), {}),
    ((1, 3, 2, 1), {}),
    ((2, 3, 1, 1), {}),
    ((2, 3, 2, 1), {}),
    ((1, 1, 1, 0), {}),
    ((3, 3, 1, 0), {}),
    ((2, 5, 1, 2), {}),
    ((3, 5, 2, 2), {}),
    (((1, 2), 3, 1, 1), {}),
    (((2, 1), (3, 1), (2, 1), (1, 0)), {}),
    ((2, (3, 4), (1, 2), (1, 2)), {}),
    ((1, 3, 1, 2), {"dilation": 2}),
    ((2, 1, 2, 0), {}),
    ((5, 1, (2, 3), 0), {}),
]
CONVOLUTIONS = [
    ((5, 1, 1, 0), {}),
    ((2, 1, 2, 1), {}),
    ((3, 1, 2, 0), {"groups": 2}),
    ((4, 3, 4, 1), {}),  # some pixels are not seen
    (((3, 2), (2, 3), (1, 2), (0, 1)), {}),
    ((2, 3, 1, 2), {"dilation": 2}),
    ((3, 3, 1, 1), {}),  # the matrix has 81 blocks, the kernel 9
    ((8, 3, 1, 1), {}),
    ((1, 3, 1, 1), {"groups": 2}),
    ((2, 3, 2, 1), {"padding_mode": "circular"}),
    ((1, 3, 1, "same"), {}),
]


def run(layer: nn.Conv2d, size: int | tuple[int, int]) -> tuple[torch.Tensor, ...]:
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(5, 4, height, width, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 2, y.numel()).double().view_as(y)
    return y, *torch.autograd.grad((y.square() * weights).sum(), (x, *layer.parameters()))


@pytest.mark.parametrize(
    ("shape", "options", "product"), [*((*case, True) for case in PRODUCTS), *((*case, False) for case in CONVOLUTIONS)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_those_of_torch(
    shape: tuple[Any, ...], options: dict[str, Any], product: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, kernel, stride, padding = shape
    theirs = nn.Conv2d(4, 6, kernel, stride, padding, bias=bias, **options).double()
    mine = MatmulConv2d(4, 6, kernel, stride, padding, bias=bias, **options).double()
    mine.load_state_dict(theirs.state_dict())
    expected = run(theirs, size)
    products = []
    linear: Callable[..., torch.Tensor] = nn.functional.linear
    monkeypatch.setattr(convolution.F, "linear", lambda *args: products.append(1) or linear(*args))
    found = run(mine, size)
    assert bool(products) == product
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("layer", [MatmulConv2d(4, 6, 3, 1, 1), MatmulConv2d(4, 6, 1, 2)])
def test_the_memory_format_is_kept(layout: torch.memory_format, layer: MatmulConv2d) -> None:
    x = torch.randn(5, 4, 2, 3).to(memory_format=layout)
    assert layer(x).is_contiguous(memory_format=layout)


def test_a_kernel_larger_than_the_padded_map_is_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        MatmulConv2d(4, 6, 3)(torch.randn(5, 4, 1, 1))


def test_a_network_is_the_same_function_of_the_same_parameters() -> None:
    plain, small = (resnet(18, 16, 1, 5).to(memory_format=torch.channels_last) for _ in range(2))
    for name, p in plain.named_parameters():
        if p.dim() == 1:  # a ResNet of timm starts with blocks that are switched off by a scale of 0
            nn.init.uniform_(p, 0.5, 1, generator=torch.Generator().manual_seed(len(name)))
    small.load_state_dict(plain.state_dict())
    names = [name for name, _ in small.named_parameters()]
    images = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    outcomes = []
    for network in (plain, use_matmuls(small)):
        logits = network(images)
        logits.logsumexp(1).sum().backward()
        outcomes.append((logits, [p.grad for p in network.parameters()]))
    assert [name for name, _ in small.named_parameters()] == names
    assert any(isinstance(m, MatmulConv2d) for m in small.modules())  # rounding need not tell: some CPUs convolve by the same products
    assert not any(isinstance(m, MatmulConv2d) for m in plain.modules())
    (a, grads), (b, others) = outcomes
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for name, g, h in zip(names, grads, others, strict=True):
        assert g is not None
        assert h is not None
        assert (g - h).norm() <= 1e-4 * g.norm(), name
