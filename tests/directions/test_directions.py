"""Each direction against the optimizer it comes from, and the promise to read only."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import copy
from collections.abc import Callable

import pytest
import timm.optim
import torch
from torch import Tensor

from l3rs.directions import DIRECTIONS, LAMB, Direction, TorchOptimizerDirection, direction, register
from l3rs.directions.base import shifted_sigmoid
from l3rs.learned import Celo2
from l3rs.learned.celo2 import SHAPES as META
from l3rs.learned.theta import random

SHAPES = [(), (5,), (3, 4), (2, 3, 4), (2, 3, 3, 3)]
LR = 0.01
SOURCES: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=LR),
    "adam": lambda params: torch.optim.Adam(params, lr=LR),
    "adamax": lambda params: torch.optim.Adamax(params, lr=LR),
    "lion": lambda params: timm.optim.Lion(params, lr=LR, betas=(0.9, 0.99), weight_decay=0.0),
    "lamb": lambda params: timm.optim.Lamb(params, lr=LR, weight_decay=0.01, max_grad_norm=None),
    "weight_decay": lambda params: torch.optim.SGD(params, lr=0.0),  # replaced below by what it is: p <- (1 - lr) p
}


def parameters() -> list[Tensor]:
    return [torch.randn(s, dtype=torch.float64) for s in SHAPES]


def uphill(d: Direction, grads: list[Tensor], params: list[Tensor], states: list[dict[str, Tensor]], step: int) -> list[Tensor]:
    steps = torch.full((len(params),), float(step))
    found = d.update(grads, params, states, steps, d.constants(dict.fromkeys(d.hyperparameters, 0.0)))
    norms, weights = (torch.stack([t.norm() for t in tensors]) for tensors in (found, params))
    trust = d.trust(norms, weights)
    return found if trust is None else [t * s for t, s in zip(found, trust, strict=True)]


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_matches_its_source_over_20_steps(name: str) -> None:
    ours = parameters()
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    optimizer, d = SOURCES[name](theirs), direction(name)
    states = [d.init(p) for p in ours]
    for step in range(1, 21):
        grads = parameters()
        before = [p.clone() for p in ours], [g.clone() for g in grads]
        found = uphill(d, grads, ours, states, step)
        assert all(torch.equal(a, b) for a, b in zip([*ours, *grads], [*before[0], *before[1]], strict=True))
        for p, u in zip(ours, found, strict=True):
            p.sub_(u.clone(), alpha=LR)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
            if name == "weight_decay":
                p.data.mul_(1 - LR)
        optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b.detach()).norm() <= 1e-6 * b.detach().norm(), f"step {step}, shape {tuple(a.shape)}"


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_zero_gradients_give_finite_directions(name: str) -> None:
    d, params = direction(name), parameters()
    params[1].zero_()
    states = [d.init(p) for p in params]
    for step in (1, 2):
        found = uphill(d, [torch.zeros_like(p) for p in params], params, states, step)
        assert all(torch.isfinite(u).all() for u in found)
    moves = name in ("lamb", "weight_decay")  # they decay parameters whatever the gradient
    assert all(bool(u.norm() > 0) == (moves and bool(p.norm() > 0)) for u, p in zip(found, params, strict=True))


def test_lamb_at_zero_weight_decay_is_adam_and_is_not_with_its_own() -> None:
    params, grads = parameters(), parameters()
    lamb, adam = LAMB(), direction("adam")
    steps = torch.ones(len(params))
    without = lamb.update(grads, params, [lamb.init(p) for p in params], steps, (0.9, 0.999, 1e-8, 0.0))
    own = lamb.update(grads, params, [lamb.init(p) for p in params], steps, (0.9, 0.999, 1e-8, 0.01))
    plain = adam.update(grads, params, [adam.init(p) for p in params], steps, (0.9, 0.999, 1e-8))
    for a, b, c in zip(without, own, plain, strict=True):
        torch.testing.assert_close(a, c)
        assert not torch.allclose(b, c, rtol=1e-4)


def test_half_precision_parameters_have_float32_moments() -> None:
    for name, d in DIRECTIONS.items():
        state = d.init(torch.zeros(3, dtype=torch.bfloat16))
        assert all(t.dtype == torch.float32 for t in state.values()), name


def test_hyperparameters_have_their_usual_values_at_zero() -> None:
    assert shifted_sigmoid(0.9, 0.0) == pytest.approx(0.9)
    assert 0.9 < shifted_sigmoid(0.9, 1.0) < 1
    assert 0 < shifted_sigmoid(0.9, -50.0) < 0.01
    assert shifted_sigmoid(0.9, -1e4) == 0.0
    assert DIRECTIONS["lamb"].constants(dict.fromkeys(DIRECTIONS["lamb"].hyperparameters, 0.0)) == pytest.approx((0.9, 0.999, 1e-6, 0.01))
    assert DIRECTIONS["lion"].constants({"beta1": 0.0, "beta2": 0.0}) == pytest.approx((0.9, 0.99))


def test_an_unknown_direction_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'adamw'; there are sgd, adam, lion, lamb, adamax, weight_decay, torch\.optim\.NAME"):
        direction("adamw")
    with pytest.raises(ValueError, match=r"'torch\.optim\.lr_scheduler'"):
        direction("torch.optim.lr_scheduler")


WRAPPED: dict[str, TorchOptimizerDirection] = {
    "adam": TorchOptimizerDirection(torch.optim.Adam),
    "adamw": TorchOptimizerDirection(torch.optim.AdamW, lr=0.1, weight_decay=0.2),
    "sgd with momentum": TorchOptimizerDirection(torch.optim.SGD, momentum=0.9, nesterov=True),
    "nadam": TorchOptimizerDirection(torch.optim.NAdam),
    "rmsprop": TorchOptimizerDirection(torch.optim.RMSprop, lr=LR),
    "lamb, which clips p.grad and counts in its group": TorchOptimizerDirection(timm.optim.Lamb, weight_decay=0.01),
    "adabelief": TorchOptimizerDirection(timm.optim.AdaBelief),
    "celo2": TorchOptimizerDirection(Celo2, theta=random(META, 0)),
    "celo2-base": TorchOptimizerDirection(Celo2, theta=random(META, 0), orthogonalize=False, vectors="learned"),
}


@pytest.mark.parametrize("name", list(WRAPPED))
def test_any_optimizer_makes_a_direction(name: str) -> None:
    """Stepping along the direction of a wrapped optimizer is that optimizer, and its state is tensors that can be kept and taken up."""
    d = WRAPPED[name]
    ours = parameters()
    states = [d.init(p) for p in ours]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    lr = d.arguments["lr"]
    optimizers = [d.optimizer([p], **d.arguments) for p in theirs]  # one each: some compute a norm over all their parameters
    for step in range(1, 21):
        grads = parameters()
        before = [t.clone() for t in (*ours, *grads)]
        found = d.update(grads, ours, states, torch.full((len(ours),), float(step)), ())
        assert all(torch.equal(a, b) for a, b in zip((*ours, *grads), before, strict=True))
        states = copy.deepcopy(states)
        assert all(isinstance(t, Tensor) for state in states for t in state.values())
        for p, u in zip(ours, found, strict=True):
            p.sub_(u, alpha=lr)
        for p, g, optimizer in zip(theirs, grads, optimizers, strict=True):
            p.grad = g.clone()
            optimizer.step()
            assert (ours[[q is p for q in theirs].index(True)] - p.detach()).norm() <= 1e-6 * p.detach().norm(), f"step {step}"


def test_muon_sees_kernels_as_matrices_and_vectors_as_matrices_of_one_row() -> None:
    d = direction("torch.optim.Muon")
    ours = [p.float() for p in parameters()]
    theirs = [torch.nn.Parameter(p.reshape(len(p) if p.dim() > 1 else 1, -1).clone()) for p in ours]
    muon = torch.optim.Muon(theirs, lr=1.0)
    states = [d.init(p) for p in ours]
    for step in range(1, 6):
        grads = [g.float() for g in parameters()]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.reshape(p.shape)
        before = [p.detach().clone() for p in theirs]
        found = d.update(grads, ours, states, torch.full((len(ours),), float(step)), ())
        muon.step()
        for u, p, q, b in zip(found, ours, theirs, before, strict=True):
            assert u.shape == p.shape
            torch.testing.assert_close(u.reshape(q.shape), b - q.detach(), rtol=1e-5, atol=1e-6)
        ours = [q.detach().clone().reshape(p.shape) for p, q in zip(ours, theirs, strict=True)]


def test_directions_can_be_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l3rs.directions._registered", {})
    mine = TorchOptimizerDirection(torch.optim.RMSprop)
    register("test-rmsprop", mine)
    assert direction("test-rmsprop") is mine
    with pytest.raises(ValueError, match="already"):
        register("test-rmsprop", mine)
    with pytest.raises(ValueError, match="already"):
        register("adam", mine)
    with pytest.raises(TypeError, match="TorchOptimizerDirection"):
        register("test-class", torch.optim.RMSprop)  # type: ignore[arg-type]
    assert isinstance(direction("torch.optim.NAdam"), TorchOptimizerDirection)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "why"),
    [
        (torch.optim.LBFGS, {}, "LBFGS cannot be a direction: .*closure"),
        (torch.optim.SparseAdam, {}, "SparseAdam cannot be a direction: "),
        (torch.optim.Muon, {"lr": -1.0}, r"lr of Muon must be above 0, as a direction is divided by it \(got -1\.0\)"),
        (torch.optim.Adam, {"lr": 0.0}, "lr of Adam must be above 0"),
        (torch.optim.Adam, {"momentum": 0.9}, "Adam cannot be a direction: .*momentum"),
    ],
)
def test_an_optimizer_that_cannot_be_a_direction_is_told_at_once(optimizer: type, arguments: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TorchOptimizerDirection(optimizer, **arguments)
