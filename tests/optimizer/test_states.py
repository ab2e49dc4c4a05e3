"""States that do not fit, of L3RS and of the others: refused before anything changes, or brought to what a fresh one is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import backward, equal, small_network, train, weights
from torch import nn

from l3rs import L3RS
from l3rs.learned import Celo2, SmallFC, VeLO, small_fc, theta
from l3rs.learned.celo2 import SHAPES

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "L3RS": lambda params: L3RS(params, 20, "icons-generalist"),
    "VeLO": lambda params: VeLO(params, theta.random(VeLO.FORM.shapes, 0), 20),
    "Celo2": lambda params: Celo2(params, theta.random(SHAPES, 0)),
    "SmallFC": lambda params: SmallFC(params, theta.random(small_fc.SHAPES, 0)),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))


def two_layers(classes: int = 3, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))


@every_optimizer
@pytest.mark.parametrize("other", [two_layers(classes=1000), two_layers(width=2048)], ids=["head", "width"])
def test_a_state_of_another_head_or_width_is_refused_by_name(make: Make, other: nn.Module) -> None:
    network = two_layers()
    optimizer, fresh = make(network.named_parameters()), make(other.named_parameters())
    train(network, optimizer, range(2))
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ValueError, match=rf"this state is of another .*of {'3' if other[3].out_features == 1000 else '1'}\.weight"):  # type: ignore[index]
        fresh.load_state_dict(optimizer.state_dict())
    after = fresh.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(t, before["state"][i][key]) for i, state in after["state"].items() for key, t in state.items())


@every_optimizer
def test_parameters_in_another_order_are_told_apart_by_name(make: Make) -> None:
    """Two layers of the same shapes, which shapes alone do not tell apart."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    named = list(network.named_parameters())
    optimizer = make(named)
    train(network, optimizer, range(1))
    fresh = make([*named[2:4], *named[:2], *named[4:]])
    with pytest.raises(ValueError, match=r"parameters in another order: number 0 is '1\.weight' there and '2\.weight' here"):
        fresh.load_state_dict(optimizer.state_dict())
    make(network.parameters()).load_state_dict(optimizer.state_dict())  # without names their order is all there is
    wrapped = nn.ModuleDict({"module": network})
    make(wrapped.named_parameters()).load_state_dict(optimizer.state_dict())  # what wrappers add is no name


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_state_that_a_tool_has_cast_is_of_the_right_dtype_again(make: Make, dtype: torch.dtype) -> None:
    network = small_network()
    optimizer = make(network.named_parameters())
    train(network, optimizer, range(3))
    resumed = copy.deepcopy(network)
    fresh = make(resumed.named_parameters())
    state = copy.deepcopy(optimizer.state_dict())
    for of in state["state"].values():
        of.update({key: t.to(dtype) for key, t in of.items()})
    fresh.load_state_dict(state)
    train(network, optimizer, range(3, 6))
    train(resumed, fresh, range(3, 6))
    assert {t.dtype for of in fresh.state.values() for t in of.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in resumed.parameters())
    assert equal(weights(resumed), weights(network)) == (dtype == torch.float64)


@every_optimizer
def test_a_network_that_is_cast_in_the_run_goes_on(make: Make) -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = make(network.named_parameters()), make(plain.named_parameters())
    for k, dtype in enumerate((torch.float32, torch.float64, torch.float64, torch.float32, torch.float32)):
        network.to(dtype)
        for i, (p, q) in enumerate(zip(network.parameters(), plain.parameters(), strict=True)):
            q.grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(10 * k + i))
            p.grad = q.grad.to(dtype)
        for each in (optimizer, reference):
            each.step(loss=2.0 - 0.3 * k)  # type: ignore[call-arg]  # of one that stays, VeLO would see what is rounded off
        moments = {t.dtype for of in optimizer.state.values() for t in of.values() if t.dim() and t.numel() > 9}
        assert moments == {dtype}
    for p, q, start in zip(network.parameters(), plain.parameters(), small_network().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)
        assert (p - q).norm() <= 1e-2 * (q - start).norm()
        assert (q - start).norm() > 0


@every_optimizer
def test_a_frozen_layer_does_not_move_where_its_gradient_is_zeros(make: Make) -> None:
    network = small_network()
    optimizer = make(network.named_parameters())
    train(network, optimizer, range(2))
    frozen = network[4].weight
    frozen.requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    before, state = frozen.clone(), copy.deepcopy(optimizer.state[frozen])
    for k in range(2):
        loss = backward(network, k)
        frozen.grad = torch.zeros_like(frozen)
        optimizer.step(loss=loss)  # type: ignore[call-arg]
    assert torch.equal(frozen, before)
    assert all(torch.equal(t, optimizer.state[frozen][key]) for key, t in state.items())


