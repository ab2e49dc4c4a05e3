"""What a head in closed form and BatchNorm's recent statistics are worth, on meta-validation tasks of Icons: docs/head-start.md.

python evaluate/head_start.py
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace

import pandas as pd

from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import Run, execute, execute_all
from l3rs.schedules.find import SPECIALISTS

OURS, OTHER = Arm("", "l3rs", learned=SPECIALISTS[0]), Arm("", "schedule-free", refresh=True)
STATISTICS = {
    "running": replace(OURS, head="start"),
    "recent": replace(OURS, head="start", recent=True),
    "refreshed": replace(OURS, head="start", refresh=True),
}
STARTS = {
    "L3RS, random head": replace(OURS, refresh=True),
    "L3RS, head start": STATISTICS["refreshed"],
    "schedule-free, random head": OTHER,
    "schedule-free, head start": replace(OTHER, head="start"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8, help="meta-validation tasks (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50, 100], help="lengths of runs (default: 10 25 50 100)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    args = parser.parse_args()
    arms = {arm: name for table in (STARTS, STATISTICS) for name, arm in table.items()}  # L3RS with both is there once
    runs = [
        Run("heads", arm, k, seed, "meta-validation", evaluate_at=(0,)) for k in args.steps for seed in range(args.tasks) for arm in arms
    ]
    rows = []
    with closing(execute_all(runs, args.workers, execute)) as ended:
        for run, report in ended:
            found = report.head_start
            of = {"arm": run.arm, "steps": run.steps, "task": run.task_seed, "ridge": found and found.ridge, "scale": found and found.scale}
            rows.append(of | {"accuracy": report.accuracy[run.steps], "loss": report.loss[run.steps], "at 0": report.accuracy[0]})
    table = pd.DataFrame(rows)
    for title, group in (("start", STARTS), ("statistics", STATISTICS)):
        print(f"\n{title}: accuracy (loss) after so many steps")
        for name, arm in group.items():
            mine = table[table.arm == arm].groupby("steps")[["accuracy", "loss"]].mean()
            print(f"{name:28}" + "  ".join(f"{k} {m.accuracy:.3f} ({m.loss:.3f})" for k, m in mine.iterrows()))
    begun = table[table.arm == STARTS["L3RS, head start"]].groupby("steps")[["at 0", "ridge", "scale"]].mean()
    print("\nthe head alone, with no step, from the batches of so many\n" + begun.round(3).to_string())


if __name__ == "__main__":
    main()
