"""Weights of other learned optimizers: kept in files, and run like a baseline."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from l3rs import learners
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import Run, execute
from l3rs.learned import Celo2
from l3rs.learned import theta as meta
from l3rs.learned.weights import KINDS, LearnedWeights, load, starting_weights
from l3rs.learners import LEARNERS, Named
from l3rs.networks.create import resnet34
from l3rs.schedules.learned import Learned
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError, sealed


@pytest.fixture
def base() -> LearnedWeights:
    return starting_weights("celo2-base", 0.03, "mine", seed=0)


def test_a_file_is_read_as_it_was_written(base: LearnedWeights, tmp_path: Path) -> None:
    replace(base, training={"generation": 3}).write(tmp_path / "w.safetensors")
    found = LearnedWeights.read(tmp_path / "w.safetensors")
    assert torch.equal(found.theta, base.theta)
    assert (found.kind, found.lr, found.name, found.training) == ("celo2-base", 0.03, "mine", {"generation": 3})
    assert load(tmp_path / "w.safetensors", "celo2-base").lr == 0.03
    save_file(load_file(tmp_path / "w.safetensors"), tmp_path / "published.safetensors")
    for kind in ("celo2", "celo2-base"):  # a published file does not say which: the shapes are the same
        published = load(tmp_path / "published.safetensors", kind)
        assert torch.equal(published.theta, base.theta)
        assert (published.kind, published.lr) == (kind, 0.03)


def test_other_files_are_refused(base: LearnedWeights, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    base.write(file)
    tensors = load_file(file)
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match=r"bare\.safetensors holds no l3rs metadata"):
        LearnedWeights.read(tmp_path / "bare.safetensors")
    save_file(tensors, tmp_path / "kind.safetensors", metadata=sealed({"schema": 1, "kind": "adam", "lr": 1}, tensors))
    with pytest.raises(CheckpointError, match=r"kind 'adam'.*velo, celo, celo2, celo2-base"):
        LearnedWeights.read(tmp_path / "kind.safetensors")
    with pytest.raises(CheckpointError, match=r"bare\.safetensors.*lacks lstm_init_state"):
        load(tmp_path / "bare.safetensors", "celo")
    for kind in ("celo", "celo2"):
        with pytest.raises(CheckpointError, match=rf"w\.safetensors holds weights of celo2-base, and {kind} was asked for"):
            load(file, kind)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    changed = {name: t + 1 for name, t in tensors.items()}
    save_file(changed, tmp_path / "changed.safetensors", metadata=metadata)  # it is not taken for a published one
    with pytest.raises(CheckpointError, match=r"changed\.safetensors is damaged, or was changed by hand"):
        load(tmp_path / "changed.safetensors", "celo2-base")
    with pytest.raises(CheckpointError, match=r"w\.safetensors.*holds a celo2-base"):
        LearnedSchedule.read(file)


@pytest.mark.parametrize(("steps", "first"), [(4, 0.01), (100, 0.002)])
def test_celo2s_learning_rate_falls_with_the_horizon_and_along_a_cosine(base: LearnedWeights, steps: int, first: float) -> None:
    p = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = learners.build(replace(base, lr=0.02), [("p", p)], steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert rates[0] == pytest.approx(first)
    assert rates[steps // 2] == pytest.approx(first / 2)
    p.grad = torch.ones_like(p)
    optimizer.step()  # past the end
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_run_with_the_head_alone_leaves_the_rest_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run of all moves it; both are given the whole network, and evaluate at the end."""
    starting_weights("celo2-base", 0.03, "mine", seed=0).write(tmp_path / "w.safetensors")
    given: list[dict[str, tuple[Tensor, Tensor]]] = []
    learner = LEARNERS["celo2-base"]
    original = learner.build

    def build(learned: Learned, theta: Tensor, named: Named, total_steps: int, lr: float | None = None) -> torch.optim.Optimizer:
        named = list(named)
        given.append({name: (p, p.detach().clone()) for name, p in named})
        return original(learned, theta, named, total_steps, lr)

    monkeypatch.setattr(learner, "build", build)
    for head_only in (False, True):
        report = execute(
            Run("cell", Arm("Celo2", "celo2-base", 0.03, str(tmp_path / "w.safetensors"), head_only=head_only), 2, 0, "meta-test")
        )
        assert set(report.accuracy) == {2}
        moved = {name for name, (p, before) in given[-1].items() if not torch.equal(p, before)}
        assert moved == ({"fc.weight", "fc.bias"} if head_only else set(given[-1]))
    assert [set(named) for named in given] == [{name for name, _ in resnet34(16, 1, 25).named_parameters()}] * 2


