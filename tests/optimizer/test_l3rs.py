"""L3RS as an optimizer: equal to the readable reference, and usable like any other."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import backward, batch, equal, random_schedule, small_network, weights
from torch import Tensor, nn
from torch.nn import functional as F

from l3rs import L3RS, L3RSConfig, LearnedSchedule
from l3rs.controller.config import SIGNALS
from l3rs.controller.initial import initial_theta
from l3rs.directions import Direction
from l3rs.networks.pretrained import pretrained
from l3rs.optimizer.layers import finite
from l3rs.optimizer.reference import ReferenceL3RS
from l3rs.schedules.find import GENERALIST


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for k in steps:
        inputs, labels = batch(k, next(network.parameters()).dtype)

        def closure(inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs), labels)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


@pytest.mark.parametrize("unit", ["rms", "l2", "relative", "size"])
@pytest.mark.parametrize("specialist", [True, False])
def test_equals_the_reference_over_50_steps(unit: str, specialist: bool) -> None:
    """Relative difference of every tensor below 1e-5, in float64, the two runs each going their own way."""
    fast, slow = small_network(torch.float64), small_network(torch.float64)
    seen = {"signals": SIGNALS, "descriptors": True, "direction_norms": "scale-free", "head_logits": 0.02} if unit == "size" else {}
    lr0 = 1e-2 if unit != "l2" else 3e-3
    schedule = random_schedule(fast, specialist, scale=0.1, unit=unit, ema_factors=(0.0, 0.9, 0.99), lr0=lr0, **seen)
    optimizer = L3RS(fast.named_parameters(), 50, schedule, lr=0.1 if unit == "l2" else 1.0)
    reference = ReferenceL3RS(dict(slow.named_parameters()), 50, schedule)
    for k in range(50):
        inputs, labels = batch(k, torch.float64)
        for network in (fast, slow):
            network.zero_grad()
        loss_fast, loss_slow = F.cross_entropy(fast(inputs), labels), F.cross_entropy(slow(inputs), labels)
        loss_fast.backward()
        loss_slow.backward()
        optimizer.step(loss=loss_fast)
        if unit == "l2":  # the reference has no multiplier
            before = {n: p.detach().clone() for n, p in slow.named_parameters()}
        reference.step(loss_slow.item())
        if unit == "l2":
            with torch.no_grad():
                for n, p in slow.named_parameters():
                    p.copy_(before[n] + 0.1 * (p - before[n]))
        for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm().clamp_min(1e-3), f"{name} after step {k + 1}"


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("trained", ["6.bias", "6.weight", "6", "0", "1.bias", "6.bias 0"])
def test_equals_the_reference_where_layers_are_frozen(trained: str, fused: bool | None) -> None:
    """The unit `size` takes the size of a layer that is stepped from one that is not; 6 is the head, 1 a BatchNorm."""
    fast, slow = small_network(torch.float64), small_network(torch.float64)
    for network in (fast, slow):
        for name, p in network.named_parameters():
            p.requires_grad_(name.startswith(tuple(trained.split())))
    assert any(p.requires_grad for p in fast.parameters())
    schedule = random_schedule(fast, False, scale=0.1, unit="size", descriptors=True, head_logits=0.02)
    optimizer = L3RS(fast.named_parameters(), 5, schedule, fused=fused)
    reference = ReferenceL3RS(dict(slow.named_parameters()), 5, schedule)
    start = [p.detach().clone() for p in slow.parameters()]
    for k in range(5):
        inputs, labels = batch(k, torch.float64)
        losses = [F.cross_entropy(network(inputs), labels) for network in (fast, slow)]
        for network, loss in zip((fast, slow), losses, strict=True):
            network.zero_grad()
            loss.backward()
        optimizer.step(loss=losses[0])
        reference.step(losses[1].item())
        for (name, a), b, first in zip(fast.named_parameters(), slow.parameters(), start, strict=True):
            assert (a - b).norm() <= 1e-5 * (b - first).norm(), f"{name} after step {k + 1}"


def test_lowers_the_loss_and_returns_the_closures_value() -> None:
    network = small_network()
    # four times the steps: the first schedule is meant for pretrained networks, and this one has all to learn
    optimizer = L3RS(network.named_parameters(), 60, random_schedule(network, scale=0.0), lr=4.0)
    inputs, labels = batch(0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_closure_runs_once_with_gradients() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = network(batch(0)[0]).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert calls == [True]


def test_step_without_a_loss_says_how_to_give_one() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    with pytest.raises(ValueError, match=r"step\(loss=loss\)"):
        optimizer.step()


def test_update_length_is_lambda_where_directions_agree() -> None:
    """With one direction each layer moves by exactly lambda * unit: with zero weights and biases, exp(0) * lr0 * sqrt(numel)."""
    network = small_network()
    config = L3RSConfig(directions=("sgd",), embedding=0, initial_mix=0.0, initial_decay=0.0)
    theta = torch.zeros_like(initial_theta(config, (), 0))
    optimizer = L3RS(network.named_parameters(), 5, LearnedSchedule(config, (), theta))
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    loss = F.cross_entropy(network(batch(0)[0]), batch(0)[1])
    loss.backward()
    optimizer.step(loss=loss)
    for name, p in network.named_parameters():
        if p.grad is not None and p.grad.norm() > 1e-6:
            expected = config.lr0 * p.numel() ** 0.5
            assert (p - before[name]).norm().item() == pytest.approx(expected, rel=1e-3), name


class Mixed(Direction):
    """Of vectors the gradient or the parameter, which may be handed on as it is; of other layers the gradient's sign."""

    def __init__(self, of: str, copied: bool) -> None:
        self.of, self.copied = of, copied

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: object, steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        found = [given if g.dim() < 2 else g.sign() for g, given in zip(grads, grads if self.of == "grads" else params, strict=True)]
        return [d.clone() for d in found] if self.copied else found


