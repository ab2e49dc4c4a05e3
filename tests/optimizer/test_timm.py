"""What timm asks of an optimizer: its own checks, in our words, and its factory."""

from __future__ import annotations

import l3rs  # isort: skip  (before timm)

import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import backward, equal, random_schedule, small_network, train, weights
from timm.optim import create_optimizer_v2, optimizer_kwargs
from torch import Tensor, nn

from l3rs import L3RS
from l3rs.networks.pretrained import pretrained
from l3rs.schedules.find import GENERALIST

CASES = {
    "plain": lambda w, b: [w, b],
    "strided": lambda w, b: [w, b],
    "groups": lambda w, b: [{"params": [w]}, {"params": [b], "lr": 0.5}],
    "groups with a default": lambda w, b: [{"params": [w], "lr": 0.5}, {"params": [b]}],
}


def problem(case: str) -> tuple[nn.Parameter, nn.Parameter, Callable[[], Tensor]]:
    """A matrix, a vector, and the mean of |W x + b|^2 for one x."""
    weight = nn.Parameter(torch.randn(10, 5, 2)[..., 0] if case == "strided" else torch.randn(10, 5))
    bias = nn.Parameter(torch.randn(10, 2)[..., 0] if case == "strided" else torch.randn(10))
    x = torch.randn(5)
    return weight, bias, lambda: (weight.mv(x) + bias).square().mean()


@pytest.mark.parametrize("case", list(CASES))
def test_lowers_a_simple_loss(case: str) -> None:
    weight, bias, objective = problem(case)
    optimizer = L3RS(CASES[case](weight, bias), total_steps=200)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    start = objective().item()
    for _ in range(200):
        optimizer.step(closure)
    assert objective().item() < 0.1 * start


def test_a_restored_copy_steps_alike_and_leaves_the_state_dict_alone() -> None:
    weight, bias, objective = problem("plain")
    optimizer = L3RS([weight, bias], total_steps=60)

    def step(optimizer: L3RS, objective: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        optimizer.step(loss=loss)

    for _ in range(20):
        step(optimizer, objective)
    other_weight, other_bias = (nn.Parameter(p.detach().clone()) for p in (weight, bias))
    x = torch.randn(5)
    mine, theirs = (lambda: (weight.mv(x) + bias).square().mean()), (lambda: (other_weight.mv(x) + other_bias).square().mean())
    restored = L3RS([other_weight, other_bias], total_steps=60)
    state = copy.deepcopy(optimizer.state_dict())
    untouched = copy.deepcopy(state)
    restored.load_state_dict(state)
    for _ in range(20):
        step(optimizer, mine)
        step(restored, theirs)
        assert torch.equal(weight, other_weight)
        assert torch.equal(bias, other_bias)
    for i, values in untouched["state"].items():
        assert all(torch.equal(values[key], state["state"][i][key]) for key in values)
    step(optimizer, mine)
    assert set(optimizer.state_dict()) == {"state", "param_groups"}


@pytest.mark.parametrize("scheduled", [False, True])
def test_rosenbrock(scheduled: bool) -> None:
    """From (1.5, 1.5), the generalist comes nearer to the minimum at (1, 1) along the curved valley (not far: its steps are those of
    fine-tuning)."""
    p = nn.Parameter(torch.tensor([1.5, 1.5]))
    optimizer = L3RS([p], total_steps=500)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500) if scheduled else None
    start = (p - 1).norm().item()
    for _ in range(500):
        optimizer.zero_grad()
        x, y = p
        loss = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        loss.backward()
        optimizer.step(loss=loss)
        if schedule is not None:
            schedule.step()
    assert (p - 1).norm().item() < 0.9 * start


@pytest.fixture
def resnet() -> nn.Module:
    l3rs.register_with_timm()
    l3rs.register_with_timm()  # twice does no harm
    return pretrained(5)


def test_timms_factory_makes_it_once_it_is_registered(resnet: nn.Module) -> None:
    with pytest.warns(UserWarning, match="icons-resnet34 knows 110 layers by name"):
        assert GENERALIST in repr(create_optimizer_v2(resnet, "l3rs", total_steps=10))
    for specialist in (
        create_optimizer_v2(resnet.named_parameters(), "l3rs", lr=0.5, total_steps=10),
        create_optimizer_v2(resnet, "l3rs", lr=0.5, param_group_fn=nn.Module.named_parameters, total_steps=10),
    ):
        assert isinstance(specialist, L3RS)
        assert "icons-resnet34' (names and sizes agree)" in repr(specialist)
        assert specialist.param_groups[0]["lr"] == 0.5