@every_optimizer
def test_a_sparse_gradient_in_the_run_is_refused_before_anything_has_advanced(make: Make) -> None:
    table = nn.Embedding(5, 3)
    optimizer = make(table.named_parameters())
    for sparse in (False, True):
        table.sparse = sparse
        optimizer.zero_grad()
        loss = table(torch.tensor([1, 2])).square().sum()
        loss.backward()
        if not sparse:
            optimizer.step(loss=loss)  # type: ignore[call-arg]
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="sparse_coo"):
        optimizer.step(loss=1.0)  # type: ignore[call-arg]
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(t, before["state"][0][key]) for key, t in after["state"][0].items())


@pytest.mark.parametrize("fused", [None, False])
def test_a_gradient_too_large_to_square_is_told_by_its_name(fused: bool | None) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 20, "icons-generalist", fused=fused)
    loss = backward(network, 0)
    network[4].weight.grad[0, 0] = 1e30  # finite in float32, and its square is not
    before = weights(network)
    optimizer.step(loss=loss)
    assert equal(before, weights(network))
    with pytest.warns(UserWarning, match="not finite, or too large for a sum of squares in float32"):
        assert optimizer.skipped_steps == 1
    train(network, optimizer, range(1, 3))
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_gradient_of_one_element_too_large_to_square_moves_nothing(shape: tuple[int, ...], fused: bool | None) -> None:
    gate, matrix = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(3, 4))
    optimizer = L3RS([("gate", gate), ("fc.weight", matrix)], 5, "generalist", fused=fused)
    gate.grad, matrix.grad = torch.full(shape, 1e30), torch.ones(3, 4)
    optimizer.step()
    assert (gate.item(), matrix.detach().mean().item()) == (1, 1)
    assert optimizer.state[gate]["adam/exp_avg_sq"].isfinite().all()
    with pytest.warns(UserWarning, match="too large for a sum of squares in float32"):
        assert optimizer.skipped_steps == 1


def test_a_head_that_has_grown_is_stepped_as_by_a_new_optimizer() -> None:
    lengths = []
    for dropped in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        network.add_module("fc", nn.Linear(16, 3))
        optimizer = L3RS(network.named_parameters(), 5, "generalist")
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        for p in network[2].parameters():
            p.grad = None
            p.data = torch.cat([p.data, torch.randn(297, *p.shape[1:], generator=torch.Generator().manual_seed(1))])
            if dropped:
                del optimizer.state[p]
        if not dropped:
            optimizer = L3RS(network.named_parameters(), 5, "generalist")
            optimizer.param_groups[0]["step"] = 1
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        lengths.append(optimizer.decisions().length[["fc.weight", "fc.bias"]])
    pd.testing.assert_series_equal(*lengths)


def test_a_gradient_in_float64_may_be_larger() -> None:
    network = small_network(torch.float64)
    optimizer = L3RS(network.named_parameters(), 5, "generalist")
    for p in network.parameters():
        p.grad = torch.full_like(p, 1e25)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert all(t.isfinite().all() for state in optimizer.state.values() for t in state.values())


def test_memory_of_a_frozen_layer_that_was_freed_changes_no_step_of_the_others() -> None:
    ends = []
    for freed in (False, True):
        network = small_network()
        network[0].weight.requires_grad_(False)
        optimizer = L3RS(network.named_parameters(), 5, "generalist")
        if freed:
            network[0].weight.data = torch.empty(0)
        for p in network.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        optimizer.step()
        ends.append(optimizer.decisions().drop(index="0.bias", errors="ignore"))
    pd.testing.assert_frame_equal(*ends)


@pytest.mark.parametrize("loss", [1e300, -1e300])
def test_a_loss_that_float32_cannot_hold_moves_nothing(loss: float) -> None:
    network = small_network()
    optimizer = OPTIMIZERS["VeLO"](network.named_parameters())
    for k, value in enumerate((loss, 3e38, -3e38, 1.0)):
        backward(network, k)
        before = weights(network)
        if k == 0:
            with pytest.warns(UserWarning, match="moved nothing"):
                optimizer.step(loss=torch.tensor(value, dtype=torch.float64))  # type: ignore[call-arg]
        else:
            optimizer.step(loss=torch.tensor(value, dtype=torch.float64))  # type: ignore[call-arg]
        assert equal(before, weights(network)) == (k == 0)
    assert all(p.isfinite().all() for p in network.parameters())
