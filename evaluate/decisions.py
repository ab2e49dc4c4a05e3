"""Record what a schedule decides along a few runs: lambda and mu of every layer at every step, and the time features.

    python evaluate/decisions.py                                      # the shipped specialist, 25 and 100 steps, two tasks of Icons25Eval
    python evaluate/decisions.py --learned runs/x/x.safetensors --steps 10 250 --tasks 5

writes `NAME.parquet` and `NAME-time.parquet` to `evaluate/results/decisions`, which Figures 4, 5, 8 and 9 are drawn from. The rows are a
function of the schedule and the tasks' seeds; a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from options import RESULTS, count, schedule

from l3rs.evaluation.decisions import record, time_features
from l3rs.schedules.schedule import LearnedSchedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learned", type=schedule, default="icons-resnet34-paper", help="by name or path (default: %(default)s)")
    parser.add_argument("--steps", type=count, nargs="+", default=[25, 100], help="lengths of the runs (default: 25 100)")
    parser.add_argument("--tasks", type=count, default=2, help="tasks of each length, of seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "decisions", help="folder (default: evaluate/results/decisions)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    learned: LearnedSchedule = args.learned
    args.out.mkdir(parents=True, exist_ok=True)
    tables = {
        learned.name: pd.concat([record(learned, steps, seed) for steps in args.steps for seed in range(args.tasks)], ignore_index=True),
        f"{learned.name}-time": time_features(learned, args.steps),
    }
    for name, table in tables.items():
        file = args.out / f"{name}.parquet"
        table.to_parquet(file, index=False, compression="zstd")
        print(f"{len(table):,} rows in {file}, {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
