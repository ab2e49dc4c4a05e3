"""The learned optimizers' Triton kernel on a CUDA GPU: used by default, and equal to torch operations. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from forms import make
from torch import nn

from l3rs.learned.portions import kernel_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

SHAPES = [(7,), (513,), (300, 200), (64, 32, 3, 3), (32, 3, 7, 7), (5, 4, 9)]


@pytest.mark.parametrize("form", ["Celo2", "Celo2-base", "VeLO", "Celo", "SmallFC"])
def test_triton_equals_torch_operations(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = [[nn.Parameter(v.cuda()) for v in values] for _ in range(2)]
    optimizers = [make(form, some, fused=fused) for some, fused in zip(params, (True, False), strict=True)]
    for _ in range(5):
        grads = [torch.randn(shape, generator=generator).cuda() for shape in SHAPES]
        for some, optimizer in zip(params, optimizers, strict=True):
            for p, g in zip(some, grads, strict=True):
                p.grad = g.clone()
            optimizer.step(loss=torch.ones((), device="cuda"))
    assert any(isinstance(kernel, kernel_for("cuda")) for kernel in optimizers[0]._portions._kernels.values())
    assert not optimizers[1]._portions._kernels
    for p, q, v in zip(*params, values, strict=True):
        moved = (q.cpu() - v).norm()
        assert moved > 0
        assert (p - q).norm().cpu() < 2e-3 * moved
