"""The guard: it cuts lengths once where the loss leaps, and is nothing elsewhere."""

from __future__ import annotations

import copy
import pickle
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import backward, equal, random_schedule, small_network, weights
from resuming import WAYS
from torch import nn

import l3rs
from l3rs import L3RS, LearnedSchedule
from l3rs.finetuning.lanes import Lanes
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report
from l3rs.finetuning.workbench import Workbench, workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS
from l3rs.meta.problem import fine_tune
from l3rs.optimizer.guard import CUT, WATCHED

QUIET, LEAPS = (1.0, 2.5, 3.9, 0.5, 3.0, 1.0), (1.0, 2.5, 4.1, 90.0, 0.5, 3.0)
STEPS = len(LEAPS)


def schedule(network: nn.Module, **config: object) -> LearnedSchedule:
    return random_schedule(network, scale=0.1, lr0=2e-3, **config)


def run(network: nn.Module, optimizer: L3RS, losses: tuple[float, ...], start: int = 0) -> None:
    for k, loss in enumerate(losses, start):
        backward(network, k)
        optimizer.step(loss=loss)


def cut_of(optimizer: L3RS) -> list[float]:
    return [group["cut"] for group in optimizer.param_groups]


def test_a_run_without_a_guard_goes_on_without_one() -> None:
    network, other = small_network(), small_network()
    free = L3RS(network.named_parameters(), STEPS, schedule(network), guard=False)
    run(network, free, LEAPS[:1])
    again = L3RS(other.named_parameters(), STEPS, schedule(other))
    other.load_state_dict(network.state_dict())
    again.load_state_dict(free.state_dict())
    assert not again.guard
    for optimizer, net in ((free, network), (again, other)):
        run(net, optimizer, LEAPS[1:], 1)  # warnings are errors here
    assert equal(weights(network), weights(other))
    guarded = L3RS(small_network().named_parameters(), STEPS, schedule(network))
    for optimizer, has in ((again, True), (copy.deepcopy(again), True), (free, False)):  # of which one was made without
        optimizer.load_state_dict(guarded.state_dict())
        assert optimizer.guard == has


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)])
def test_a_loss_that_leaps_cuts_all_lengths_once_with_one_warning(fused: bool | None, lr: float | torch.Tensor) -> None:
    """From the step of that loss on, and in every group."""
    one, other = small_network(), small_network()
    named = list(one.named_parameters())
    guarded = L3RS([{"params": named[:3]}, {"params": named[3:], "lr": 2.0}], STEPS, schedule(one), lr, fused=fused)
    named = list(other.named_parameters())
    free = L3RS([{"params": named[:3]}, {"params": named[3:], "lr": 2.0}], STEPS, schedule(other), lr, fused=fused, guard=False)
    for optimizer, network in ((guarded, one), (free, other)):
        run(network, optimizer, LEAPS[:2])
    assert equal(weights(one), weights(other))
    run(other, free, LEAPS[2:3], 2)
    with pytest.warns(UserWarning, match=r"the loss leapt from 1 to 4\.1: L3RS multiplies all further steps by 0\.3") as said:
        run(one, guarded, LEAPS[2:3], 2)
    assert [w.filename for w in said] == [__file__]
    assert guarded.decisions().length.to_numpy() == pytest.approx(CUT * free.decisions().length.to_numpy())
    run(one, guarded, LEAPS[3:], 3)  # warnings are errors here
    assert (cut_of(guarded), cut_of(free)) == ([CUT] * 2, [1.0] * 2)


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("signals", [("log_weight_norm", "log_grad_norm", "loss"), ("log_grad_norm",)])
def test_a_run_without_a_leap_is_the_same_to_the_bit(fused: bool | None, signals: tuple[str, ...]) -> None:
    ends = []
    for guard in (True, False):
        network = small_network()
        optimizer = L3RS(network.named_parameters(), STEPS, schedule(network, signals=signals), fused=fused, guard=guard)
        run(network, optimizer, QUIET)
        assert cut_of(optimizer) == [1.0]
        ends.append(weights(network))
    assert equal(*ends)


