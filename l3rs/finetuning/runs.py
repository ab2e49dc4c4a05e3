"""Runs as rows: one fine-tuning of one arm on one task, executed on all cores and appended to a CSV file."""

from __future__ import annotations

import csv
import ctypes
import logging
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from l3rs.extras import require
from l3rs.finetuning.baselines import BASELINES, Recipe
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report, unroll
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS
from l3rs.networks.create import head_of

T = TypeVar("T")
FIELDS = ("cell", "optimizer", "lr", "steps", "task_seed", "meta_seed", "accuracy", "loss", "seconds")


@dataclass(frozen=True)
class Run:
    """One run to make.

    Attributes:
        cell: which comparison it belongs to.
        optimizer: `l3rs`, a baseline's name, or another learned optimizer, one of `LEARNERS`.
        lr: the baseline's learning rate; the multiplier of a learned optimizer, and of Celo2 lr as of `LearnedWeights`.
        steps: K.
        task_seed: of the task.
        purpose: of the classes in the split.
        learned: for `l3rs`, the schedule's name or path; for another learned optimizer the file of its weights.
        evaluate_at: steps at which to evaluate besides the end.
        workload: the network and the images; None is the shipped network on Icons.
        label: what a comparison calls the arm.
        head_only: whether all but the head is frozen.
        task: the size of the task.
        device: where it runs.
        total_steps: what the optimizer is told of the length of the run; 0 is the truth.
        refresh: whether BatchNorm's statistics are refreshed before evaluations, as `unroll` does it.
    """

    cell: str
    optimizer: str
    lr: float
    steps: int
    task_seed: int
    purpose: str
    learned: str = "auto"
    evaluate_at: tuple[int, ...] = ()
    workload: Workload | None = None
    label: str = ""
    head_only: bool = False
    task: TaskConfig = field(default_factory=TaskConfig)
    device: str = "cpu"
    total_steps: int = 0
    refresh: bool = False


def execute(run: Run) -> Report:
    """Fine-tunes the network as `run` says, in this process."""
    bench = workbench(run.workload, run.task, run.device)
    tasks = bench.tasks(run.purpose)
    task = tasks.draw(run.task_seed, run.steps)
    network = bench.network_for(task.head_seed)
    if run.head_only:
        network.requires_grad_(False)
        head_of(network).requires_grad_(True)
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    total = run.total_steps or run.steps
    if run.optimizer in LEARNERS:
        learner = LEARNERS[run.optimizer]
        learned = learner.load(run.learned, [name for name, _ in trained])
        recipe = Recipe(learner.build(learned, learned.theta, trained, total, run.lr), None)
    else:
        recipe = BASELINES[run.optimizer](network, run.lr, total)
    try:
        return unroll(network, recipe.optimizer, tasks.images, task, recipe.scheduler, run.evaluate_at, refresh=run.refresh)
    finally:
        network.requires_grad_(True)  # it is used again


def row(run: Run, report: Report, steps: int, meta_seed: int | str = "") -> dict[str, str | int | float]:
    """The row of a run's evaluation after `steps` steps."""
    values = (run.cell, run.optimizer, run.lr, steps, run.task_seed, meta_seed if run.optimizer == "l3rs" else "")
    measured = (round(report.accuracy[steps], 6), round(report.loss[steps], 6), round(report.seconds, 3))
    return dict(zip(FIELDS, (*values, *measured), strict=True))


class Failure(NamedTuple):
    """What a run met instead of a report."""

    message: str


def attempt(run: Run) -> Report | Failure:
    """`execute`, with the memory that it needs; an error is what comes back of a run that meets one."""
    try:
        start_peak(torch.device(run.device))
        report = execute(run)
        report.peak_mib = peak(torch.device(run.device))
        return report
    except Exception as error:  # one run of thousands must not end the others
        return Failure(f"{type(error).__name__}: {error}"[:200])


def _one_thread() -> None:
    torch.set_num_threads(1)


def _start_worker() -> None:
    """Of one thread, and that ends with the process that gives it work, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _one_thread()


def execute_all(runs: Sequence[Run], workers: int, how: Callable[[Run], T]) -> Iterator[tuple[Run, T]]:
    """Executes runs on `workers` processes of one thread each, and yields each as it ends, with what `how` makes of it."""
    if not runs:
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pools
    with ProcessPoolExecutor(min(workers, len(runs)), mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(how, run): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def execute_on_ray(runs: Sequence[Run], address: str) -> Iterator[tuple[Run, Report | Failure]]:
    """`attempt`s runs on all cores of a Ray cluster, and yields each as it ends. A run whose process or node dies is made again by Ray."""
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


def append_rows(path: Path, rows: Sequence[Mapping[str, str | int | float]], fields: Sequence[str] = FIELDS) -> None:
    """Adds rows to a CSV file, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


# -- memory ----------------------------------------------------------------------------------------------------------------------------

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _mib(name: str) -> float:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(name)) / 1024


def start_peak(device: torch.device) -> float:
    """Starts to watch; gives what is in use now, in MiB: allocated on a GPU, or resident of this process. NaN on CPU but on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed before
        _RESET.write_text("5")  # sets the peak, VmHWM, to what there is now
        return _mib("VmRSS")
    except (OSError, AttributeError):
        return math.nan


def peak(device: torch.device) -> float:
    """The most that was in use since `start_peak`, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        return _mib("VmHWM")
    except OSError:
        return math.nan
