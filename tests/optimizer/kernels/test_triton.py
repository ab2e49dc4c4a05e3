"""The Triton kernel against the foreach one, in Triton's interpreter: no GPU is needed, and none is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
SETS = ["sgd adam", "sgd adam adamax lion lamb weight_decay"]


@pytest.mark.parametrize("directions", SETS)
def test_triton_equals_foreach_in_the_interpreter(directions: str) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__, *directions.split()], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def mend_interpreter() -> None:
    """Triton 3.6's interpreter takes `int` of arrays of one element, which numpy 2.4 has ended; later ones have this themselves."""
    from triton.runtime import interpreter

    usual = interpreter._patch_lang_tensor

    def patch(tensor: type, *scope: Any) -> None:
        usual(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patch


def compare(directions: tuple[str, ...]) -> None:
    """Five steps on the same gradients, the fourth of which is not finite; then parameters and moments agree to rounding."""
    from conftest import random_schedule, small_network

    from l3rs import L3RS
    from l3rs.optimizer.kernels.triton_kernel import TritonKernel

    networks = small_network(), small_network()
    for network in networks:
        torch.manual_seed(0)
        network.add_module("big", torch.nn.Linear(300, 120))  # more than two chunks
    optimizers = [
        L3RS(n.named_parameters(), 5, random_schedule(n, scale=0.1, directions=directions, lr0=1e-3), fused=False) for n in networks
    ]
    for k in range(5):
        generator = torch.Generator().manual_seed(k)
        gradients = [torch.randn(p.shape, generator=generator) for p in networks[0].parameters()]
        if k == 3:
            gradients[2][0] = float("inf")
        for network, optimizer in zip(networks, optimizers, strict=True):
            for p, g in zip(network.parameters(), gradients, strict=True):
                p.grad = g.clone()
            if optimizer is optimizers[1]:
                with torch.no_grad():
                    optimizer._tables.active(optimizer.param_groups, optimizer.state)  # makes the tables
                (layers,) = optimizer._tables.by_device
                if not isinstance(layers.kernel, TritonKernel):
                    params = list(network.parameters())
                    states = [optimizer.state[p] for p in params]
                    layers.kernel = TritonKernel(params, states, optimizer._controller.directions, optimizer._controller.constants)
            optimizer.step(loss=1.0 + k)
    for p, q in zip(*(n.parameters() for n in networks), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)
        for key, value in optimizers[0].state[p].items():
            torch.testing.assert_close(optimizers[1].state[q][key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    mend_interpreter()
    compare(tuple(sys.argv[1:]))
