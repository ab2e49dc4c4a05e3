"""Run VeLO, Celo and Celo2 on Icons25Eval, on the same tasks as L3RS and the baselines of `evaluate/results/icons25eval.csv`.

    python evaluate/learned.py --arm celo-og celo theta.state          # published weights, used as they are
    python evaluate/learned.py --arm celo-og-head celo theta.state --head-only
    python evaluate/learned.py --arm celo2-base celo2-base runs/celo2-base/icons-celo2-base.safetensors --tune

appends one row a run to `evaluate/results/learned.csv`; what is there is not made again. With `--tune`, which Celo2 needs, as it has a
learning rate, its `lr` is chosen for each horizon on meta-train tasks first, from factors of about 3, as the baselines' are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from l3rs.learned.weights import KINDS, load
from l3rs.runs import FIELDS, Run, append_rows, execute, execute_all, row

RESULTS = Path(__file__).resolve().parent / "results"


def make(runs: Sequence[Run], out: Path, workers: int) -> pd.DataFrame:
    """Makes the runs that have no row yet; gives all rows."""
    rows = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=list(FIELDS))
    done = set(zip(rows.cell, rows.optimizer, rows.lr, rows.steps, rows.task_seed, strict=True))
    missing = [run for run in runs if (run.cell, run.label, run.lr, run.steps, run.task_seed) not in done]
    for run, report in tqdm(execute_all(missing, workers, execute), total=len(missing), desc=runs[0].label, disable=not missing):
        append_rows(out, [row(run, report, run.steps)])
    return pd.read_csv(out)


def tuned(label: str, optimizer: str, file: str, steps: int, tasks: int, out: Path, workers: int) -> float:
    """The best lr at this horizon, of a grid of 1 and 3 times powers of ten that is extended until the best is inside of it."""

    def accuracy(half_decades: int) -> float:
        lr = float(f"{3 if half_decades % 2 else 1}e{half_decades // 2}")
        runs = [Run("tune", optimizer, lr, steps, seed, "meta-train", file, label=label) for seed in range(tasks)]
        rows = make(runs, out, workers)
        mine = rows[(rows.cell == "tune") & (rows.optimizer == label) & (rows.lr == lr) & (rows.steps == steps)]
        return float(mine[mine.task_seed < tasks].accuracy.fillna(0).mean())

    tried = {i: accuracy(i) for i in (-4, -3, -2)}
    while (best := max(tried, key=lambda i: tried[i])) in (min(tried), max(tried)):
        beyond = best - 1 if best == min(tried) else best + 1
        tried[beyond] = accuracy(beyond)
    return float(f"{3 if best % 2 else 1}e{best // 2}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", nargs=3, metavar=("LABEL", "OPTIMIZER", "FILE"), required=True, help=f"OPTIMIZER: {', '.join(KINDS)}")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50, 100], help="horizons (default: 10 25 50 100)")
    parser.add_argument("--tasks", type=int, default=50, help="meta-test tasks at each horizon (default: 50)")
    parser.add_argument("--head-only", action="store_true", help="freeze all but the head")
    parser.add_argument("--tune", action="store_true", help="choose lr for each horizon on 8 meta-train tasks")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each (default: one a core)")
    parser.add_argument("--out", type=Path, default=RESULTS / "learned.csv", help="file for the rows")
    args = parser.parse_args()
    label, optimizer, file = args.arm
    if optimizer not in KINDS:
        parser.error(f"--arm names {optimizer!r}; there are {', '.join(KINDS)}")
    try:
        load(file, optimizer)
    except ValueError as error:
        parser.error(str(error))
    for steps in sorted(args.steps, reverse=True):
        lr = tuned(label, optimizer, file, steps, 8, args.out, args.workers) if args.tune else 1.0
        one = Run("icons25eval", optimizer, lr, steps, 0, "meta-test", file, label=label, head_only=args.head_only)
        make([replace(one, task_seed=seed) for seed in range(args.tasks)], args.out, args.workers)
    rows = pd.read_csv(args.out)
    mine = rows[(rows.cell == "icons25eval") & (rows.optimizer == label)]
    print(mine.groupby("steps").agg(accuracy=("accuracy", "mean"), loss=("loss", "mean"), lr=("lr", "first"), tasks=("accuracy", "size")))


if __name__ == "__main__":
    main()
