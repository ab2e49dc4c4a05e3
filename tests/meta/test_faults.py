"""What goes wrong in a run: candidates that fail or diverge, Ctrl-C, the end of its processes at any moment. Nothing is lost by it."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError
from safetensors.torch import load_file
from small_runs import Told, bits, command, generations, quick, same, wait_for

import l3rs.meta.problem
import l3rs.meta.train
from l3rs.files import TEMPORARY
from l3rs.finetuning.unroll import Report
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.folder import last_generation
from l3rs.meta.problem import FineTuning, MetaTrainingError
from l3rs.meta.train import generation_tasks, meta_train, start
from l3rs.schedules.schedule import LearnedSchedule

LONG = 40  # generations, more than there is time for before the signal


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six generations without a disturbance."""
    out = tmp_path_factory.mktemp("straight")
    meta_train(quick(6), out, progress=False)
    return out


@pytest.fixture
def ray_ends() -> Iterator[None]:
    yield
    ray.shutdown()


def ends_as(out: Path, straight: Path) -> None:
    """All that is left of a run is what a run without a disturbance leaves; each generation once."""
    last = last_generation(straight)
    assert same(bits(out, last), bits(straight, last))
    assert generations(out) == list(range(last + 1))
    timing = ["inner_steps_per_second", "seconds"]
    curves = [pd.read_csv(folder / "curve.csv").drop(columns=timing) for folder in (out, straight)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    assert not list(out.glob(f"**/{TEMPORARY}"))
    assert same(load_file(out / "quick.safetensors"), load_file(straight / "quick.safetensors"))


class Trouble:
    """Some of a run's candidates, by their number, counted from 0, raise an error or get NaN for meta-parameters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, raises: set[int] = frozenset(), diverges: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.candidates, self.raises, self.diverges, self.real = 0, raises, diverges, l3rs.meta.problem.fine_tune
        monkeypatch.setattr(l3rs.meta.problem, "fine_tune", self.fine_tune)

    def fine_tune(self, learned: Any, theta: torch.Tensor, bench: Any, purpose: str, *rest: Any) -> Report:
        number, self.candidates = self.candidates, self.candidates + (purpose == "meta-train")
        if purpose == "meta-train" and number in self.raises:
            raise RuntimeError(f"candidate {number} is out\nof luck")
        return self.real(
            learned, theta * float("nan") if purpose == "meta-train" and number in self.diverges else theta, bench, purpose, *rest
        )


def test_candidates_that_fail_or_diverge_get_the_penalty_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trouble(monkeypatch, raises={5}, diverges={6, 9})
    meta_train(quick(3), tmp_path, progress=False)
    curve = pd.read_csv(tmp_path / "curve.csv").set_index("generation")
    assert curve.failed[1:].tolist() == [0, 1, 0]
    assert curve.diverged[1:].tolist() == [0, 1, 1]
    assert curve.mean_loss[2] > 10  # two of four with 20
    assert curve.mean_loss[3] > 5
    assert curve.best_loss[1:].max() < 4
    assert torch.isfinite(bits(tmp_path, 3)["center"]).all()


@pytest.mark.parametrize("objective", ["final", "mean", "error"])
def test_a_candidate_that_diverges_gets_the_penalty_whatever_the_objective(objective: str) -> None:
    """Here in the only step, so that even all of its training losses are finite."""
    config = quick(objective=objective)
    learned = start(config)
    problem = FineTuning(learned, config)
    problem.tasks = [(0, 1)]
    batch = problem.generate_batch(3, empty=True)
    batch.set_values(torch.stack([learned.theta, learned.theta * float("nan"), learned.theta]))
    problem.evaluate(batch)
    loss, diverged, failed = batch.evals.T
    assert loss[1] == 20.0 > loss[0] == loss[2]
    assert diverged.tolist() == [0, 1, 0]
    assert not failed.any()


@pytest.mark.parametrize(
    ("raises", "diverges", "said"), [({5, 7}, {4}, "1 .* diverged and 2 met an error"), (set(), {4, 5, 6, 7}, "4 of 4 .*")]
)
def test_a_run_whose_candidates_mostly_fail_stops_and_can_go_on(
    raises: set[int], diverges: set[int], said: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(6)
    ((seed, steps),) = generation_tasks(config, 1)
    with monkeypatch.context() as patch:
        Trouble(patch, raises, diverges)
        with pytest.raises(MetaTrainingError, match=f"in generation 1, {said}") as stop:
            meta_train(config, tmp_path, progress=False)
    assert f"nes.seed 0, tasks {seed} of {steps} steps" in str(stop.value)
    assert ("such as RuntimeError: candidate 7 is out\nof luck" in str(stop.value)) == bool(raises)
    assert generations(tmp_path) == [0, last_generation(tmp_path)] == [0, 1]
    meta_train(config, tmp_path, progress=False)
    ends_as(tmp_path, straight)


def test_a_schedule_that_diverges_in_validation_is_not_kept(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    curve = pd.read_csv(tmp_path / "curve.csv", dtype=str, keep_default_na=False).set_index("generation")
    curve.loc["3", ["validation_accuracy", "validation_loss"]] = "nan"  # as they are written
    curve.loc["6", "validation_accuracy"] = "1.0"  # the best, on the first tasks; but it diverges on the others
    curve.to_csv(tmp_path / "curve.csv")
    file = tmp_path / "theta-00006.safetensors"
    learned = LearnedSchedule.read(file)
    with_changes(learned, theta=learned.theta * float("nan")).write(file)
    kept = meta_train(quick(6), tmp_path, progress=False).training
    assert set(kept["finalists"]) == {"6", "0"}
    assert kept["generation"] == 0
    curve["validation_loss"] = ["inf" if loss else "" for loss in curve.validation_loss]
    curve.to_csv(tmp_path / "curve.csv")
    assert set(meta_train(quick(6), tmp_path, progress=False).training["finalists"]) == {"6"}  # better than none: the last


@pytest.mark.slow
def test_ctrl_c_says_where_the_run_is_and_costs_no_bit(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = command(quick(LONG), out)
    wait_for(lambda: len(generations(out)) > 2, process)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    reached = last_generation(out)
    assert f"Stopped. {out} holds the run up to generation {reached}; the same command resumes it." in said
    assert "Traceback" not in errors
    assert reached >= 1  # rows come before states
    goes_on(out, tmp_path, reached + 1)


@pytest.mark.slow
def test_sigterm_costs_no_bit(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = command(quick(LONG), out)
    wait_for(lambda: len(generations(out)) > 1, process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    goes_on(out, tmp_path, last_generation(out) + 1)


def goes_on(out: Path, tmp_path: Path, end: int) -> None:
    """A run that was stopped ends, `end` generations long, as one that was not."""
    for folder in (out, tmp_path / "straight"):
        meta_train(quick(end), folder, progress=False)
    ends_as(out, tmp_path / "straight")


@pytest.mark.slow
def test_ctrl_c_before_the_first_generation(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = command(quick(LONG), out)
    wait_for(lambda: (out / "lock").exists(), process)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert re.search(rf"Stopped. {out} holds the run up to generation \d;", said)


# A server that has imported it all forks children at once; each is a process of its own, and dies alone.
CHILDREN = multiprocessing.get_context("forkserver")


def child(config: MetaTrainConfig, out: Path, dies_before: int | None = None) -> None:
    """A run, which kills its own process before the n-th renaming of a file, counted from 0."""
    torch.set_num_threads(1)
    rename, renamed = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal renamed
        if renamed == dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed += 1
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]
    meta_train(config, out, progress=False)


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_costs_no_bit(tmp_path: Path) -> None:
    CHILDREN.set_forkserver_preload(["l3rs.meta.train"])
    meta_train_in_child(quick(1), tmp_path / "first")  # starts the server
    moments, out = random.Random(0), tmp_path / "run"
    for _ in range(20):
        process = CHILDREN.Process(target=child, args=(quick(200), out))
        process.start()
        process.join(moments.uniform(0.1, 3.0))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    end = last_generation(out) + 1
    assert end > 5
    goes_on(out, tmp_path, end)


def meta_train_in_child(config: MetaTrainConfig, out: Path) -> None:
    process = CHILDREN.Process(target=child, args=(config, out))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
def test_kill_9_before_any_renaming_costs_no_bit(straight: Path, tmp_path: Path) -> None:
    """Files are renamed when they are whole: config, row, state, schedule. Each of the first twelve times in turn is the last."""
    CHILDREN.set_forkserver_preload(["l3rs.meta.train"])
    for number in range(12):
        out = tmp_path / str(number)
        process = CHILDREN.Process(target=child, args=(quick(6), out, number))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        meta_train_in_child(quick(6), out)
        assert same(bits(out, 6), bits(straight, 6))
        assert generations(out) == list(range(7))
        assert not list(out.glob(TEMPORARY))


class Killing(Told):
    """It kills a process in the middle of the second generation."""

    def evaluate(self, x: Any) -> None:
        if self.is_main and self.evaluations == 1:
            threading.Timer(0.3, os.kill, (self.pids[-1], signal.SIGKILL)).start()
        super().evaluate(x)


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_costs_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_ends: None) -> None:
    settings: dict[str, Any] = {"steps": (20, 20), "validate_every": 9}
    alone = meta_train(quick(3, **settings), tmp_path / "1", progress=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the processes import this file, too
    monkeypatch.setattr(l3rs.meta.train, "FineTuning", Killing)
    Told.made.clear()
    both = meta_train(quick(3, workers=2, **settings), tmp_path / "2", progress=False)
    (problem,) = Told.made
    assert problem.replaced == 1
    assert len(set(problem.pids)) == 4
    assert os.getpid() not in problem.pids
    assert torch.equal(alone.theta, both.theta)
    assert same(bits(tmp_path / "1", 3), bits(tmp_path / "2", 3))


def test_processes_that_keep_dying_end_the_run_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = FineTuning(start(quick()), quick())
    monkeypatch.setattr(l3rs.meta.problem, "places", lambda _: 2)
    died = 0

    def work() -> None:
        nonlocal died
        died += 1
        raise ActorDiedError

    with pytest.raises(MetaTrainingError, match=r"processes died 4 times in a row, at last with ActorDiedError: .* give fewer workers"):
        problem._surviving(work)
    assert died == 4
    assert problem.replaced == 3


@pytest.mark.slow
@pytest.mark.parametrize(("which", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_says_where_the_run_is(which: signal.Signals, code: int, tmp_path: Path) -> None:
    """As a terminal sends Ctrl-C, and a batch system SIGTERM, to all processes of the group."""
    out = tmp_path / "run"
    process = command(quick(LONG, workers=2), out)
    wait_for(lambda: len(generations(out)) > 2, process)
    os.killpg(process.pid, which)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Stopped." in said
    assert "Traceback" not in errors
    goes_on(out, tmp_path, last_generation(out) + 1)
