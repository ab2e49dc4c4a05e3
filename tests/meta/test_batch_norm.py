"""Batch normalization and its first two derivatives against torch's, and those of its statistics against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from l3rs.meta.batch_norm import batch_norm


def inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, shape[1:2], shape[1:2]))
    return (3 * x + 2).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (6, 4), (2, 1, 3)])
def test_two_derivatives(shape: tuple[int, ...]) -> None:
    found = []
    for ours in (True, False):
        x, weight, bias = given = inputs(*shape)
        y = batch_norm(x, weight, bias, 1e-5)[0] if ours else F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5)
        first = torch.autograd.grad(y.sin().sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(g.cos().sum() for g in first), given)
        found.append([y, *first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradgradcheck(lambda *given: batch_norm(*given, 1e-5)[0], inputs(*shape))


def test_statistics() -> None:
    x = inputs(5, 3, 4, 2)[0]
    _, mean, var = batch_norm(x, None, None, 1e-5)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, x.var((0, 2, 3)))
    assert torch.autograd.gradcheck(lambda x: batch_norm(x, None, None, 1e-5), (x,))
