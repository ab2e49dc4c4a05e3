"""Tunes a learning rate: searches a grid until the best is not at its edge, and keeps all rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from tqdm import tqdm

from l3rs.evaluation.cells import EvaluationConfig, contains_shorter, filled, identity_of, made_with, read_rows
from l3rs.files import append_rows, write_atomically
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.baselines.rates import tuned_learning_rates
from l3rs.finetuning.runs import FIELDS, Run, execute, execute_all, row

HORIZONS = (10, 14, 20, 25, 35, 50, 71, 100)
START = {
    "adam": -2.5,
    "adam-cosine": -2.5,
    "adam-cosine-head10": -3.0,
    "sgd-cosine": -1.0,
    "adamw-cosine-head10": -2.5,
    "adamw-layer-decay": -1.5,
    "schedule-free": -2.0,
    "muon-cosine": -2.0,
    "soap-cosine": -2.0,
    "celo2": -1.5,
    "celo2-base": -1.5,
}  # log10 of the first guess
TRIED = {"random": "tuning.csv", "start": "tuning-start.csv"}  # rows behind the shipped rates, by the head that runs begin with
COLUMNS = (*FIELDS, "head", "learned", "made_with")  # of a row: what a run is on, and its settings, are its `made_with`
MOST = 20  # half decades from 1, at most


def on_grid(half_decades: int) -> float:
    """The learning rate at this place of the grid: 1 or 3 times a power of ten; 0 is 1."""
    decade, half = divmod(half_decades, 2)
    return float(f"{3 if half else 1}e{decade}")


class Tuning:
    """The rows so far, and their means.

    Args:
        path: file of the rows.
        tasks: number of tasks for each value, or more where there are rows of more.
        workers: processes of one thread each.
        horizons: to tune at.
        model: a run like those to make, except for its arm.
    """

    def __init__(self, path: Path, tasks: int, workers: int, horizons: Sequence[int], model: Run) -> None:
        self.path, self.tasks, self.workers, self.horizons, self.model = path, tasks, workers, horizons, model
        self.rows = read_rows(path, COLUMNS)
        if lacking := set(COLUMNS) - set(self.rows):
            raise ValueError(f"{path} was written by an earlier version, and lacks {', '.join(sorted(lacking))}; remove it to tune anew")
        self.rows["learned"] = filled(self.rows["learned"], "")  # an empty cell is read as NaN

    def found(self, arm: Arm, lr: float, steps: int) -> pd.Series[float]:
        """The accuracy of each run by its task's seed; a diverged run counts as 0. Rows of other images, tasks or settings do not count."""
        there = self._runs(arm, steps)
        return there[there.lr == lr].set_index("task_seed").accuracy.fillna(0)

    def seeds(self, arm: Arm, steps: int) -> set[int]:
        """The tasks for each value: those asked for and those of any row, so that all values are compared on the same."""
        return set(range(self.tasks)) | set(self._runs(arm, steps).task_seed)

    def _runs(self, arm: Arm, steps: int) -> pd.DataFrame:
        """The rows of an arm at a horizon, of these images, tasks and settings."""
        mine = (self.rows.optimizer == arm.optimizer) & (self.rows.steps == steps)
        for name, value in self._about(arm).items():
            mine &= self.rows[name] == value
        return self.rows[mine]

    def _about(self, arm: Arm) -> dict[str, str]:
        """What tells an arm's rows from those of other images, tasks or settings."""
        of = made_with(replace(self.model, arm=arm))
        return {"head": arm.head, "learned": identity_of(arm.optimizer, arm.learned), "made_with": of}

    def accuracy(self, arm: Arm, lr: float, steps: int) -> float:
        """The mean over the tasks."""
        return float(self.found(arm, lr, steps).mean())

    def measure(self, arm: Arm, rates: list[float], steps: int) -> None:
        """Makes the missing runs. Of an arm that `contains_shorter`, the longest is made for all horizons."""
        ends = tuple(self.horizons) if contains_shorter(replace(arm, lr=1.0)) else (steps,)
        seeds = self.seeds(arm, steps)
        runs = [
            replace(self.model, arm=replace(arm, lr=lr), steps=max(ends), task_seed=seed, evaluate_at=ends)
            for lr in rates
            for seed in sorted(seeds - set(self.found(arm, lr, steps).index))
        ]
        said, about = f"{arm.optimizer} {steps} steps, lr {rates}", self._about(arm)
        with closing(execute_all(runs, self.workers, execute)) as ended:
            for run, report in tqdm(ended, said, len(runs), disable=not runs):
                rows = [row(run, report, s) | about for s in ends]
                append_rows(self.path, rows, COLUMNS)
                new = pd.DataFrame(rows)
                self.rows = new if self.rows.empty else pd.concat([self.rows, new], ignore_index=True)

    def best(self, arm: Arm, steps: int, guess: int) -> int:
        """Finds the best point of the grid, in half decades: never at the edge; among equals, the nearest to the guess.

        Raises:
            RuntimeError: there is none within reach.
        """
        low, high = guess - 1, guess + 1
        while True:
            self.measure(arm, [on_grid(i) for i in range(low, high + 1)], steps)
            best = max(range(low, high + 1), key=lambda i: (self.accuracy(arm, on_grid(i), steps), -abs(i - guess)))
            if low < best < high:
                return best
            if not abs(best) < MOST:
                at = f"the edge of what is tried, {on_grid(best):g}"
                raise RuntimeError(f"{arm.optimizer} after {steps} steps is best at {at}: something is wrong")
            low, high = min(low, best - 1), max(high, best + 1)

    def tune(self, arms: Sequence[Arm], file: Path, lead: str) -> None:
        """Tunes each arm at every horizon, and writes the choices to `file`, below `lead`. A horizon starts at the last one's best."""
        tuned_learning_rates.cache_clear()  # the file may be another by now
        chosen = {name: dict(by) for name, by in tuned_learning_rates(str(file)).items()} if file.exists() else {}
        for arm in arms:
            guess = round(2 * START[arm.optimizer])
            mine = chosen.setdefault(arm.optimizer, {})
            for steps in self.horizons:
                guess = self.best(arm, steps, guess)
                mine[steps] = on_grid(guess)
                print(f"{arm.optimizer} {steps}: {mine[steps]:g} ({self.accuracy(arm, mine[steps], steps):.4f})", flush=True)
        text = yaml.safe_dump({name: dict(sorted(by.items())) for name, by in chosen.items()}, sort_keys=False)
        write_atomically(file, (lead + text).encode())
        tuned_learning_rates.cache_clear()


def tuned_arms(cell: EvaluationConfig) -> list[Arm]:
    """Picks the arms of a cell with a tuned learning rate, one for each optimizer.

    Raises:
        ValueError: they cannot be tuned on the cell; the message says why.
    """
    if cell.rates is None:
        raise ValueError(f"the cell {cell.cell} has no `rates`, the file that the tuned learning rates are written to")
    if not cell.workload.class_split.classes["meta-train"]:
        raise ValueError(f"the split {cell.workload.split} has no meta-train classes to tune on; tune another cell, and name its `rates`")
    tuned = [arm for arm in cell.arms if arm.tuned]
    if not tuned:
        raise ValueError(f"the cell {cell.cell} has no arm without `lr`, whose learning rate would be tuned")
    for what, values in (
        ("train the head only", {arm.head_only for arm in tuned}),
        ("begin with a head start", {arm.head for arm in tuned}),
        ("are evaluated with refreshed statistics", {arm.refresh for arm in tuned}),
    ):
        if len(values) > 1:
            raise ValueError(f"some tuned arms of the cell {cell.cell} {what}, and others do not; give them a cell, and `rates`, each")
    return list({arm.optimizer: arm for arm in tuned}.values())
