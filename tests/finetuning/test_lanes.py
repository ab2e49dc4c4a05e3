"""Runs side by side: on a CPU each gives what it gives alone, to the bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from l3rs.controller.config import L3RSConfig
from l3rs.finetuning.captured import Captured, Failed, OnStream, side_by_side
from l3rs.finetuning.lanes import Lanes
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report, unroll
from l3rs.finetuning.workbench import Workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS, Start
from l3rs.schedules.learned import Learned

WORKLOAD, TASK = Workload(model="resnet18", width=4, from_scratch=True), TaskConfig(classes=5, batch_size=8, evaluation_size=20)


@pytest.fixture(scope="module")
def lanes() -> Lanes:
    return Lanes(WORKLOAD, TASK, "cpu", 2)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(WORKLOAD, TASK)


def start(kind: str) -> Learned:
    schedule = L3RSConfig(embedding=0) if kind == "l3rs" else L3RSConfig()
    return LEARNERS[kind].start(Start(schedule, specialist=kind != "l3rs"), "start", lambda: Workbench(WORKLOAD, TASK).network)


def alone(bench: Workbench, learned: Learned, theta: torch.Tensor, seed: int, steps: int, refresh: bool) -> Report:
    tasks = bench.tasks("meta-train")
    task = tasks.draw(seed, steps)
    network = bench.network_for(task.head_seed)
    optimizer = LEARNERS[learned.kind].build(learned, theta, network.named_parameters(), steps)
    return unroll(network, optimizer, tasks.images, task, refresh=refresh)


def same(a: Report, b: Report) -> bool:
    return repr(replace(a, seconds=0.0)) == repr(replace(b, seconds=0.0))


def test_a_network_that_draws_at_random_is_refused() -> None:
    for rate, kind in (("proj_drop_rate", "Dropout"), ("drop_path_rate", "DropPath")):
        workload = Workload(model="test_vit", model_args={"img_size": 32, rate: 0.1}, from_scratch=True)
        with pytest.raises(ValueError, match=f"the network has {kind}, whose draws captured steps do not repeat"):
            Lanes(workload, TASK, "cpu", 1)


@pytest.mark.parametrize(("kind", "refresh"), [("l3rs", False), ("l3rs", True), ("velo", False)])
def test_each_run_is_the_one_that_it_is_alone(lanes: Lanes, bench: Workbench, kind: str, refresh: bool) -> None:
    """Of different lengths, more of them than lanes."""
    learned = start(kind)
    generator = torch.Generator().manual_seed(0)
    runs = [
        (learned.theta + 0.1 * torch.randn(learned.theta.shape, generator=generator), seed, k)
        for seed, k in ((1, 3), (1, 3), (2, 4), (3, 1))
    ]
    found = lanes.reports(learned, runs, "meta-train", refresh)
    expected = [alone(bench, learned, *run, refresh) for run in runs]
    assert len({report.loss[len(report.train_losses)] for report in expected}) == len(runs)
    assert [isinstance(a, Report) and same(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(runs)


def test_a_run_that_diverges_ends_as_it_does_alone(lanes: Lanes, bench: Workbench) -> None:
    learned = start("l3rs")
    learned = replace(learned, config=replace(learned.config, lr0=1e30))
    theta = learned.theta
    (found,) = lanes.reports(learned, [(theta, 1, 4)], "meta-train")
    expected = alone(bench, learned, theta, 1, 4, False)
    assert isinstance(found, Report)
    assert expected.loss[4] != expected.loss[4]
    assert same(found, expected)


def test_a_run_whose_last_step_diverges_has_no_accuracy(lanes: Lanes, bench: Workbench) -> None:
    """Its training losses, each before a step, are all finite."""
    learned = start("l3rs")
    learned = replace(learned, config=replace(learned.config, lr0=1e30))
    (found,) = lanes.reports(learned, [(learned.theta, 1, 1)], "meta-train")
    expected = alone(bench, learned, learned.theta, 1, 1, False)
    assert isinstance(found, Report)
    for report in (found, expected):
        assert len(report.train_losses) == 1
        assert math.isfinite(report.train_losses[0])
        assert math.isnan(report.accuracy[1])
        assert math.isnan(report.loss[1])


def test_an_error_is_of_its_own_run(lanes: Lanes) -> None:
    learned = start("l3rs")
    short = learned.theta[:-1]
    bad, good = lanes.reports(learned, [(short, 1, 2), (learned.theta, 1, 2)], "meta-train")
    assert isinstance(bad, Failed)
    assert "meta-parameters" in str(bad.error)
    assert isinstance(good, Report)


def test_lanes_take_turns_and_results_are_read_at_the_end() -> None:
    done: list[str] = []

    def job(name: str, steps: int):
        def on(lane: OnStream):
            for k in range(steps):
                done.append(f"{name}{k}")
                yield
            return lambda: done.append(f"read {name}") or name

        return on

    lanes = [OnStream(torch.device("cpu")) for _ in range(2)]
    assert side_by_side(lanes, [job("a", 3), job("b", 1), job("c", 1)]) == ["a", "b", "c"]
    assert done == ["a0", "b0", "a1", "a2", "c0", "read a", "read b", "read c"]


def test_on_a_cpu_nothing_is_captured() -> None:
    calls: list[int] = []
    work = Captured(lambda: calls.append(1), torch.device("cpu"))
    work.capture()
    assert not calls
    work()
    work()
    assert len(calls) == 2
