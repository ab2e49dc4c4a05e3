"""Comparisons of meta-trainings: each setting meta-trained in a folder of its own, its start and its end run on the same tasks, as rows."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from l3rs.files import append_rows
from l3rs.finetuning.tasks import task_seed
from l3rs.finetuning.workbench import workbench
from l3rs.learners import LEARNERS
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.problem import fine_tune
from l3rs.meta.train import meta_train

COLUMNS = ("setting", "meta_seed", "generation", "steps", "task", "accuracy", "loss", "meta_seconds")


def with_overrides(config: Any, overrides: dict[str, Any]) -> Any:
    """A copy of a config dataclass with the fields at these dotted names replaced.

    Raises:
        ValueError: there is no such field; the message names those there are.
    """
    known = [f.name for f in fields(config)]
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        first, _, rest = name.partition(".")
        if first not in known:
            raise ValueError(f"no setting is called {first!r}; there are {', '.join(known)}")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            changes[first] = tuple(value) if isinstance(value, list) else value
    for first, theirs in inner.items():
        changes[first] = with_overrides(changes.get(first, getattr(config, first)), theirs)
    return replace(config, **changes)  # at once: fields are checked together


def measure(config: MetaTrainConfig, setting: str, runs: Path, tasks: int, purpose: str, out: Path) -> None:
    """Meta-trains `config` unless that is done, and appends to `out` the rows that are missing of its start and its end.

    Args:
        config: its `validation_steps` are the horizons of the rows.
        setting: what the rows call it.
        runs: the folder for its folder.
        tasks: at each horizon, the same for all settings.
        purpose: of the tasks' classes.
        out: CSV file with `COLUMNS`.
    """
    seed = config.nes.seed
    rows = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=list(COLUMNS))
    there = rows[(rows.setting == setting) & (rows.meta_seed == seed)]
    done = set(zip(there.generation, there.steps, there.task, strict=True))
    wanted = [(g, s, t) for g in (0, config.generations) for t in range(tasks) for s in config.validation_steps]
    missing = [key for key in wanted if key not in done]
    if not missing:
        return
    folder = runs / f"{setting.replace(' ', '-').replace(',', '')}-{seed}"
    meta_train(config, folder)
    seconds = round(float(pd.read_csv(folder / "curve.csv").seconds.sum()), 1)
    bench = workbench(config.workload, config.task)
    for generation, steps, task in tqdm(missing, desc=f"{setting}, seed {seed}"):
        learned = LEARNERS[config.optimizer].read(folder / f"theta-{generation:05d}.safetensors")
        report = fine_tune(learned, learned.theta, bench, purpose, task_seed(task), steps)
        found = (round(report.accuracy[steps], 6), round(report.loss[steps], 6))
        values = (setting, seed, generation, steps, task, *found, seconds if generation else 0.0)
        append_rows(out, [dict(zip(COLUMNS, values, strict=True))], COLUMNS)
