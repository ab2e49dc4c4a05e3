"""Meta-evaluation: every arm of a cell on the same tasks, as rows; nothing is averaged here.

A row is one evaluation of one run. Rows are appended to a CSV file as runs end, one file for each invocation, so that several may write to
one folder; those that are there, in any file, are not made again.
"""

from __future__ import annotations

import math
import os
import platform
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from l3rs._version import __version__
from l3rs.files import append_rows
from l3rs.finetuning.baselines import BASELINES, tuned_learning_rate
from l3rs.finetuning.runs import Failure, Run
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report
from l3rs.finetuning.workload import Workload
from l3rs.learned.weights import KINDS
from l3rs.learners import LEARNERS
from l3rs.schedules.find import SHIPPED_WEIGHTS
from l3rs.schedules.learned import identity
from l3rs.schedules.seal import CheckpointError

FIELDS = (
    *("cell", "arm", "optimizer", "lr", "learned", "meta_seed", "head_only", "horizon", "steps", "task_seed"),
    *("accuracy", "loss", "seconds", "peak_mib", "error", "torch", "l3rs", "device", "date"),
)
KEY = ["cell", "arm", "lr", "learned", "meta_seed", "horizon", "task_seed"]  # of a run
CONSTANT = ("adam",)  # optimizers whose steps do not depend on K


@dataclass(frozen=True)
class Arm:
    """An optimizer in a comparison.

    Attributes:
        name: what rows and tables call it.
        optimizer: `l3rs`, a baseline, or another learned optimizer.
        lr: the learning rate; none is the one tuned for each horizon of a baseline or of Celo2, and 1 for other learned optimizers.
        learned: of a learned optimizer: a shipped schedule's name, or a file.
        meta_seed: of the meta-training that made it, where several seeds are arms of one name.
        head_only: whether all but the head is frozen.
        horizons: some of the cell's; none is all.
        total_steps: the length of the run that the optimizer is told, as a multiple of the true one.
        refresh: whether BatchNorm's statistics are refreshed before evaluations, as they always are for a schedule-free optimizer.
    """

    name: str
    optimizer: str
    lr: float | None = None
    learned: str = "auto"
    meta_seed: int = 0
    head_only: bool = False
    horizons: tuple[int, ...] = ()
    total_steps: float = 1.0
    refresh: bool = False

    def __post_init__(self) -> None:
        allowed = tuple(dict.fromkeys(("l3rs", *BASELINES, *LEARNERS)))
        if self.optimizer not in allowed:
            raise ValueError(f"arm {self.name!r} has the optimizer {self.optimizer!r}; it is one of {', '.join(allowed)}")
        if self.lr is not None and not 0 <= self.lr < math.inf:
            raise ValueError(f"arm {self.name!r} has lr {self.lr}; it is at least 0")
        if not 0 < self.total_steps < math.inf:
            raise ValueError(f"arm {self.name!r} has total_steps {self.total_steps}; it is a positive multiple of the length of the run")
        if self.optimizer in KINDS and self.learned == "auto":
            there = [name for name, kind in SHIPPED_WEIGHTS.items() if kind == self.optimizer]
            shipped = f"{', '.join(there)} is shipped" if there else f"{self.optimizer} has none that are shipped"
            raise ValueError(f"arm {self.name!r} needs learned, the file of its weights: {shipped}")

    @property
    def tuned(self) -> bool:
        """Whether its learning rate is a tuned one."""
        return self.lr is None and (self.optimizer in BASELINES or LEARNERS[self.optimizer].tuned)


