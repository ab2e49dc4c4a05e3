"""Runs as rows: one fine-tuning of one arm on one task, executed on all cores and appended to a CSV file."""

from __future__ import annotations

import ctypes
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from l3rs.extras import require
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.baselines import Recipe
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report, drawing, unroll
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS
from l3rs.networks.create import head_of
from l3rs.processes import unseen

T = TypeVar("T")
FIELDS = ("cell", "optimizer", "lr", "steps", "task_seed", "meta_seed", "accuracy", "loss", "seconds")  # of every row
CELL_FIELDS = (  # of a row of a meta-evaluation: these and more, in the order of its files
    *("cell", "arm", "optimizer", "lr", "learned", "meta_seed", "head_only", "head", "refresh", "recent", "horizon", "steps", "task_seed"),
    *("accuracy", "loss", "seconds", "peak_mib", "error", "made_with", "weights", "torch", "l3rs", "device", "date"),
)


@dataclass(frozen=True)
class Run:
    """One run to make.

    Attributes:
        cell: name of its comparison.
        arm: the optimizer; without a learning rate, it takes the one tuned on Icons25.
        steps: K.
        task_seed: of the task.
        purpose: of the classes, in the split.
        evaluate_at: steps at which to evaluate besides the end.
        workload: the network and the images; None is the shipped network on Icons.
        task: the size of the task.
        device: to run on.
    """

    cell: str
    arm: Arm
    steps: int
    task_seed: int
    purpose: str
    evaluate_at: tuple[int, ...] = ()
    workload: Workload | None = None
    task: TaskConfig = field(default_factory=TaskConfig)
    device: str = "cpu"

    @property
    def optimizer(self) -> str:
        """The arm's optimizer."""
        return self.arm.optimizer

    @property
    def lr(self) -> float:
        """The learning rate of a baseline or of Celo2, or the multiplier of another learned optimizer."""
        return self.arm.rate(self.steps)

    @property
    def total_steps(self) -> int:
        """The length of the run that the optimizer is told."""
        return max(1, round(self.arm.total_steps * self.steps))


def execute(run: Run) -> Report:
    """Fine-tunes the network in this process."""
    arm = run.arm
    bench = workbench(run.workload, run.task, run.device)
    tasks, task, network = bench.ready(run.purpose, run.task_seed, run.steps, arm.head, arm.head_batches)
    try:
        if arm.head_only:
            network.requires_grad_(False)
            head_of(network).requires_grad_(True)
        if arm.optimizer in LEARNERS:
            learner, named = LEARNERS[arm.optimizer], list(network.named_parameters())  # all, as users are told: frozen ones do not move
            learned = learner.load(arm.learned, named)
            recipe = Recipe(learner.build(learned, learned.theta, named, run.total_steps, run.lr), None)
        else:
            over = (task.batch(tasks.images, i % run.steps) for i in count())
            batches = ((x.to(run.device), y.to(run.device)) for x, y in over)
            with drawing(torch.device(run.device), run.task_seed, -1):  # a learning-rate finder trains, and dropout draws
                recipe = replace(arm, lr=run.lr).make(network, run.total_steps, batches)
        return unroll(
            network, recipe.optimizer, tasks.images, task, recipe.scheduler, run.evaluate_at,
            refresh=arm.refresh, recent=arm.recent and not arm.refresh, head_start=bench.head_start,
        )  # fmt: skip
    finally:
        network.requires_grad_(True)  # the workbench uses it again


def row(run: Run, report: Report, steps: int, meta_seed: int | str = "") -> dict[str, Any]:
    """Makes the row, of `FIELDS`, of a run's evaluation after `steps` steps; only a learned optimizer has a `meta_seed`."""
    values = (run.cell, run.optimizer, run.lr, steps, run.task_seed, meta_seed if run.optimizer in LEARNERS else "")
    measured = (round(report.accuracy[steps], 6), round(report.loss[steps], 6), round(report.seconds, 3))
    return dict(zip(FIELDS, (*values, *measured), strict=True))


class Failure(NamedTuple):
    """The error of a run, in place of its report."""

    message: str


def attempt(run: Run) -> Report | Failure:
    """Executes a run, and measures its memory; returns the error of a run that fails."""
    try:
        start_peak(torch.device(run.device))
        report = execute(run)
        report.peak_mib = peak(torch.device(run.device))
        return report
    except Exception as error:  # one of thousands must not end the others
        return Failure(f"{type(error).__name__}: {error}"[:200])


def _one_thread() -> None:
    torch.set_num_threads(1)


def _start_worker(line: Connection) -> None:
    """Starts a worker of one thread, which ends when the other end of `line` closes: also when that process is killed."""

    def follow() -> None:
        with suppress(EOFError, OSError):
            line.recv_bytes()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _one_thread()


def execute_all(runs: Sequence[Run], workers: int, how: Callable[[Run], T]) -> Generator[tuple[Run, T], None, None]:
    """Executes runs on `workers` processes of one thread each, and yields each as it ends, with the result of `how`.

    If it is closed early, as by `contextlib.closing`, the processes end at once.
    """
    if not runs:
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pools
    theirs, ours = context.Pipe(duplex=False)
    with ours, theirs, ProcessPoolExecutor(min(workers, len(runs)), context, _start_worker, (theirs,)) as pool:
        try:
            with unseen(signal.SIGINT):
                futures = {pool.submit(how, run): run for run in runs}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            ours.close()  # ends the workers at once
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def execute_on_ray(runs: Sequence[Run], address: str) -> Generator[tuple[Run, Report | Failure], None, None]:
    """Attempts runs on all cores of a Ray cluster, and yields each as it ends. Ray repeats a run whose process or node dies."""
    require("execute_on_ray()", "ray")
    import ray

    def one(run: Run) -> Report | Failure:
        _one_thread()
        return attempt(run)

    if not ray.is_initialized():
        ray.init(address, logging_level=logging.ERROR)
    remote = ray.remote(num_cpus=1)(one)
    waiting = {remote.remote(run): run for run in runs}
    while waiting:
        (ready, *_), _ = ray.wait(list(waiting))
        yield waiting.pop(ready), ray.get(ready)


# -- memory ----------------------------------------------------------------------------------------------------------------------------

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _mib(name: str) -> float:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(name)) / 1024


def start_peak(device: torch.device) -> float:
    """Starts to watch memory; returns the use now, in MiB: allocated on a GPU, or resident on CPU. NaN on CPU without Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system
        _RESET.write_text("5")  # sets the peak, VmHWM, to the use now
        return _mib("VmRSS")
    except (OSError, AttributeError):
        return math.nan


def peak(device: torch.device) -> float:
    """Returns the most memory in use since `start_peak`, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        return _mib("VmHWM")
    except OSError:
        return math.nan
