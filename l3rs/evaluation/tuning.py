"""Tuning a learning rate: a search on a grid that goes on until the best is not at its edge, from rows that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from tqdm import tqdm

from l3rs.evaluation.cells import CONSTANT, EvaluationConfig, read_rows
from l3rs.files import append_rows
from l3rs.finetuning.arms import Arm
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
MOST = 20  # half decades from 1 that a learning rate may be away


def on_grid(half_decades: int) -> float:
    """The grid: 1 and 3 times every power of ten, by their number of half decades from 1."""
    decade, half = divmod(half_decades, 2)
    return float(f"{3 if half else 1}e{decade}")


class Tuning:
    """The rows so far, and the means that they give.

    Args:
        path: file of the rows.
        tasks: how many each value is tried on.
        workers: processes of one thread each.
        horizons: all that are tuned.
        model: what the runs have in common; their arm is another.
    """

    def __init__(self, path: Path, tasks: int, workers: int, horizons: Sequence[int], model: Run) -> None:
        self.path, self.tasks, self.workers, self.horizons, self.model = path, tasks, workers, horizons, model
        self.rows = read_rows(path, FIELDS)

    def found(self, arm: Arm, lr: float, steps: int) -> pd.Series[float]:
        """The accuracy of each run on the tasks, by their seeds; a diverged run counts as 0 right."""
        r = self.rows
        mine = (r.optimizer == arm.optimizer) & (r.lr == lr) & (r.steps == steps) & (r.task_seed < self.tasks)
        return r[mine].set_index("task_seed").accuracy.fillna(0)

    def accuracy(self, arm: Arm, lr: float, steps: int) -> float:
        """The mean over the tasks."""
        return float(self.found(arm, lr, steps).mean())

    def measure(self, arm: Arm, rates: list[float], steps: int) -> None:
        """Runs what is missing. A constant schedule does not depend on K: its shorter runs are the beginnings of the longest."""
        ends = tuple(self.horizons) if arm.optimizer in CONSTANT else (steps,)
        runs = [
            replace(self.model, arm=replace(arm, lr=lr), steps=max(ends), task_seed=seed, evaluate_at=ends)
            for lr in rates
            for seed in sorted(set(range(self.tasks)) - set(self.found(arm, lr, steps).index))
        ]
        said = f"{arm.optimizer} {steps} steps, lr {rates}"
        with closing(execute_all(runs, self.workers, execute)) as ended:
            for run, report in tqdm(ended, said, len(runs), disable=not runs):
                rows = [row(run, report, s) for s in ends]
                append_rows(self.path, rows, FIELDS)
                new = pd.DataFrame(rows)
                self.rows = new if self.rows.empty else pd.concat([self.rows, new], ignore_index=True)

    def best(self, arm: Arm, steps: int, guess: int) -> int:
        """The best point of the grid, in half decades: never at the edge of what was tried; among equals, the nearest to the guess.

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
        """Tunes each at every horizon, the guess being what was best at the last, and writes to `file` what was chosen, below `lead`."""
        chosen: dict[str, dict[int, float]] = yaml.safe_load(file.read_text()) if file.exists() else {}
        for arm in arms:
            guess = round(2 * START[arm.optimizer])
            mine = chosen.setdefault(arm.optimizer, {})
            for steps in self.horizons:
                guess = self.best(arm, steps, guess)
                mine[steps] = on_grid(guess)
                print(f"{arm.optimizer} {steps}: {mine[steps]:g} ({self.accuracy(arm, mine[steps], steps):.4f})", flush=True)
        file.write_text(lead + yaml.safe_dump({name: dict(sorted(by.items())) for name, by in chosen.items()}, sort_keys=False))


def tuned_arms(cell: EvaluationConfig) -> list[Arm]:
    """The arms of a cell whose learning rate is a tuned one, one of each optimizer.

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
    if len({arm.head_only for arm in tuned}) > 1:
        raise ValueError(
            f"some tuned arms of the cell {cell.cell} train the head only, and others do not; give them a cell, and `rates`, each"
        )
    return list({arm.optimizer: arm for arm in tuned}.values())
