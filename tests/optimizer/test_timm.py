"""What timm asks of an optimizer: its own checks, in our words, and its factory."""

from __future__ import annotations

import l3rs  # isort: skip  (before timm)

import copy
from collections.abc import Callable

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from l3rs import L3RS
from l3rs.networks.pretrained import pretrained

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
    assert objective().item() < start


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
    assert (p - 1).norm().item() < start


def test_timms_factory_makes_it_once_it_is_registered() -> None:
    l3rs.register_with_timm()
    l3rs.register_with_timm()  # twice does no harm
    network = pretrained(5)
    without_names = "icons-resnet34 knows 110 layers by name"
    with pytest.warns(UserWarning, match=without_names):
        assert "icons-generalist" in repr(create_optimizer_v2(network, "l3rs", total_steps=10))
    specialist = create_optimizer_v2(network.named_parameters(), "l3rs", lr=0.5, total_steps=10)
    assert isinstance(specialist, L3RS)
    assert "icons-resnet34" in repr(specialist)
    assert specialist.param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match=r"weight_decay must be 0, .*\(got 0\.05\)"):
        create_optimizer_v2(network.named_parameters(), "l3rs", weight_decay=0.05, total_steps=10)
    with pytest.warns(UserWarning, match=without_names), pytest.raises(ValueError, match=r"weight_decay must be 0, .*\(got 0\.05\)"):
        create_optimizer_v2(network, "l3rs", weight_decay=0.05, total_steps=10)
