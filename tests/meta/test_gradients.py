"""Meta-gradients against finite differences, and the runs that they go through against those of the optimizer."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from math import nan, prod

import pytest
import torch
from conftest import batch, random_schedule, small_network
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS, LearnedSchedule
from l3rs.controller.decide import meta_shapes
from l3rs.directions import DIRECTIONS
from l3rs.meta.gradients import Unroll, meta_gradient

STEPS, HELD_OUT = 4, batch(9, torch.float64)


def double(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return batch(step, torch.float64)


def without_normalization() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 36, 3)).double()


def learned_for(network: nn.Module, **form: object) -> LearnedSchedule:
    learned = random_schedule(network, bool(form.pop("specialist", True)), scale=0.1, lr0=2e-2, **form)
    return replace(learned, theta=learned.theta.double())


FORMS = [
    {},
    {"directions": ("adam", "lamb", "adamax", "weight_decay"), "unit": "relative"},
    {"unit": "l2"},
    {"embedding": 0, "specialist": False},
    {"embedding": 0, "controller": "layerwise"},
    {"embedding": 0, "controller": "global", "specialist": False},
]


def check(network: nn.Module, learned: LearnedSchedule, refresh: bool = False) -> None:
    """In every block of meta-parameters, along a direction of its own, to 1e-5 of the gradient's size there."""
    found = meta_gradient(learned, network, double, STEPS, HELD_OUT, refresh, last=3)
    assert found.theta.isfinite().all()
    shapes = meta_shapes(learned.config, learned.layers)
    ends = list(accumulate(map(prod, shapes.values())))
    generator = torch.Generator().manual_seed(3)
    for name, end, size in zip(shapes, ends, map(prod, shapes.values()), strict=True):
        along = torch.zeros_like(learned.theta)
        along[end - size : end] = torch.randn(size, generator=generator, dtype=torch.float64)
        along /= along.norm()
        h = 1e-5  # small, as no kink of a ReLU should lie between

        def loss(by: float, along: torch.Tensor = along) -> float:
            moved = replace(learned, theta=learned.theta + by * along)
            return meta_gradient(moved, network, double, STEPS, HELD_OUT, refresh, last=3).loss

        slope = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)  # to the fourth power of h
        exact = float(found.theta @ along)
        assert exact == pytest.approx(slope, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_block_against_finite_differences(form: dict[str, object]) -> None:
    network = small_network(torch.float64)
    check(network, learned_for(network, **dict(form)))


@pytest.mark.parametrize("refresh", [False, True])
def test_batch_norms_statistics_carry_their_gradient(refresh: bool) -> None:
    network = small_network(torch.float64)
    check(network, learned_for(network), refresh)


def test_a_network_without_batch_norm() -> None:
    network = without_normalization()
    check(network, learned_for(network), "refreshed")


def test_lions_sign_has_no_gradient() -> None:
    network = small_network(torch.float64)
    learned = learned_for(network, directions=("lion", "sgd"))
    found = meta_gradient(learned, network, double, STEPS, HELD_OUT)
    at = list(meta_shapes(learned.config, learned.layers)).index("lion/beta1")
    hyperparameters = found.theta[-2:]  # of Lion: the last two
    assert at == len(meta_shapes(learned.config, learned.layers)) - 2
    assert not hyperparameters.any()
    assert found.theta[:-2].any()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("directions", [("sgd", "adam"), tuple(DIRECTIONS)])
def test_the_run_is_the_optimizers(directions: tuple[str, ...], momentum: float | None) -> None:
    network = small_network(torch.float64)
    network[1].momentum = momentum  # None is a mean over all batches, those before the run too
    network[1].num_batches_tracked.fill_(5)
    learned = learned_for(network, directions=directions)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    found = meta_gradient(learned, network, double, STEPS, HELD_OUT)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert network.training
    optimizer = L3RS(network.named_parameters(), STEPS, learned, fused=False)
    losses = []
    for k in range(STEPS):
        inputs, labels = double(k)
        network.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    network.eval()
    assert found.train_losses == pytest.approx(losses, rel=1e-5)  # the optimizer's averages are float32
    assert found.loss == pytest.approx(F.cross_entropy(network(HELD_OUT[0]), HELD_OUT[1]).item(), rel=1e-5)


def test_graphs_that_are_made_again_have_the_same_dropout() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 36, 3)).double()
    learned = learned_for(network)
    kept = meta_gradient(learned, network, double, STEPS, HELD_OUT, True, last=3)
    again = meta_gradient(learned, network, double, STEPS, HELD_OUT, True, last=3, checkpoint=True)
    assert torch.allclose(kept.theta, again.theta, rtol=1e-9, atol=1e-12)
    assert kept.train_losses != meta_gradient(learned, network, double, STEPS, HELD_OUT, seed=1).train_losses


