"""Meta-evaluation: every arm of a cell on the same tasks, as rows; nothing is averaged here.

A row is one evaluation of one run. Each invocation appends rows to a CSV file of its own as runs end, so that several may share a folder.
A run with a row, in any file, is not repeated.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from l3rs._version import __version__
from l3rs.files import append_rows, whole_rows
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import CELL_FIELDS, Failure, Run, row
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS
from l3rs.schedules.learned import identity
from l3rs.schedules.seal import CheckpointError, fingerprint

KEY = ["cell", "arm", "lr", "learned", "meta_seed", "head", "horizon", "task_seed"]  # of a run
CONSTANT = ("adam",)  # optimizers whose steps do not depend on K


def contains_shorter(arm: Arm) -> bool:
    """Whether a run contains the shorter ones: its steps do not depend on K, nor does its head, as one in closed form does."""
    return arm.optimizer in CONSTANT and arm.lr is not None and arm.head == "random"


@dataclass(frozen=True)
class EvaluationConfig:
    """One cell of a comparison.

    Attributes:
        cell: its name.
        workload: network and images.
        arms: the optimizers.
        horizons: number of tasks at each length of a run, `{10: 100, 250: 10}`.
        curve: steps at which every longer run is evaluated on its way.
        purpose: of the classes in the split.
        task: the size of the tasks.
        rates: file of tuned learning rates, by `evaluate/tune.py`; None takes the shipped ones, tuned on Icons25.
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
            raise ValueError(f"horizons must map numbers of steps to numbers of tasks, all at least 1 (got {dict(self.horizons)})")
        if min(self.curve, default=1) < 1:
            raise ValueError(f"curve must have numbers of steps of at least 1 (got {list(self.curve)})")
        if not re.fullmatch(r"[\w.{}-]*\w[\w.{}-]*", self.cell):
            raise ValueError(f"cell must be a name of letters, digits, dots and dashes, as files are called after it (got {self.cell!r})")
        if self.purpose not in self.workload.class_split.classes:
            raise ValueError(f"purpose must be one of {', '.join(self.workload.class_split.classes)} (got {self.purpose!r})")
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
        """Picks some arms and lengths of a run, or all, with at most `tasks` tasks. It drops an arm without these lengths.

        Raises:
            ValueError: there is no such length.
        """
        unknown = [h for h in horizons if h not in self.horizons]
        if unknown:
            raise ValueError(f"horizons has {unknown[0]}; the cell has {', '.join(map(str, self.horizons))}")
        kept = {h: n if tasks is None else min(n, tasks) for h, n in self.horizons.items() if not horizons or h in horizons}
        there = [(arm, tuple(h for h in arm.horizons or kept if h in kept)) for arm in arms]
        return replace(self, horizons=kept, arms=tuple(replace(arm, horizons=mine) for arm, mine in there if mine))

    def prepare(self, purpose: str) -> None:
        """Decodes the images of a purpose, if needed, and finds the weights. Raises ValueError if all runs would fail."""
        self.workload.prepare((purpose,), self.task)
        self.workload.network(self.task.classes)

    def rate(self, arm: Arm, horizon: int) -> float:
        """The learning rate of an arm at a horizon. Raises ValueError if it was not tuned."""
        return arm.rate(horizon, self.rates)


@lru_cache(maxsize=64)
def identity_of(optimizer: str, learned: str) -> str:
    """Name and fingerprint of a learned optimizer's meta-parameters; empty for a baseline. Raises CheckpointError."""
    if optimizer not in LEARNERS:
        return ""
    if learned == "auto":
        raise CheckpointError("learned must name a schedule, which its rows then name (got 'auto')")
    return identity(LEARNERS[optimizer].load(learned))


@dataclass(frozen=True)
class Planned:
    """A run and its rows: an evaluation at one of `finals` ends a run of that length, and the others lie on the way."""

    run: Run
    finals: tuple[int, ...]


def plan(config: EvaluationConfig) -> list[Planned]:
    """Plans all runs of a cell, the longest first. One of an arm that `contains_shorter` stands for all lengths."""
    planned = []
    for arm in config.arms:
        horizons = sorted(arm.horizons or config.horizons, reverse=True)
        for seed in range(max(config.horizons[h] for h in horizons)):
            mine = [h for h in horizons if seed < config.horizons[h]]
            for group in [mine] if contains_shorter(arm) else [[h] for h in mine]:
                on_the_way = (s for s in config.curve if s <= group[0])
                run = Run(
                    config.cell, replace(arm, lr=config.rate(arm, group[0])), group[0], seed, config.purpose,
                    evaluate_at=tuple(sorted({*group, *on_the_way})), workload=config.workload, task=config.task,
                )  # fmt: skip
                planned.append(Planned(run, tuple(group)))
    return sorted(planned, key=lambda p: -p.run.steps)