@dataclass(frozen=True)
class EvaluationConfig:
    """One cell of a comparison.

    Attributes:
        cell: its name.
        workload: network and images.
        arms: the optimizers.
        horizons: how many tasks there are at each length of a run, `{10: 100, 250: 10}`.
        curve: steps at which every run that is as long is evaluated on its way.
        purpose: of the classes in the split.
        task: the size of the tasks.
        rates: the file of the tuned learning rates, which `evaluate/tune.py` writes; None is those of Icons25, which are shipped.
    """

    cell: str
    arms: tuple[Arm, ...]
    horizons: Mapping[int, int]
    workload: Workload = field(default_factory=Workload)
    curve: tuple[int, ...] = ()
    purpose: str = "meta-test"
    task: TaskConfig = field(default_factory=TaskConfig)
    rates: str | None = None

    def __post_init__(self) -> None:
        if not self.horizons or min(self.horizons) < 1 or min(self.horizons.values()) < 1:
            raise ValueError(f"horizons is {dict(self.horizons)}; it is numbers of tasks, at least 1, by numbers of steps, at least 1")
        if self.purpose not in self.workload.class_split.classes:
            raise ValueError(f"purpose is {self.purpose!r}; it is one of {', '.join(self.workload.class_split.classes)}")
        seen: set[tuple[str, int, int]] = set()
        for arm in self.arms:
            unknown = [h for h in arm.horizons if h not in self.horizons]
            if unknown:
                raise ValueError(f"arm {arm.name!r} has the horizon {unknown[0]}; the cell has {', '.join(map(str, self.horizons))}")
            runs = {(arm.name, arm.meta_seed, horizon) for horizon in arm.horizons or self.horizons}
            if runs & seen:
                raise ValueError(f"there are two arms {arm.name!r} of meta_seed {arm.meta_seed}; give them other names, seeds or horizons")
            seen |= runs

    def part(self, arms: Iterable[Arm], horizons: Collection[int] = (), tasks: int | None = None) -> EvaluationConfig:
        """Some of the arms at some lengths of a run, or all, on at most so many tasks. An arm that has none of these is left out.

        Raises:
            ValueError: there is no such length.
        """
        unknown = [h for h in horizons if h not in self.horizons]
        if unknown:
            raise ValueError(f"horizons has {unknown[0]}; the cell has {', '.join(map(str, self.horizons))}")
        kept = {h: n if tasks is None else min(n, tasks) for h, n in self.horizons.items() if not horizons or h in horizons}
        there = [(arm, tuple(h for h in arm.horizons or kept if h in kept)) for arm in arms]
        return replace(self, horizons=kept, arms=tuple(replace(arm, horizons=mine) for arm, mine in there if mine))

    def rate(self, arm: Arm, horizon: int) -> float:
        """The learning rate of an arm at a horizon. Raises ValueError where it is a tuned one and has not been tuned."""
        if arm.lr is not None:
            return arm.lr
        return tuned_learning_rate(arm.optimizer, horizon, self.rates) if arm.tuned else 1.0


@lru_cache(maxsize=64)
def fingerprint(optimizer: str, learned: str) -> str:
    """Name and digest of what a learned optimizer has learned; empty for a baseline. Raises CheckpointError."""
    if optimizer in BASELINES:
        return ""
    if learned == "auto":
        raise CheckpointError("learned is 'auto'; name the schedule, so that its rows are known as its own")
    return identity(LEARNERS[optimizer].load(learned))


@dataclass(frozen=True)
class Planned:
    """A run, and where its rows come from: evaluations at `finals` end runs of that length, the others lie on the way to `horizon`."""

    arm: Arm
    run: Run
    finals: tuple[int, ...]


def plan(config: EvaluationConfig) -> list[Planned]:
    """All runs of a cell, the longest first. An arm whose steps do not depend on K makes its shorter runs as parts of the longest."""
    planned = []
    for arm in config.arms:
        horizons = sorted(arm.horizons or config.horizons, reverse=True)
        shared = arm.optimizer in CONSTANT and arm.lr is not None
        for seed in range(max(config.horizons[h] for h in horizons)):
            mine = [h for h in horizons if seed < config.horizons[h]]
            for group in [mine] if shared else [[h] for h in mine]:
                on_the_way = (s for s in config.curve if s <= group[0])
                run = Run(
                    config.cell, arm.optimizer, config.rate(arm, group[0]), group[0], seed, config.purpose, arm.learned,
                    evaluate_at=tuple(sorted({*group, *on_the_way})), workload=config.workload, label=arm.name, head_only=arm.head_only,
                    task=config.task, total_steps=max(1, round(arm.total_steps * group[0])), refresh=arm.refresh,
                )  # fmt: skip
                planned.append(Planned(arm, run, tuple(group)))
    return sorted(planned, key=lambda p: -p.run.steps)


