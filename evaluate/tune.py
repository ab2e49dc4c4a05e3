"""Tune the baselines' learning rates on meta-train tasks, per horizon.

    python evaluate/tune.py
    python evaluate/tune.py --names schedule-free muon-cosine --steps 10 25 50 100
    python evaluate/tune.py --names celo2-base --learned icons-celo2-base --steps 10 25 50 100    # Celo2 needs one too

appends one row a run to `evaluate/results/tuning.csv` and writes the chosen values to `l3rs/finetuning/baselines.yaml`, those
of Icons25, which are shipped. For another network or other images,

    python evaluate/tune.py --config configs/evaluate/imagenet/A.yaml --device cuda

tunes the arms of that cell that have no `lr`, on its workload, and writes to the file that it names as `rates`, and the rows beside it. The
grid has factors of about 3 (1, 3, 10, ...), starts around the last horizon's best value, and is extended until the best is not at its
edge. Rows that are there already are not run again, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from run import read_config
from tqdm import tqdm

from l3rs.evaluation.cells import CONSTANT
from l3rs.files import append_rows
from l3rs.finetuning.baselines import BASELINES
from l3rs.finetuning.runs import FIELDS, Run, execute, execute_all, row
from l3rs.processes import cores

ROOT = Path(__file__).resolve().parent.parent
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
        model: what the runs have in common.
    """

    def __init__(self, path: Path, tasks: int, workers: int, horizons: Sequence[int], model: Run) -> None:
        self.path, self.tasks, self.workers, self.horizons, self.model = path, tasks, workers, horizons, model
        self.rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(FIELDS))

    def seeds_done(self, name: str, lr: float, steps: int) -> set[int]:
        r = self.rows
        return set(r[(r.optimizer == name) & (r.lr == lr) & (r.steps == steps)].task_seed)

    def accuracy(self, name: str, lr: float, steps: int) -> float:
        """Mean accuracy over the tasks; a diverged run counts as 0 right."""
        r = self.rows
        chosen = r[(r.optimizer == name) & (r.lr == lr) & (r.steps == steps) & (r.task_seed < self.tasks)]
        return float(chosen.accuracy.fillna(0).mean())

    def measure(self, name: str, rates: list[float], steps: int) -> None:
        """Runs what is missing. A constant schedule does not depend on K: its shorter runs are the beginnings of the longest."""
        constant = name in CONSTANT
        ends = tuple(self.horizons) if constant else (steps,)
        runs = [
            replace(self.model, optimizer=name, lr=lr, steps=max(ends), task_seed=seed, evaluate_at=ends)
            for lr in rates
            for seed in sorted(set(range(self.tasks)) - self.seeds_done(name, lr, steps))
        ]
        with closing(execute_all(runs, self.workers, execute)) as ended:
            for run, report in tqdm(ended, total=len(runs), desc=f"{name} {steps} steps, lr {rates}", disable=not runs):
                rows = [row(run, report, s) for s in ends]
                append_rows(self.path, rows, FIELDS)
                new = pd.DataFrame(rows)
                self.rows = new if self.rows.empty else pd.concat([self.rows, new], ignore_index=True)

    def best(self, name: str, steps: int, guess: int) -> int:
        """The best point of the grid, in half decades: never at the edge of what was tried; among equals, the nearest to the guess."""
        low, high = guess - 1, guess + 1
        while True:
            self.measure(name, [on_grid(i) for i in range(low, high + 1)], steps)
            best = max(range(low, high + 1), key=lambda i: (self.accuracy(name, on_grid(i), steps), -abs(i - guess)))
            if low < best < high:
                return best
            if not abs(best) < MOST:
                sys.exit(f"{name} after {steps} steps is best at the edge of what is tried, {on_grid(best):g}: something is wrong")
            low, high = min(low, best - 1), max(high, best + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8, help="meta-train tasks (seeds 0, 1, ...) a value is tried on")
    parser.add_argument("--workers", type=int, default=cores(), help="processes of one thread each")
    parser.add_argument("--config", type=Path, help="a cell whose workload is tuned for (default: the shipped network on Icons)")
    parser.add_argument("--data", help="the images' folder, for the one that the config names; for splits that are not embedded")
    parser.add_argument("--names", nargs="+", choices=list(START), help="which to tune (default: the cell's, or all baselines)")
    parser.add_argument("--steps", type=int, nargs="+", help="for which horizons (default: the cell's, or 10 to 100)")
    parser.add_argument("--learned", default="auto", help="Celo2's weights: a file, or icons-celo2-base")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where runs are made (default: %(default)s)")
    args = parser.parse_args()
    names, horizons = list(BASELINES), list(HORIZONS)
    results, file = ROOT / "evaluate" / "results" / "tuning.csv", ROOT / "l3rs" / "baselines.yaml"
    model = Run("tune", "", 0.0, 1, 0, "meta-train", args.learned, device=args.device)
    if args.config:
        cell = read_config(args.config, args.data)
        if cell.rates is None:
            parser.error(f"{args.config} has no `rates`, the file that the tuned learning rates are written to")
        if not cell.workload.class_split.classes["meta-train"]:
            parser.error(f"the split {cell.workload.split} has no meta-train classes to tune on; tune another cell, and name its `rates`")
        tuned = [arm for arm in cell.arms if arm.tuned]
        if len(head_only := {arm.head_only for arm in tuned}) > 1:
            parser.error(f"some tuned arms of {args.config} train the head only, and others do not; give them a cell, and `rates`, each")
        names, horizons = list(dict.fromkeys(arm.optimizer for arm in tuned)), sorted(cell.horizons)
        file = Path(cell.rates)
        results = file.with_suffix(".csv")
        model = replace(model, workload=cell.workload, task=cell.task, head_only=True in head_only)
        try:
            if not cell.workload.embedded:
                cell.workload.prepare(("meta-train",), cell.task)
            cell.workload.network(cell.task.classes)
        except ValueError as error:
            parser.error(str(error))
    horizons = sorted(args.steps or horizons)
    results.parent.mkdir(parents=True, exist_ok=True)
    tuning = Tuning(results, args.tasks, args.workers, horizons, model)
    chosen: dict[str, dict[int, float]] = yaml.safe_load(file.read_text()) if file.exists() else {}
    for name in args.names or names:
        guess = round(2 * START[name])
        chosen.setdefault(name, {})
        for steps in horizons:
            guess = tuning.best(name, steps, guess)
            chosen[name][steps] = on_grid(guess)
            print(f"{name} {steps}: {chosen[name][steps]:g} ({tuning.accuracy(name, chosen[name][steps], steps):.4f})", flush=True)
    header = (
        f"# python evaluate/tune.py{f' --config {args.config}' if args.config else ''}\n"
        "# Horizon: the learning rate with the best mean accuracy on meta-train tasks. "
        f"All rows: {results.relative_to(ROOT) if results.is_relative_to(ROOT) else results}\n"
    )
    file.write_text(header + yaml.safe_dump({name: dict(sorted(by.items())) for name, by in chosen.items()}, sort_keys=False))


if __name__ == "__main__":
    main()
