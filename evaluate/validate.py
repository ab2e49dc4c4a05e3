"""Is one schedule better than another? Both on the same meta-validation tasks of a config of meta-training, and the difference.

    python evaluate/validate.py --config configs/meta_train/generalist.yaml --schedules generalist runs/mine/mine.safetensors

The first schedule is the one that the others are compared with. Tasks are those of meta-validation from number `--first` on; a run of
meta-training looks at the first ones, and chooses on those after them. Rows go to `--rows`; what is there already is not made again. They
have a fingerprint of the config, and of the networks and classes that it names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from options import RESULTS, count
from tqdm import tqdm

from l3rs.evaluation.cell_tables import WORST, points, signed
from l3rs.evaluation.cells import read_rows
from l3rs.files import append_rows
from l3rs.finetuning.tasks import task_seed
from l3rs.finetuning.variety import META_PURPOSES
from l3rs.meta.config import read_config
from l3rs.meta.folder import mark_of
from l3rs.meta.problem import FineTuning
from l3rs.schedules.find import load
from l3rs.schedules.learned import identity
from l3rs.stats import interval
from l3rs.text import first_line

FIELDS = ("config", "schedule", "steps", "task", "accuracy", "loss")


def main() -> None:
    """Makes the runs that are missing, and prints a line for each length and schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="whose networks, images, heads and statistics the runs have")
    parser.add_argument(
        "--schedules", nargs="+", required=True, metavar="SCHEDULE", help="names, files or Hub ids; the first is the reference"
    )
    parser.add_argument("--steps", type=count, nargs="+", default=[10, 25, 50], help="lengths of runs (default: 10 25 50)")
    parser.add_argument("--tasks", type=count, default=30, help="at each length (default: %(default)s)")
    parser.add_argument("--first", type=int, default=60, help="number of the first one (default: %(default)s)")
    parser.add_argument("--rows", type=Path, default=RESULTS / "validated.csv", help="file for the rows (default: %(default)s)")
    args = parser.parse_args()
    if args.first < 0:
        parser.error(f"--first must be at least 0 (got {args.first})")
    try:
        config, schedules = read_config(args.config), {identity(one): one for one in map(load, args.schedules)}
        if config.variety is None:
            config.workload.prepare(META_PURPOSES, config.task)
        else:
            config.variety.prepare()
        problems = {mark: FineTuning(one, config) for mark, one in schedules.items()}  # they may have different forms
    except (ValueError, TypeError, OSError) as error:
        parser.error(first_line(error))
    torch.set_num_threads(1)
    called = f"{args.config.stem} {mark_of(config)}"
    numbers = range(args.first, args.first + args.tasks)
    there = read_rows(args.rows, FIELDS)
    done = set(zip(there.config, there.schedule, there.steps, there.task, strict=True))
    planned = [(called, mark, k, n) for k in args.steps for n in numbers for mark in schedules]
    for name, mark, k, n in tqdm([key for key in planned if key not in done]):
        ((accuracy, loss),) = problems[mark].runs(schedules[mark].theta, "meta-validation", [(config.seed_for(task_seed(n), n), k)])
        row = (name, mark, k, n, round(accuracy, 6), round(loss, 6))
        append_rows(args.rows, [dict(zip(FIELDS, row, strict=True))], FIELDS)
    rows = read_rows(args.rows, FIELDS)
    report(rows[(rows.config == called) & rows.task.isin(numbers)], list(schedules), args.steps)


def report(rows: pd.DataFrame, marks: list[str], lengths: list[int]) -> None:
    """Prints accuracy and loss, and the lead over the first, paired by task, with its 95% interval. A run that diverged has the worst."""
    rows = rows.fillna(WORST)
    for k in lengths:
        wide = rows[rows.steps == k].pivot_table(index="task", columns="schedule", values=["accuracy", "loss"])
        for mark in marks:
            line = f"{k} steps, {mark}: accuracy {wide['accuracy'][mark].mean():.3f}, loss {wide['loss'][mark].mean():.3f}"
            if mark != marks[0]:
                gained = (wide["loss"][marks[0]] - wide["loss"][mark]).to_numpy()
                lead = points(wide["accuracy"][mark] - wide["accuracy"][marks[0]])
                line += f"; {lead} points ahead, and {signed(gained.mean(), *interval(gained), 1, 3)} in loss"
            print(f"{line}, {len(wide)} tasks")


if __name__ == "__main__":
    main()