def test_every_kind_has_a_start() -> None:
    for kind, of in KINDS.items():
        start = starting_weights(kind, None, "x", 0)
        assert start.theta.shape == (meta.count(of.shapes),)
        assert start.lr == (0.03 if kind.startswith("celo2") else 1.0)


def test_celo2s_cosine_is_that_of_the_run_also_resumed_and_for_layers_that_are_added(base: LearnedWeights) -> None:
    def rates(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            seen.append([group["lr"] for group in optimizer.param_groups][-1])
            optimizer.step()
        return seen

    p = torch.nn.Parameter(torch.ones(4, 4))
    whole = rates(p, learners.build(base, [("p", p)], 8), 8)
    assert whole == sorted(whole, reverse=True)
    started, resumed = learners.build(base, [("p", p)], 8), learners.build(base, [("p", p)], 8)
    assert rates(p, started, 3) == whole[:3]
    resumed.load_state_dict(started.state_dict())
    group = {k: v for k, v in started.param_groups[0].items() if not k.startswith("param")}
    started.add_param_group({**group, "params": [("q", torch.nn.Parameter(torch.ones(2)))]})
    assert rates(p, started, 5) == rates(p, resumed, 5) == whole[3:]


def length(step: Tensor) -> float:
    """The root mean square, which Celo2-base makes that of the learning rate."""
    return step.detach().square().mean().sqrt().item()


def test_a_layer_that_is_added_to_celo2_by_its_parameters_alone_moves_at_the_rate_of_the_run(base: LearnedWeights) -> None:
    first, added = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = learners.build(base, [("first", first)], 10)
    for k in range(10):
        if k == 8:
            optimizer.add_param_group({"params": [("added", added)]})
        rate = 0.03 / math.sqrt(10) * (1 + math.cos(math.pi * k / 10)) / 2
        before = [p.detach().clone() for p in (first, added)]
        first.grad, added.grad = torch.randn(2, 4, 4)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate] * len(optimizer.param_groups))
        optimizer.step()
        moved = [length(p - old) for p, old in zip((first, added), before, strict=True)]
        assert moved == pytest.approx([rate, rate if k >= 8 else 0.0], rel=1e-3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
def test_celo2s_cosine_goes_on_in_copies_of_the_object(base: LearnedWeights, copied: Callable[[Any], Any]) -> None:
    p = torch.nn.Parameter(torch.ones(4, 4))
    pair = p, learners.build(base, [("p", p)], 4)
    for k in range(4):
        pair = copied(pair)
        before = pair[0].detach().clone()
        pair[0].grad = torch.randn(4, 4)
        pair[1].step()
        assert length(pair[0] - before) == pytest.approx(0.015 * (1 + math.cos(math.pi * k / 4)) / 2, rel=1e-3)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_state_of_celo2_that_is_older_than_its_cosine_goes_on_along_it(base: LearnedWeights, steps: int) -> None:
    """Such states say nothing of the length of the run."""
    p = torch.nn.Parameter(torch.ones(4, 4))
    run, resumed = learners.build(base, [("p", p)], 8), learners.build(base, [("p", p)], 8)
    p.grad = torch.ones_like(p)
    for _ in range(steps):
        run.step()
    state = run.state_dict()
    del state["param_groups"][0]["total_steps"]
    if steps == 0:
        del state["param_groups"][0]["initial_lr"]
    resumed.load_state_dict(state)
    resumed.step()
    run.step()
    assert resumed.param_groups[0]["lr"] == run.param_groups[0]["lr"]
    plain = Celo2([("p", p)], base.theta)
    plain.load_state_dict(state)
    assert plain.param_groups[0]["total_steps"] is None