def test_a_run_that_diverges_teaches_nothing() -> None:
    network = small_network(torch.float64)
    learned = learned_for(network)
    found = meta_gradient(learned, network, lambda k: (double(k)[0] * (nan if k == 2 else 1), double(k)[1]), STEPS, HELD_OUT)
    assert found.loss != found.loss
    assert not found.theta.any()


def test_what_makes_no_sense_is_refused() -> None:
    network = small_network(torch.float64)
    with pytest.raises(ValueError, match=r"steps must be a whole number of at least 1 \(got 0\)"):
        meta_gradient(learned_for(network), network, double, 0, HELD_OUT)


class Gated(nn.Module):
    """What MobileNetV3 and transformers are made of, and torch does not differentiate twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(1, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid()), nn.Linear(4, 3)
        self.active = nn.Hardswish(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.active(self.stem(x)).flatten(2).transpose(1, 2)
        tokens = tokens + F.scaled_dot_product_attention(tokens, tokens, tokens)
        pooled = tokens.mean(1)
        return self.head(pooled * self.gate(pooled))


def test_operations_whose_derivative_torch_cannot_differentiate() -> None:
    torch.manual_seed(1)
    network = Gated().double()
    check(network, learned_for(network))


@pytest.mark.parametrize("refresh", [False, True])
def test_first_layers_that_are_frozen(refresh: bool) -> None:
    network = small_network(torch.float64)
    learned = learned_for(network)
    for p in [*network[0].parameters(), *network[1].parameters()]:  # so that the first statistics depend on nothing that is trained
        p.requires_grad_(False)
    check(network, learned, refresh)


def test_a_layer_behind_a_scale_of_next_to_nothing_passes_nothing_back_where_asked() -> None:
    """There a gradient turns with every rounding, and the exact meta-gradient of long runs is as good as infinite."""
    network, healthy = small_network(torch.float64), small_network(torch.float64)
    with torch.no_grad():
        network[1].weight.fill_(1e-9)
        for made in (network, healthy):
            made[1].bias.fill_(0.1)
    for made, passed in ((network, False), (healthy, True)):
        unroll = Unroll(learned_for(made), made, double, 1, HELD_OUT, False, 1, False, 1e-4)
        g = unroll.graph(unroll.first, 0, keep=False).g
        kept = unroll._significant(torch.ones_like(g), unroll.first, g).split(unroll.sizes)
        assert [bool(part.all()) for part in kept] == [passed, passed, *[True] * (len(kept) - 2)]
    exact, asked = (meta_gradient(learned_for(healthy), healthy, double, STEPS, HELD_OUT, insignificant=x) for x in (0.0, 1e-4))
    assert torch.equal(exact.theta, asked.theta)
    still = learned_for(network, unit="relative")  # the scale stays small
    exact, asked = (meta_gradient(still, network, double, STEPS, HELD_OUT, insignificant=x) for x in (0.0, 1e-4))
    assert not torch.equal(exact.theta, asked.theta)
