"""How much a step asks of torch: few operations, and on CUDA three launches, however many layers there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import backward, random_schedule, small_network
from torch.utils._python_dispatch import TorchDispatchMode

from l3rs import L3RS
from l3rs.optimizer.kernels import TritonKernel
from l3rs.optimizer.kernels.native import library

MOST = 12  # operations of torch in a step


class Counted(TorchDispatchMode):
    """Names the operations that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Launches:
    """In the place of Triton's kernels: notes what is launched, and does nothing."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return {(n,): lambda *_, **__: self.names.append(name) for n in range(1, 1000)}


def with_launches(optimizer: L3RS) -> Launches:
    """Gives the optimizer the kernel that it would have on CUDA."""
    optimizer.step(loss=1.0)
    (layers,) = optimizer._tables.by_device
    params, c = optimizer._tables.params, optimizer._controller
    code = Launches()
    states = [optimizer.state[p] for p in params]
    layers.kernel = TritonKernel(params, states, c.directions, c.constants, None, layers.decision, code)
    optimizer.step(loss=1.0)  # the first tells where everything is
    code.names.clear()
    return code


def counted(optimizer: L3RS, loss: torch.Tensor) -> list[str]:
    with Counted() as seen:
        optimizer.step(loss=loss)
    return seen.names


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("controller", ["shared", "global"])
def test_a_step_on_cuda_is_three_launches_and_a_few_operations(controller: str, groups: int) -> None:
    """One launch more where the controller decides from the mean over all layers."""
    network = small_network()
    loss = backward(network, 0)
    every = list(network.named_parameters())
    parts = [{"params": every[g::groups], "lr": 1.0 - 0.1 * g} for g in range(groups)]
    optimizer = L3RS(parts, 100, random_schedule(network, controller == "shared", controller=controller))
    code = with_launches(optimizer)
    assert len(counted(optimizer, loss)) <= MOST
    assert code.names == ["measure", *["decide"] * (1 + (controller == "global")), "move"]
    for group in optimizer.param_groups:  # as schedulers do
        group["lr"] *= 0.9
    assert len(counted(optimizer, loss)) <= MOST
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    assert len(counted(optimizer, loss)) <= MOST


@pytest.mark.skipif(library() is None, reason="no C compiler when l3rs was installed")
def test_a_step_in_c_is_a_few_operations() -> None:
    network = small_network()
    loss = backward(network, 0)
    optimizer = L3RS(network.named_parameters(), 100, random_schedule(network))
    optimizer.step(loss=loss)
    assert len(counted(optimizer, loss)) <= MOST


def test_maximizing_asks_no_more_for_many_layers() -> None:
    network = small_network()
    loss = backward(network, 0)
    optimizer = L3RS(network.named_parameters(), 100, random_schedule(network), maximize=True)
    with_launches(optimizer)
    assert len(counted(optimizer, loss)) <= MOST
