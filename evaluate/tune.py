"""Tune the baselines' learning rates on meta-train tasks, per horizon.

    python evaluate/tune.py
    python evaluate/tune.py --names schedule-free muon-cosine --steps 10 25 50 100
    python evaluate/tune.py --names celo2-base --learned runs/celo2-base/icons-celo2-base.safetensors    # Celo2 needs one too

appends one row a run to `evaluate/results/tuning.csv` and writes the chosen values to `l3rs/baselines.yaml`. The grid has factors of
about 3 (1, 3, 10, ...), starts around the last horizon's best value, and is extended until the best is not at its edge. Rows
that are there already are not run again, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import yaml
from tqdm import tqdm

from l3rs.baselines import BASELINES
from l3rs.runs import FIELDS, Run, append_rows, execute, execute_all, row

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


def on_grid(half_decades: int) -> float:
    """The grid: 1 and 3 times every power of ten, by their number of half decades from 1."""
    decade, half = divmod(half_decades, 2)
    return float(f"{3 if half else 1}e{decade}")


class Tuning:
    """The rows so far, and the means that they give."""

    def __init__(self, path: Path, tasks: int, workers: int, learned: str = "auto") -> None:
        self.path, self.tasks, self.workers, self.learned = path, tasks, workers, learned
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
        constant = name == "adam"
        length = max(HORIZONS) if constant else steps
        runs = [
            Run("tune", name, lr, length, seed, "meta-train", self.learned, HORIZONS if constant else ())
            for lr in rates
            for seed in sorted(set(range(self.tasks)) - self.seeds_done(name, lr, steps))
        ]
        bar = tqdm(execute_all(runs, self.workers, execute), total=len(runs), desc=f"{name} {steps} steps, lr {rates}", disable=not runs)
        for run, report in bar:
            rows = [row(run, report, s) for s in (HORIZONS if constant else (steps,))]
            append_rows(self.path, rows)
            new = pd.DataFrame(rows)
            self.rows = new if self.rows.empty else pd.concat([self.rows, new], ignore_index=True)

    def best(self, name: str, steps: int, guess: int) -> int:
        """The best point of the grid (in half decades) at this horizon, never at the edge of what was tried."""
        low, high = guess - 1, guess + 1
        while True:
            self.measure(name, [on_grid(i) for i in range(low, high + 1)], steps)
            best = max(range(low, high + 1), key=lambda i: self.accuracy(name, on_grid(i), steps))
            if low < best < high:
                return best
            low, high = min(low, best - 1), max(high, best + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8, help="meta-train tasks (seeds 0, 1, ...) a value is tried on")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--names", nargs="+", default=list(BASELINES), choices=list(START), help="which to tune (default: the baselines)")
    parser.add_argument("--steps", type=int, nargs="+", default=list(HORIZONS), choices=HORIZONS, help="for which horizons (default: all)")
    parser.add_argument("--learned", default="auto", help="the file of Celo2's weights")
    args = parser.parse_args()
    results = ROOT / "evaluate" / "results" / "tuning.csv"
    results.parent.mkdir(exist_ok=True)
    tuning = Tuning(results, args.tasks, args.workers, args.learned)
    file = ROOT / "l3rs" / "baselines.yaml"
    chosen: dict[str, dict[int, float]] = yaml.safe_load(file.read_text())
    for name in args.names:
        guess = round(2 * START[name])
        chosen.setdefault(name, {})
        for steps in sorted(args.steps):
            guess = tuning.best(name, steps, guess)
            chosen[name][steps] = on_grid(guess)
            print(f"{name} {steps}: {chosen[name][steps]:g} ({tuning.accuracy(name, chosen[name][steps], steps):.4f})", flush=True)
    header = (
        "# python evaluate/tune.py\n"
        "# Horizon: the learning rate with the best mean accuracy on meta-train tasks. All rows: evaluate/results/tuning.csv\n"
    )
    file.write_text(header + yaml.safe_dump({name: dict(sorted(by.items())) for name, by in chosen.items()}, sort_keys=False))


if __name__ == "__main__":
    main()