@pytest.mark.parametrize("of", ["grads", "params"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_direction_may_be_the_gradient_or_the_parameter_in_some_layers_alone(
    of: str, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l3rs.directions._registered", {"handed": Mixed(of, copied=False), "copied": Mixed(of, copied=True)})
    moved = []
    for name in ("handed", "copied"):
        network = small_network()
        schedule = random_schedule(network, False, directions=("sgd", "weight_decay", name), controller="shared")
        optimizer = L3RS(sorted(network.named_parameters(), key=lambda named: named[1].dim(), reverse=reverse), 10, schedule)
        for k in range(3):
            backward(network, k)
            optimizer.step(loss=1.0)
        moved.append(weights(network))
    assert equal(*moved)


def test_gradients_of_half_precision_are_finite_where_their_squares_are_not() -> None:
    large = torch.full((1000,), 6e4, dtype=torch.float16)
    assert finite([large, large.float()])
    assert not finite([large, large * 2])


def test_zero_gradient_moves_nothing_and_stays_finite() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(loss=1.0)
    for p, b in zip(network.parameters(), before, strict=True):
        assert torch.equal(p, b)


def test_gradients_are_left_as_they_were() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    network(batch(0)[0]).square().mean().backward()
    before = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    optimizer.step(loss=1.0)
    after = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_resume_is_bit_equal() -> None:
    straight = small_network()
    schedule = random_schedule(straight)
    optimizer = L3RS(straight.named_parameters(), 20, schedule)
    train(straight, optimizer, range(10))
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    train(straight, optimizer, range(10, 20))

    resumed = small_network()
    again = L3RS(resumed.named_parameters(), 20, schedule)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(resumed, again, range(10, 20))
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_is_adams_moments_and_a_few_numbers_a_layer() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    train(network, optimizer, range(1))
    for p, state in optimizer.state.items():
        sizes = sorted(t.numel() for t in state.values())
        assert sizes == sorted([1, 9, p.numel(), p.numel()])  # the count of steps and the averages


@pytest.mark.parametrize("steps", [0, -3, 2.5, "10", True])
def test_total_steps_is_a_positive_whole_number(steps: object) -> None:
    network = small_network()
    with pytest.raises(ValueError, match=rf"total_steps must be .*\(got {steps!r}\)"):
        L3RS(network.named_parameters(), steps, random_schedule(network))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [("weight_decay", math.nan), ("weight_decay", -5.0), ("weight_decay", "x"), ("total_steps", 0), ("total_steps", "x")],
)
def test_options_that_are_written_to_during_the_run_are_checked_before_a_step(option: str, value: object) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    train(network, optimizer, range(1))
    before = weights(network)
    optimizer.param_groups[0][option] = value
    with pytest.raises(ValueError, match=rf"{option} must be .*\(got {value!r}\)"):
        train(network, optimizer, range(1, 2))
    assert equal(before, weights(network))
    optimizer.param_groups[0][option] = np.int64(3)
    train(network, optimizer, range(1, 2))
    assert not equal(before, weights(network))


@pytest.mark.parametrize("learned", [None, 5, ["generalist"]])
def test_what_is_no_schedule_is_named(learned: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"learned must be 'auto', a name, a file or a LearnedSchedule (got {learned!r})")):
        L3RS(small_network().named_parameters(), 5, learned)  # type: ignore[arg-type]


def test_going_past_total_steps_warns_once() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 2, random_schedule(network))
    train(network, optimizer, range(2))
    with pytest.warns(UserWarning, match="total_steps=2"):
        train(network, optimizer, range(2, 3))
    train(network, optimizer, range(3, 5))  # warnings are errors here
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_auto_is_the_specialist_where_its_layers_match_and_the_generalist_elsewhere() -> None:
    assert "icons-resnet34' (names and sizes agree)" in repr(L3RS(pretrained(25).named_parameters(), 10))
    assert GENERALIST in repr(L3RS(small_network().named_parameters(), 10))
    with pytest.warns(UserWarning, match=r"icons-resnet34 knows 110 layers by name.*pass model\.named_parameters\(\)"):
        unnamed = L3RS(pretrained(25).parameters(), 10)
    assert GENERALIST in repr(unnamed)
    L3RS(small_network().parameters(), 10)  # of another network: nothing is said (warnings are errors here)


def test_a_specialist_refuses_a_network_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"icons-resnet34 knows 110 layers by name, but not 0\.weight"):
        L3RS(small_network().named_parameters(), 10, "icons-resnet34")


def test_generalist_trains_a_network_it_has_never_seen() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 40)
    inputs, labels = batch(0)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