def missing(planned: Iterable[Planned], rows: pd.DataFrame) -> list[Planned]:
    """Those that have no row yet; a run that failed has one."""
    done = set(rows[KEY].itertuples(index=False, name=None))
    return [p for p in planned if any(key(p, horizon) not in done for horizon in p.finals)]


def key(planned: Planned, horizon: int) -> tuple[Any, ...]:
    """What a run of that length is known by among the rows."""
    arm, run = planned.arm, planned.run
    return (run.cell, arm.name, run.lr, fingerprint(arm.optimizer, arm.learned), arm.meta_seed, horizon, run.task_seed)


def rows_of(planned: Planned, found: Report | Failure) -> Iterator[dict[str, Any]]:
    """The rows of a run: of every evaluation, or, where it failed, of its ends, with the error."""
    arm, run = planned.arm, planned.run
    where = platform.processor() or platform.machine() if run.device == "cpu" else torch.cuda.get_device_name()
    fixed = {
        "cell": run.cell, "arm": arm.name, "optimizer": run.optimizer, "lr": run.lr, "learned": fingerprint(arm.optimizer, arm.learned),
        "meta_seed": arm.meta_seed, "head_only": arm.head_only, "task_seed": run.task_seed, "torch": torch.__version__,
        "l3rs": __version__, "device": where, "date": date.today().isoformat(),
    }  # fmt: skip
    if isinstance(found, Failure):
        yield from (
            {**fixed, "horizon": h, "steps": h, "accuracy": math.nan, "loss": math.nan, "error": found.message} for h in planned.finals
        )
        return
    for steps in sorted(found.accuracy):
        measured = {"steps": steps, "accuracy": round(found.accuracy[steps], 6), "loss": round(found.loss[steps], 6)}
        for horizon in sorted({run.steps, *({steps} & set(planned.finals))}):  # the shorter runs of a constant arm end on the way
            whole = {"seconds": round(found.seconds, 3), "peak_mib": round(found.peak_mib, 1)} if steps == horizon == run.steps else {}
            yield {**fixed, "horizon": horizon, **measured, **whole}


class Rows:
    """The rows in some folders: `*.csv`, and `*.parquet`, which they are compacted to.

    Args:
        folder: which new rows are written to.
        committed: another one, which is only read.
    """

    def __init__(self, folder: Path, committed: Path | None = None) -> None:
        self.folder, self.committed = folder, committed
        self.shard = folder / f"{date.today().isoformat()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.csv"

    def read(self) -> pd.DataFrame:
        """All of them, without repetitions."""
        tables = [pd.DataFrame(columns=list(FIELDS))]
        for folder in filter(None, (self.committed, self.folder)):
            tables += [pd.read_parquet(file) for file in sorted(folder.glob("*.parquet"))]
            tables += [pd.read_csv(file) for file in sorted(folder.glob("*.csv"))]
        whole = pd.concat([t for t in tables if len(t)] or tables, ignore_index=True)
        whole["learned"] = whole["learned"].astype(object).where(whole["learned"].notna(), "")  # an empty cell is read as NaN
        return whole.drop_duplicates([*KEY, "steps"], keep="first", ignore_index=True)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows to this invocation's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append_rows(self.shard, rows, FIELDS)

    def compact(self, file: Path) -> int:
        """Writes all rows to one Parquet file, in a fixed order; gives their number."""
        rows = self.read().sort_values([*KEY, "steps"], kind="stable", ignore_index=True)
        rows.to_parquet(file, index=False, compression="zstd")
        return len(rows)
