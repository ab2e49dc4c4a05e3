"""What the best schedule without a controller reaches: lambda and mu learned for each layer and step, for runs of one length.

    python evaluate/ceiling.py --steps 10 25

learns a table from the values of the unlearned start, by the meta-gradients of `l3rs meta-train --search gradient` on meta-train tasks,
and judges it on meta-validation tasks against that start and against each schedule of `--learned`, whose decisions are also averaged
into a table of their own. The tasks are those from number `--first` on: the first ones have chosen the generation of a shipped schedule.
Rows go to `evaluate/results/ceiling.csv`; what is there already, with the same settings, is not made again, and
a table that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from options import ROOT, count, schedule
from tqdm import trange

from l3rs.directions import DIRECTIONS
from l3rs.evaluation.ceiling import Tables, as_table, with_directions
from l3rs.evaluation.cell_tables import WORST
from l3rs.evaluation.cells import read_rows
from l3rs.files import append_rows
from l3rs.finetuning.tasks import task_seed
from l3rs.meta.config import GradientConfig, MetaTrainConfig, read_config
from l3rs.meta.descent import Descent
from l3rs.meta.folder import MetaTrainFolder, mark_of
from l3rs.meta.problem import FineTuning
from l3rs.meta.train import one_generation, start
from l3rs.schedules.learned import identity
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.stats import interval

FIELDS = ("arm", "steps", "task", "accuracy", "loss", "seconds", "made_with")
START = "unlearned start"


def learn(learned: LearnedSchedule, config: MetaTrainConfig, out: Path) -> tuple[LearnedSchedule, float]:
    """Descends from a table, `learned.theta`, or goes on with it; gives the last table, and the seconds that it took."""
    problem = Tables(learned, config)
    search = Descent(problem, learned.theta, config, config.generations)
    with MetaTrainFolder(out, config) as folder:
        folder.load_state(search)
        for _ in trange(search.generation, config.generations, desc=out.name, initial=search.generation, total=config.generations):
            started = time.perf_counter()
            row = one_generation(problem, search, config)
            folder.append(row | {"seconds": round(time.perf_counter() - started, 2)})
            folder.save_state(search)
        seconds = sum(float(row["seconds"]) for row in folder.curve())
    return replace(learned, theta=search.theta), round(seconds, 1)


Made = Callable[[], tuple[LearnedSchedule, float]]  # a schedule, and the seconds that learning it took


def judge(file: Path, tasks: range, config: MetaTrainConfig, arm: str, kind: type[FineTuning], made: Made, *settings: Any) -> pd.DataFrame:
    """Appends the rows of an arm on these tasks that are missing, and gives those of all of them, and no other.

    `settings`, besides `config`, tell them from others of its name.
    """
    mark, steps = mark_of(config, arm, *settings), config.steps[0]
    rows = read_rows(file, FIELDS)
    missing = sorted(set(tasks) - set(rows[rows.made_with == mark].task))
    if missing:
        schedule, seconds = made()
        found = kind(schedule, config).runs(schedule.theta, "meta-validation", [(task_seed(task), steps) for task in missing])
        new = [(arm, steps, task, round(a, 6), round(x, 6), seconds, mark) for task, (a, x) in zip(missing, found, strict=True)]
        append_rows(file, [dict(zip(FIELDS, row, strict=True)) for row in new], FIELDS)
        rows = read_rows(file, FIELDS)
    return rows[(rows.made_with == mark) & rows.task.isin(tasks)]


def tabled(learned: LearnedSchedule, config: MetaTrainConfig, runs: int, directions: tuple[str, ...]) -> LearnedSchedule:
    """The table of a schedule's decisions, averaged over this many runs, in the place of its meta-parameters."""
    theta = as_table(learned, config, config.steps[0], range(runs), directions)
    return replace(with_directions(learned, directions), theta=theta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/meta_train/icons_any_network.yaml", help="of meta-training")
    parser.add_argument("--learned", type=schedule, nargs="+", default=[], help="schedules to compare with, by names or paths")
    parser.add_argument("--steps", type=count, nargs="+", default=[10, 25], help="lengths of runs, a table each (default: 10 25)")
    parser.add_argument("--iterations", type=count, nargs="+", default=[120, 60], help="of each length (default: 120 60)")
    parser.add_argument("--lr", type=float, default=0.03, help="of Adam, in nats; it falls to 0 along a cosine (default: %(default)s)")
    parser.add_argument("--meta-batch", type=count, default=1, help="tasks an iteration (default: %(default)s)")
    parser.add_argument("--six", action="store_true", help="gives the table all six directions; the start has SGD and Adam")
    parser.add_argument("--tasks", type=count, default=24, help="meta-validation tasks to judge on (default: %(default)s)")
    parser.add_argument("--first", type=int, default=60, help="number of the first one (default: %(default)s)")
    parser.add_argument(
        "--recorded", type=count, default=4, help="meta-train tasks that decisions are averaged over (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ceiling"), help="folder of what is being learned (default: %(default)s)")
    parser.add_argument("--rows", type=Path, default=ROOT / "evaluate/results/ceiling.csv", help="file for the rows")
    args = parser.parse_args()
    if len(args.iterations) != len(args.steps):
        parser.error(f"--iterations must be a number for each of --steps (got {len(args.iterations)} for {len(args.steps)})")
    if args.first < 0:
        parser.error(f"--first must be at least 0 (got {args.first})")
    torch.set_num_threads(1)
    base = read_config(args.config, search="gradient", workers=1, meta_batch=args.meta_batch, gradient=GradientConfig(lr=args.lr))
    begun = start(base)
    directions = tuple(dict.fromkeys([*begun.config.directions, *(DIRECTIONS if args.six else ())]))
    compared: list[LearnedSchedule] = args.learned
    twice = [one.name for i, one in enumerate(compared) if one.name in {other.name for other in compared[:i]} | {START}]
    if twice:
        parser.error(f"--learned must be schedules of different names, by which rows are told apart (got {twice[0]} twice)")
    arms = []
    for steps, iterations in zip(args.steps, args.iterations, strict=True):
        config = replace(base, steps=(steps, steps), generations=iterations)
        judged = partial(judge, args.rows, range(args.first, args.first + args.tasks), config)
        arms.append(judged(START, FineTuning, lambda: (begun, 0.0)))
        for one in compared:
            arms.append(judged(one.name, FineTuning, lambda one=one: (one, 0.0), identity(one)))
            average = partial(tabled, one, config, args.recorded, one.config.directions)
            arms.append(judged(f"{one.name}, averaged", Tables, lambda f=average: (f(), 0.0), identity(one), args.recorded))
        out = args.out / f"{steps}-steps-{len(directions)}-directions"
        first = partial(tabled, begun, config, args.recorded, directions)
        what = f"table of {len(directions)} directions"
        arms.append(judged(what, Tables, lambda f=first, c=config, out=out: learn(f(), c, out), iterations, args.recorded))
    show(pd.concat(arms), args.steps)


def show(rows: pd.DataFrame, lengths: Sequence[int]) -> None:
    """Prints accuracy, loss, and the lead over the unlearned start in points, with its 95% interval. A run that diverged has the worst."""
    rows = rows.fillna(WORST)
    for steps in lengths:
        for measure, scale, unit in (("accuracy", 100, "points"), ("loss", -1, "")):
            values = rows[rows.steps == steps].pivot_table(index="task", columns="arm", values=measure)
            for arm in values:
                gaps = scale * (values[arm] - values[START]).dropna().to_numpy()
                low, high = interval(gaps)
                lead = "" if arm == START else f"  ahead by {np.mean(gaps):+.3f} {unit} ({low:+.3f} to {high:+.3f})"
                print(f"{steps:4} steps, {measure:8} {arm:40} {values[arm].mean():.4f}{lead}")


if __name__ == "__main__":
    main()