def test_every_way_to_tell_the_loss_is_watched_and_none_is_asked_for() -> None:
    network = small_network()
    learned = schedule(network, signals=("log_grad_norm",))
    ways: dict[str, Callable[[L3RS, float], Any]] = {
        "loss": lambda optimizer, loss: optimizer.step(loss=loss),
        "closure": lambda optimizer, loss: optimizer.step(lambda: torch.tensor(loss, dtype=torch.bfloat16)),
        "observe": lambda optimizer, loss: (optimizer.observe(torch.tensor(loss)), optimizer.step()),
    }
    backward(network, 0)
    for way in ways.values():
        optimizer = L3RS(network.named_parameters(), STEPS, learned)
        way(optimizer, 1.0)
        with pytest.warns(UserWarning, match="leapt from 1 to 8"):
            way(optimizer, 8.0)
    optimizer = L3RS(network.named_parameters(), STEPS, learned)
    optimizer.step()
    assert optimizer.param_groups[0]["first_loss"] is None


@pytest.mark.parametrize(
    ("losses", "maximize", "leaps"),
    [
        ((500.0, 900.0, 950.0), False, False),  # another scale: it may double
        ((500.0, 1001.0), False, True),
        ((-500.0, -10.0), False, False),
        ((-1.0, 2.5), False, True),
        ((1.0, -3.0), True, True),  # maximized, it leaps down
        ((1.9, 50.0), True, False),
        ((float("nan"), 1.0, float("inf"), 3.9), False, False),  # steps that move nothing
        ((1.0, *[1.0] * (WATCHED - 1), 9.0), False, False),  # no longer one of the first steps
        ((1.0, *[1.0] * (WATCHED - 2), 9.0), False, True),
    ],
)
def test_what_a_leap_is(losses: tuple[float, ...], maximize: bool, leaps: bool) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 30, schedule(network), maximize=maximize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(network, optimizer, losses)
    assert cut_of(optimizer) == [CUT if leaps else 1.0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.filterwarnings("ignore:the loss leapt")
def test_the_state_tells_that_a_run_was_cut(way: Callable[..., None], after: int, tmp_path: Path) -> None:
    straight = small_network()
    learned = schedule(straight)
    optimizer = L3RS(straight.named_parameters(), STEPS, learned)
    run(straight, optimizer, LEAPS[:after])
    resumed = copy.deepcopy(straight)
    fresh = L3RS(resumed.named_parameters(), STEPS, learned)
    way(copy.deepcopy(optimizer.state_dict()), fresh, tmp_path)
    assert cut_of(fresh) == cut_of(optimizer) == [CUT if after > 2 else 1.0]
    copied = pickle.loads(pickle.dumps(optimizer))
    assert (cut_of(copied), copied.guard, copied.why) == (cut_of(optimizer), True, "")
    run(straight, optimizer, LEAPS[after:], after)
    run(resumed, fresh, LEAPS[after:], after)
    assert equal(weights(straight), weights(resumed))


@pytest.mark.filterwarnings("ignore:the loss leapt")
def test_later_groups() -> None:
    network = small_network()
    named = list(network.named_parameters())
    optimizer = L3RS(named[:3], STEPS, schedule(network))
    run(network, optimizer, LEAPS[:3])
    optimizer.add_param_group({"params": named[3:]})
    assert cut_of(optimizer) == [CUT] * 2
    run(network, optimizer, LEAPS[3:], 3)


@pytest.mark.parametrize("on", ["one run", "lanes"])
def test_meta_training_goes_without(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = type(LEARNERS["l3rs"])
    usual, seen = learner.build, []

    def build(*args: Any, **options: Any) -> L3RS:
        seen.append(usual(*args, **options))
        return seen[-1]

    monkeypatch.setattr(learner, "build", build)
    learned, task = l3rs.load("generalist"), TaskConfig(classes=3, batch_size=4, evaluation_size=6)
    if on == "one run":
        fine_tune(learned, learned.theta, Workbench(Workload(), task), "meta-train", 0, 2)
    else:
        (report,) = Lanes(Workload(), task, "cpu", 1).reports(learned, [(learned.theta, 0, 2)], "meta-train")
        assert isinstance(report, Report)
    assert [optimizer.guard for optimizer in seen] == [False]
    assert LEARNERS["l3rs"].build(learned, learned.theta, small_network().named_parameters(), 9).guard  # as users have it


@pytest.mark.slow
def test_sound_runs_are_left_alone_and_runs_far_too_long_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first also shows that runs which are not cut are the same to the bit."""
    scripts = Path(__file__).parents[2] / "evaluate"
    monkeypatch.syspath_prepend(str(scripts))
    compared = runpy.run_path(str(scripts / "guard.py"))["compared"]
    for head in ("random", "start"):
        assert compared(workbench(), "auto", 1.0, 25, 10, head)[0] == 0
        cuts, without, with_it = compared(workbench(), "auto", 30.0, 25, 2, head)
        assert cuts == 2
        assert with_it > without + 0.3
