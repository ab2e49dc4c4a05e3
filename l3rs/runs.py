"""Runs as rows: one fine-tuning of one arm on one task, executed on all cores and appended to a CSV file."""

from __future__ import annotations

import csv
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from l3rs.tasks import TaskConfig
from l3rs.unroll import Report

if TYPE_CHECKING:
    from l3rs.workload import Workload

T = TypeVar("T")
FIELDS = ("cell", "optimizer", "lr", "steps", "task_seed", "meta_seed", "accuracy", "loss", "seconds")


@dataclass(frozen=True)
class Run:
    """One run to make.

    Attributes:
        cell: which comparison it belongs to.
        optimizer: `l3rs`, a baseline's name, or another learned optimizer, one of `KINDS`.
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
    from l3rs.baselines import BASELINES, Recipe
    from l3rs.learned.weights import KINDS, load
    from l3rs.networks import head_of
    from l3rs.optimizer import L3RS
    from l3rs.unroll import unroll
    from l3rs.workbench import workbench

    bench = workbench(run.workload, run.task, run.device)
    tasks = bench.tasks(run.purpose)
    task = tasks.draw(run.task_seed, run.steps)
    network = bench.network_for(task.head_seed)
    if run.head_only:
        network.requires_grad_(False)
        head_of(network).requires_grad_(True)
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    total = run.total_steps or run.steps
    if run.optimizer == "l3rs":
        recipe = Recipe(L3RS(trained, total, run.learned, lr=run.lr), None)
    elif run.optimizer in KINDS:
        weights = replace(load(run.learned, run.optimizer), lr=run.lr)
        recipe = Recipe(weights.build(weights.theta, trained, total), None)
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
    import torch

    from l3rs.memory import peak, start_peak

    try:
        start_peak(torch.device(run.device))
        report = execute(run)
        report.peak_mib = peak(torch.device(run.device))
        return report
    except Exception as error:  # one run of thousands must not end the others
        return Failure(f"{type(error).__name__}: {error}"[:200])


def _one_thread() -> None:
    import torch

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