def test_timms_lookahead_around_it_is_saved_and_loaded(resnet: nn.Module) -> None:
    """It keeps slow weights in the states of its optimizer."""
    network, other = small_network(), small_network()
    optimizer, fresh = (create_optimizer_v2(list(n.named_parameters()), "lookahead_l3rs", total_steps=20) for n in (network, other))

    def steps(n: nn.Module, o: torch.optim.Optimizer, numbers: range) -> None:
        for k in numbers:
            backward(n, k)
            o.step()

    steps(network, optimizer, range(8))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(network.state_dict())
    for n, o in ((network, optimizer), (other, fresh)):
        steps(n, o, range(8, 14))
    assert equal(weights(network), weights(other))


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}])
def test_timms_factory_may_ask_for_torch_operations(options: dict[str, bool], resnet: nn.Module) -> None:
    optimizer = create_optimizer_v2(resnet.named_parameters(), "l3rs", total_steps=10, **options)
    assert "step: torch operations on cpu" in repr(optimizer)


def test_timms_factory_is_told_what_it_left_out_or_meant_for_adam(resnet: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"create_optimizer_v2\(\.\.\., total_steps=1000\), opt_args .*--opt-kwargs total_steps=1000"):
        create_optimizer_v2(resnet.named_parameters(), "l3rs")
    with pytest.warns(UserWarning, match=r"lr is 0\.001: it multiplies the step"):
        create_optimizer_v2(resnet.named_parameters(), "l3rs", lr=1e-3, total_steps=10)
    config = SimpleNamespace(opt="l3rs", lr=1.0, weight_decay=0.0, momentum=0.9, opt_args={"total_steps": 10})
    assert create_optimizer_v2(resnet.named_parameters(), **optimizer_kwargs(config)).param_groups[0]["total_steps"] == 10


def test_timms_factory_gives_weight_decay_to_kernels_alone(resnet: nn.Module) -> None:
    told = pytest.warns(UserWarning, match="icons-resnet34 knows 110 layers by name")
    with told, pytest.warns(UserWarning, match="is all zeros"):  # the head's bias, whose matrix is in another group, without names
        biases, kernels = create_optimizer_v2(resnet, "l3rs", weight_decay=0.05, total_steps=10).param_groups
    assert [biases["weight_decay"], kernels["weight_decay"]] == [0.0, 0.05]
    assert {p.dim() for p in biases["params"]} == {1}


@pytest.mark.parametrize(("dtype", "fused"), [(torch.float32, None), (torch.float32, False), (torch.float64, None)])
def test_weight_decay_shrinks_a_layer_by_its_step(dtype: torch.dtype, fused: bool | None) -> None:
    networks = [small_network(dtype) for _ in range(3)]
    learned = random_schedule(networks[0])
    groups = [{"params": [p], "weight_decay": 100.0 * (i < 3)} for i, p in enumerate(networks[1].named_parameters())]
    plain, decayed = L3RS(networks[0].named_parameters(), 5, learned, fused=fused), L3RS(groups, 5, learned, fused=fused)
    none = L3RS(networks[2].named_parameters(), 5, learned, weight_decay=0.0, fused=fused)
    for optimizer, network in zip((plain, decayed, none), networks, strict=True):
        train(network, optimizer, range(1))
    assert equal(weights(networks[0]), weights(networks[2]))
    lengths = plain.decisions()["length"]
    assert list(decayed.decisions()["length"]) == list(lengths)
    for i, (p, q) in enumerate(zip(networks[0].parameters(), networks[1].parameters(), strict=True)):
        factor = 1 - 100 * lengths.iloc[i] / p.numel() ** 0.5 if i < 3 else 1.0
        assert factor < 0.9 or i >= 3
        torch.testing.assert_close(q, p * factor)
    before = weights(networks[1])
    backward(networks[1], 1)
    decayed.step(loss=float("nan"))
    assert equal(before, weights(networks[1]))


def test_weight_decay_is_a_number() -> None:
    network = small_network()
    for wrong in (-0.1, float("nan"), "0.1", None):
        with pytest.raises(ValueError, match="weight_decay must be a finite number of at least 0"):
            L3RS(network.named_parameters(), 5, weight_decay=wrong)  # type: ignore[arg-type]
    optimizer = L3RS(network.named_parameters(), 5, weight_decay=np.float32(0.5))
    assert type(optimizer.param_groups[0]["weight_decay"]) is float
