"""A study compares settings of meta-training at equal cost. It meta-trains each, and runs its start and its end on the same tasks."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from l3rs.directions import TorchOptimizerDirection, register
from l3rs.evaluation.cells import hashed, read_rows
from l3rs.evaluation.decisions import record
from l3rs.files import append_rows
from l3rs.finetuning.tasks import task_seed
from l3rs.finetuning.workbench import workbench
from l3rs.learned import Celo2, weights
from l3rs.learners import LEARNERS
from l3rs.meta.config import MetaTrainConfig
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.variants import NAMES

COLUMNS = ("setting", "meta_seed", "generation", "steps", "task", "accuracy", "loss", "meta_seconds", "made_with")
USE = ("head", "refresh", "settings")  # what a use may have


def with_overrides(config: Any, overrides: dict[str, Any]) -> Any:
    """A copy of a config dataclass with the fields at these dotted names replaced.

    Raises:
        ValueError: there is no such field; the message lists the fields.
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
    return replace(config, **changes)  # at once, since fields are checked together


@dataclass(frozen=True)
class Study:
    """Settings of meta-training and their common tasks: a YAML file such as `configs/ablations.yaml`.

    Attributes:
        file: the YAML file.
        rows: CSV file with `COLUMNS`.
        purpose: of the tasks' classes.
        tasks: at each horizon, the same for all settings. The horizons are `validation_steps` of a setting.
        seeds: of meta-training.
        base: common to all settings, by the dotted names of fields of `MetaTrainConfig`.
        settings: the differences of each, likewise.
        variants: adds the paper's variants, `l3rs.schedules.variants`.
        workers: processes of a meta-training; 0 takes one for each core.
        mixes: CSV file for the mean of mu along two runs of each of `settings`; None writes none.
        uses: what the runs that judge a schedule have, by what is added to the setting's name in the rows: `head`, `refresh`, and
            `settings`, to judge only these so. As it is, all have a random head and running statistics.
        starts: settings that are judged before meta-training too; None is all.
    """

    file: Path
    rows: str
    purpose: str
    tasks: int
    seeds: tuple[int, ...]
    base: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    variants: bool = False
    workers: int = 0
    mixes: str | None = None
    uses: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    starts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for added, use in self.uses.items():
            self._check(f"the use {added!r}", use, USE)
            self._check(f"settings of the use {added!r}", use.get("settings", ()), self.names)
        self._check("starts", self.starts or (), self.names)

    def _check(self, what: str, named: Iterable[str], there: Sequence[str]) -> None:
        if unknown := [name for name in named if name not in there]:
            raise ValueError(f"{what} must be of {', '.join(map(repr, there))} (got {', '.join(map(repr, unknown))})")

    @classmethod
    def read(cls, file: Path) -> Study:
        """Reads a YAML file. Raises ValueError if it names settings, or what a use has, that there are not."""
        return cls(file, **yaml.safe_load(file.read_text()))

    @cached_property
    def overrides(self) -> Mapping[str, Mapping[str, Any]]:
        """The differences of each setting, with the paper's variants if asked for."""
        paper = {name: {"schedule": config, "specialist": config.by_layer} for config, name in NAMES.items()}
        return {**paper, **self.settings} if self.variants else self.settings

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(self.overrides)

    def used(self, setting: str) -> dict[str, dict[str, Any]]:
        """What the runs that judge a setting have, by its names in the rows."""
        return {
            f"{setting}{added}": {name: value for name, value in use.items() if name != "settings"}
            for added, use in self.uses.items()
            if setting in use.get("settings", self.names)
        }

    @property
    def judged(self) -> tuple[str, ...]:
        """All names in the rows."""
        return tuple(name for setting in self.names for name in self.used(setting))

    def config(self, setting: str, seed: int) -> MetaTrainConfig:
        """The config of a setting and a seed of meta-training. Raises ValueError if it is of a zoo: a study judges on one network."""
        changes = {**self.base, "workers": self.workers, **self.overrides[setting], "nes.seed": seed}
        config: MetaTrainConfig = with_overrides(MetaTrainConfig(), changes)
        if config.zoo.file is not None:
            raise ValueError(f"a study judges on one network, and the setting {setting!r} has zoo.file {config.zoo.file}")
        return config

    def made_with(self, setting: str) -> dict[str, str]:
        """Hashes what rows of a setting are made with, by its names there: its settings, and, behind a dash, its use and the purpose."""
        trained = hashed([{**self.base, **self.overrides[setting]}])
        return {name: f"{trained}-{hashed([self.purpose, use])}" for name, use in self.used(setting).items()}

    def measured(self, root: Path) -> pd.DataFrame:
        """The rows in a checkout, none if there is no such file yet."""
        return read_rows(root / self.rows, COLUMNS)

    def command(self, lacking: Collection[str]) -> str:
        """The command that makes these of the rows, by their names."""
        settings = [setting for setting in self.names if not self.used(setting).keys().isdisjoint(lacking)]
        only = "" if len(settings) == len(self.names) else f" --only {' '.join(map(shlex.quote, settings))}"
        return f"python evaluate/study.py --config configs/{self.file.name}{only}"


