"""A schedule of the form for any network runs alike, to rounding, on a network that is written otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import batch, random_schedule
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS
from l3rs.controller.config import ANY_NETWORK
from l3rs.schedules.schedule import LearnedSchedule

FORM = {name: getattr(ANY_NETWORK, name) for name in ("signals", "descriptors", "direction_norms", "unit", "lr0", "initial_head")}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, eps=1e-30),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 8),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),  # a bias here would keep its scale while its kernel, which it is measured by, does not
        nn.Linear(8, 3),
    ).double()
    made[0].bias.requires_grad_(False)  # its gradient is rounding noise before a BatchNorm
    return made


def before_a_normalization(net: nn.Sequential, s: float) -> None:
    net[0].weight.mul_(s)
    net[0].bias.mul_(s)


def around_a_relu(net: nn.Sequential, s: float) -> None:
    net[4].weight.mul_(s)
    net[4].bias.mul_(s)
    net[6].weight.div_(s)


def run(net: nn.Sequential, schedule: LearnedSchedule) -> list[float]:
    optimizer = L3RS(net.named_parameters(), 20, schedule)
    losses = []
    for k in range(20):
        inputs, labels = batch(k, torch.float64)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("s", [1 / 32, 64.0])
@pytest.mark.parametrize("rewrite", [before_a_normalization, around_a_relu])
def test_a_function_preserving_change_leaves_a_run_as_it_is(rewrite: Callable[[nn.Sequential, float], None], s: float) -> None:
    """Losses of 20 steps, at a relative 1e-4 of each other: norms and the controller are float32. With Adam's eps at 1e-30, as it is
    compared with gradients, and BatchNorm's too."""
    torch.manual_seed(0)
    schedule = random_schedule(network(), specialist=False, scale=0.1, **FORM)
    schedule.theta[-1] = -50.0
    other = network()
    with torch.no_grad():
        rewrite(other, s)
    expected = run(network(), schedule)
    assert expected[-1] != pytest.approx(expected[0], rel=0.05)
    assert run(other, schedule) == pytest.approx(expected, rel=1e-4)


def test_lengths_by_element_are_not_invariant() -> None:
    """The check above can fail: the unit rms changes the run."""
    schedule = random_schedule(network(), specialist=False, scale=0.1, **{**FORM, "unit": "rms"})
    schedule.theta[-1] = -50.0
    other = network()
    with torch.no_grad():
        around_a_relu(other, 64.0)
    assert run(other, schedule) != pytest.approx(run(network(), schedule), rel=1e-2)
