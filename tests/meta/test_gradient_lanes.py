"""Meta-gradients in captured steps: on a CPU those of `meta_gradient`, whatever the run's length is."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import batch, small_network
from test_gradients import HELD_OUT, double, learned_for, without_normalization
from torch import nn

from l3rs.finetuning.captured import side_by_side, succeeded
from l3rs.finetuning.lanes import LoadedTask
from l3rs.meta.gradient_lanes import GradientLane
from l3rs.meta.gradients import meta_gradient


def task(steps: int, first: int = 0) -> LoadedTask:
    batches = [double(first + k) for k in range(steps)]
    return LoadedTask(torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches]), HELD_OUT)


def check(network: nn.Module, refresh: bool, **form: object) -> None:
    """Three runs on two lanes, at meta-parameters of their own."""
    learned = learned_for(network, **form)
    generator = torch.Generator().manual_seed(4)
    thetas = [learned.theta + 0.05 * torch.randn(learned.theta.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    lengths, start = (4, 2, 5), copy.deepcopy(network.state_dict())
    networks = [copy.deepcopy(network) for _ in range(2)]
    lanes = [GradientLane(learned, n, refresh, last=3) for n in networks]

    def job(theta: torch.Tensor, steps: int):
        def on(lane: GradientLane):
            lane.network.load_state_dict(start)
            return lane.run(theta, lambda: lane.network, task(steps))

        return on

    found = succeeded(side_by_side(lanes, [job(*run) for run in zip(thetas, lengths, strict=True)]))
    for theta, steps, one in zip(thetas, lengths, found, strict=True):
        schedule = type(learned)(learned.config, learned.layers, theta, "one")
        expected = meta_gradient(schedule, network, double, steps, HELD_OUT, refresh, 3, checkpoint=True)
        assert one.train_losses == pytest.approx(expected.train_losses, rel=1e-9)
        assert (one.loss, one.accuracy) == pytest.approx((expected.loss, expected.accuracy), rel=1e-9)
        torch.testing.assert_close(one.theta, expected.theta, rtol=1e-7, atol=1e-12)
        assert expected.theta.any()


@pytest.mark.parametrize("refresh", [False, True])
def test_gradients_are_those_of_one_run_alone(refresh: bool) -> None:
    check(small_network(torch.float64), refresh)


@pytest.mark.parametrize(
    "form", [{"directions": ("adam", "lamb", "adamax", "weight_decay")}, {"embedding": 0, "controller": "layerwise"}], ids=str
)
def test_of_every_direction_and_controller(form: dict[str, object]) -> None:
    check(without_normalization(), False, **form)


def test_a_run_that_diverges_teaches_nothing() -> None:
    network = small_network(torch.float64)
    learned = learned_for(network)
    lane = GradientLane(learned, network)
    broken = task(3)
    broken.inputs[1] = torch.nan
    (found,) = succeeded(side_by_side([lane], [lambda lane: lane.run(learned.theta, lambda: network, broken)]))
    assert found.loss != found.loss
    assert not found.theta.any()


def test_a_mean_over_all_batches_is_refused() -> None:
    network = small_network()
    network[1].momentum = None
    inputs, labels = batch(0)
    data = LoadedTask(inputs[None], labels[None], (inputs, labels))
    lane = GradientLane(learned_for(small_network(torch.float64)), network)
    with pytest.raises(ValueError, match="BatchNorm must have a momentum to be captured, and 1 has none"):
        next(lane.run(torch.zeros(1), lambda: network, data))