@lru_cache(maxsize=1)
def register_celo2() -> None:
    """Registers the shipped Celo2-base as a direction, in this process alone."""
    theta = weights.load("icons-celo2-base", "celo2-base").theta
    register("celo2-base", TorchOptimizerDirection(Celo2, theta=theta, orthogonalize=False, vectors="learned"))


def trained(config: MetaTrainConfig, setting: str, runs: Path) -> Path:
    """Meta-trains a setting, or what is left of that, in a folder of its own in `runs`; gives the folder."""
    from l3rs.meta.train import meta_train  # only now that it is wanted: EvoTorch takes seconds, and reading a study needs none

    folder = runs / f"{setting.replace(' ', '-').replace(',', '')}-{config.nes.seed}"
    meta_train(config, folder)
    return folder


def measure(study: Study, setting: str, seed: int, runs: Path, tasks: int, out: Path) -> None:
    """Meta-trains a setting unless that is done, and appends to `out` the rows that are missing of its start and its end.

    Args:
        study: the horizons of the rows are its `validation_steps`.
        setting, seed: of meta-training.
        runs: the parent of its folder.
        tasks: at each horizon, the same for all settings.
        out: CSV file with `COLUMNS`.

    Raises:
        ValueError: `out` has other columns, or rows of this setting that were made with others than the study has now.
    """
    from l3rs.meta.problem import fine_tune  # see `trained`

    config, uses, marks = study.config(setting, seed), study.used(setting), study.made_with(setting)
    rows = read_rows(out, COLUMNS)
    if tuple(rows.columns) != COLUMNS:
        raise ValueError(f"{out} must be a table of {', '.join(COLUMNS)} (got {', '.join(rows.columns)})")
    there = rows[rows.meta_seed == seed]
    edited = there[there.setting.isin(marks) & (there.made_with != there.setting.map(marks))]
    if len(edited):
        cure = "give the setting another name, or remove these rows to make them anew"
        raise ValueError(f"{out} has rows of {edited.setting.iloc[0]!r} that were made with other settings than it has now; {cure}")
    done = set(zip(there.setting, there.generation, there.steps, there.task, strict=True))
    generations = (0, config.generations) if study.starts is None or setting in study.starts else (config.generations,)
    wanted = [(name, g, s, t) for name in uses for g in generations for t in range(tasks) for s in config.validation_steps]
    missing = [key for key in wanted if key not in done]
    if not missing:
        return
    folder = trained(config, setting, runs)
    seconds = round(float(pd.read_csv(folder / "curve.csv").seconds.sum()), 1)
    bench = workbench(config.workload, config.task)
    for name, generation, steps, task in tqdm(missing, desc=f"{setting}, seed {seed}"):
        learned = LEARNERS[config.optimizer].read(folder / f"theta-{generation:05d}.safetensors")
        report = fine_tune(learned, learned.theta, bench, study.purpose, task_seed(task), steps, **uses[name])
        found = (round(report.accuracy[steps], 6), round(report.loss[steps], 6))
        values = (name, seed, generation, steps, task, *found, seconds if generation else 0.0, marks[name])
        append_rows(out, [dict(zip(COLUMNS, values, strict=True))], COLUMNS)


def mix(study: Study, setting: str, seed: int, runs: Path, out: Path) -> None:
    """Appends the mean of mu along two runs to `out`, by kind of layer and step, once; `mu_other` is the last direction's."""
    config = study.config(setting, seed)
    if out.exists() and ((rows := pd.read_csv(out)).setting.eq(setting) & rows.meta_seed.eq(seed)).any():
        return
    learned = LearnedSchedule.read(trained(config, setting, runs) / f"theta-{config.generations:05d}.safetensors")
    decided = pd.concat([record(learned, config.steps[1], task, study.purpose, config.workload, config.task) for task in (0, 1)])
    means = decided.groupby(["kind", "step"])[[f"mu_{name}" for name in learned.config.directions]].mean().reset_index()
    means = means.rename(columns={f"mu_{learned.config.directions[-1]}": "mu_other"}).assign(setting=setting, meta_seed=seed)
    means.to_csv(out, mode="a", header=not out.exists(), index=False, float_format="%.4f")