def missing(planned: Iterable[Planned], rows: pd.DataFrame) -> list[Planned]:
    """Lists the runs without the row of their end; a failed run has one."""
    done = set(rows[rows.steps == rows.horizon][KEY].itertuples(index=False, name=None))
    return [p for p in planned if any(key(p.run, horizon) not in done for horizon in p.finals)]


@lru_cache(maxsize=256)
def _hash_of_task(workload: Workload, task: TaskConfig, purpose: str) -> str:
    return hashed([workload.contents((purpose,)), asdict(task), purpose])


def hashed(values: Any) -> str:
    """The first eight hex digits of the SHA-256 of values that JSON has, or of dataclasses of them."""
    return fingerprint(json.dumps(values, sort_keys=True, default=asdict))[:8]


def made_with(run: Run) -> str:
    """Hashes what a run is, besides its `KEY`: what it is on, and, behind a dash, the settings of its arm."""
    return f"{_hash_of_task(run.workload or Workload(), run.task, run.purpose)}-{_hash_of_settings(run.arm)}"


def _hash_of_settings(arm: Arm) -> str:
    return hashed(asdict(replace(settings(arm), learned="", meta_seed=0, head="random")))


def check_made_with(config: EvaluationConfig, rows: pd.DataFrame) -> None:
    """Rows that a cell has must be of its runs, as they are now: a config may have been edited.

    It passes over the settings of an arm whose schedule's file is not there, or whose learning rate was not tuned: which of the rows are
    its own is not known.

    Raises:
        ValueError: some are of other images, tasks or settings; the message says which.
    """
    on, ours = _hash_of_task(config.workload, config.task, config.purpose), {}
    for arm in config.arms:
        mark = f"{on}-{_hash_of_settings(arm)}"
        for horizon in arm.horizons or config.horizons:
            with suppress(ValueError):
                ours[_key(config.cell, arm, config.rate(arm, horizon), horizon)] = mark
    cure = "give the cell another name, or remove these rows to make them anew"
    whose = [name for name in KEY if name != "task_seed"]
    known = rows[rows.horizon.isin(config.horizons)][[*whose, "made_with"]].drop_duplicates()
    for *of, found in known.assign(made_with=filled(known.made_with, "")).itertuples(index=False, name=None):
        name, horizon = of[whose.index("arm")], of[whose.index("horizon")]
        if found.partition("-")[0] != on:
            raise ValueError(f"{config.cell} has rows of another network, other images or tasks: {name}, {horizon} steps; {cure}")
        if found != ours.get(tuple(of), found):
            what = "head_only, refresh, recent, total_steps or head_batches"
            raise ValueError(f"{config.cell} has rows of {name} with other settings, of {what}; {cure}")


def check_weights(config: EvaluationConfig, planned: Iterable[Planned], rows: pd.DataFrame) -> None:
    """Runs are compared at each length, and so must be of the same network: one pretrained anew, on another machine, is another one.

    Args:
        planned: runs to make.
        rows: those that the cell has.

    Raises:
        ValueError: at some of these lengths, rows are of other weights.
    """
    ours = config.workload.source().fingerprint()
    lengths = {horizon for p in planned for horizon in p.finals}
    others = rows[(rows.weights != ours) & rows.horizon.isin(lengths)]
    if len(others):
        mixed = ", ".join(map(str, sorted(others.horizon.unique())))
        raise ValueError(
            f"{config.cell} has rows of other weights at {mixed} steps: {others.weights.iloc[0] or 'unknown'}, and "
            f"{config.workload.weights} is {ours}; make those weights again, choose other --steps, or remove these rows to make them anew"
        )


def shared(config: EvaluationConfig, planned: Iterable[Planned], other: EvaluationConfig, rows: pd.DataFrame) -> pd.DataFrame:
    """Copies the rows of another cell that are of runs of this one: the same optimizer and settings, on the same tasks and network.

    Args:
        planned: the runs of this cell.
        rows: of the other cell.
    """
    wanted: dict[tuple[Any, ...], tuple[str, str]] = {}  # the name here of a run there, and what it is made with
    if (config.workload, config.task, config.purpose) == (other.workload, other.task, other.purpose):
        twins = {settings(arm): arm for arm in other.arms}
        for p in planned:
            if twin := twins.get(settings(p.run.arm)):
                run = replace(p.run, cell=other.cell, arm=replace(twin, lr=p.run.lr))
                wanted |= {key(run, horizon): (p.run.arm.name, made_with(p.run)) for horizon in p.finals}
    if not wanted:
        return rows[:0]
    found = pd.DataFrame([wanted.get(k, ("", "")) for k in rows[KEY].itertuples(index=False, name=None)], rows.index, ["arm", "made_with"])
    same = (rows.made_with == found.made_with) & (rows.weights == config.workload.source().fingerprint()) & rows.error.isna()
    return rows.assign(cell=config.cell, arm=found.arm)[same]


def settings(arm: Arm) -> Arm:
    """An arm but for its name, its learning rate, and where it is run."""
    return replace(arm, name="", lr=None, horizons=(), source="")


def key(run: Run, horizon: int) -> tuple[Any, ...]:
    """The key among the rows of a run, or of its beginning of that length."""
    return (*_key(run.cell, run.arm, run.lr, horizon), run.task_seed)


def _key(cell: str, arm: Arm, lr: float, horizon: int) -> tuple[Any, ...]:
    """The key but for the task."""
    return (cell, arm.name, lr, identity_of(arm.optimizer, arm.learned), arm.meta_seed, arm.head, horizon)


def rows_of(planned: Planned, found: Report | Failure) -> Iterator[dict[str, Any]]:
    """Makes the rows of a run: every evaluation, or, if it failed, its ends with the error."""
    run, arm = planned.run, planned.run.arm
    about = {
        "arm": arm.name, "learned": identity_of(arm.optimizer, arm.learned), "meta_seed": arm.meta_seed, "head_only": arm.head_only,
        "head": arm.head, "refresh": arm.refresh, "recent": arm.recent,
        "made_with": made_with(run), "weights": run.workload.source().fingerprint() if run.workload else "",
        "torch": torch.__version__, "l3rs": __version__, "date": date.today().isoformat(),
        "device": platform.processor() or platform.machine() if run.device == "cpu" else torch.cuda.get_device_name(),
    }  # fmt: skip
    ends: list[tuple[int, int, Report, dict[str, Any]]]  # the length of a run, steps on its way there, and what else is known
    if isinstance(found, Failure):
        nothing = dict.fromkeys(planned.finals, math.nan)
        ends = [(h, h, Report(accuracy=nothing, loss=nothing), {"error": found.message}) for h in planned.finals]
    else:  # the shorter runs of a constant arm end on the way
        places = [(h, s) for s in sorted(found.accuracy) for h in sorted({run.steps, *({s} & set(planned.finals))})]
        ends = [(h, s, found, {"peak_mib": round(found.peak_mib, 1)} if h == s == run.steps else {}) for h, s in places]
    for horizon, steps, report, more in ends:
        made = row(run, report, steps) | about | {"horizon": horizon} | more
        if "peak_mib" not in more:
            del made["seconds"]  # like memory, they belong to the whole run
        yield made


def read_rows(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table that rows are added to, but for a last one that was cut off; none if there is no such file yet."""
    whole = whole_rows(file) if file.exists() else b""
    return pd.read_csv(io.BytesIO(whole)) if whole else pd.DataFrame(columns=list(columns))


def filled(column: pd.Series[Any], text: str) -> pd.Series[Any]:
    """A column of text, with `text` where it is empty."""
    return column.astype(object).where(column.notna(), text)


class Rows:
    """The rows in two folders: `*.csv`, and compacted `*.parquet`.

    Args:
        folder: for new rows.
        committed: another one, only to read.
    """

    def __init__(self, folder: Path, committed: Path | None = None) -> None:
        self.folder, self.committed = folder, committed
        self.shard = folder / f"{date.today().isoformat()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.csv"

    def read(self) -> pd.DataFrame:
        """Reads all rows, each once; of a run that failed and was made again, those of the second."""
        tables = [pd.DataFrame(columns=list(CELL_FIELDS))]
        for folder in filter(None, (self.committed, self.folder)):
            tables += [pd.read_parquet(file) for file in sorted(folder.glob("*.parquet"))]
            tables += [read_rows(file, CELL_FIELDS) for file in sorted(folder.glob("*.csv"))]
        whole = pd.concat([t for t in tables if len(t)] or tables, ignore_index=True).reindex(columns=list(CELL_FIELDS))
        whole["learned"] = filled(whole["learned"], "")  # an empty cell is read as NaN
        whole["weights"] = filled(whole["weights"], "")  # what is shipped
        whole = whole.sort_values("error", key=lambda said: filled(said, "") != "", kind="stable")
        return whole.drop_duplicates([*KEY, "steps"], keep="first").sort_index(ignore_index=True)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows to this invocation's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append_rows(self.shard, rows, CELL_FIELDS)

    def compact(self, file: Path) -> int:
        """Writes all rows to one Parquet file, in a fixed order; returns their number."""
        rows = self.read().sort_values([*KEY, "steps"], kind="stable", ignore_index=True)
        rows.to_parquet(file, index=False, compression="zstd")
        return len(rows)
