"""What a head in closed form and BatchNorm's recent statistics are worth, on meta-validation tasks of Icons: docs/head-start.md.

python evaluate/head_start.py
python evaluate/head_start.py --weights glyphs --learned generalist --only start    # another network, away from its own images
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import pandas as pd
import torch
from options import count

from l3rs import L3RS, head_start
from l3rs.evaluation.cell_tables import WORST
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import Run, execute, execute_all
from l3rs.finetuning.unroll import unroll
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.schedules.find import SPECIALISTS, load

HEAD_START = "L3RS, head start"


def tables(learned: str) -> dict[str, dict[str, Arm]]:
    """Lists the arms of the two tables, by the names of their lines."""
    ours, other = Arm("", "l3rs", learned=learned), Arm("", "schedule-free", refresh=True)
    started = replace(ours, head="start", refresh=True)
    starts = {
        "L3RS, random head": replace(ours, refresh=True),
        HEAD_START: started,
        "schedule-free, random head": other,
        "schedule-free, head start": replace(other, head="start"),
    }
    ends = {
        "running": replace(ours, head="start"),
        "recent": replace(ours, head="start", recent=True),
        "refreshed": started,
    }
    return {"start": starts, "statistics": ends}


def shares(workload: Workload, steps: Sequence[int], learned: str, repeats: int = 3) -> dict[int, float]:
    """The time of a head start from every batch, as a share of that of the run after it, by its length: the median of some tasks."""
    bench = workbench(workload)
    found = {}
    for k in steps:
        each = []
        for seed in range(repeats):
            tasks, task, network = bench.ready("meta-train", seed, k)
            began = time.perf_counter()
            head_start(network, [task.batch(tasks.images, i) for i in range(k)])
            took = time.perf_counter() - began
            each.append(took / unroll(network, L3RS(network.named_parameters(), k, learned), tasks.images, task).seconds)
        found[k] = statistics.median(each)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=count, default=8, help="meta-validation tasks (default: %(default)s)")
    parser.add_argument("--steps", type=count, nargs="+", default=[10, 25, 50, 100], help="lengths of runs (default: 10 25 50 100)")
    parser.add_argument("--weights", choices=("icons", "glyphs"), default="icons", help="network (default: %(default)s)")
    parser.add_argument("--learned", default=SPECIALISTS[0], help="the schedule (default: %(default)s)")
    parser.add_argument("--only", choices=("start", "statistics"), help="one of the two tables")
    parser.add_argument("--workers", type=count, default=2, help="processes (default: %(default)s)")
    args = parser.parse_args()
    try:
        load(args.learned)
    except ValueError as error:
        parser.error(str(error))
    every = tables(args.learned)
    shown = {title: arms for title, arms in every.items() if args.only in (None, title)}
    arms = list(dict.fromkeys(arm for group in shown.values() for arm in group.values()))  # L3RS with both is there once
    workload = Workload(split="icons", weights=args.weights)
    runs = [
        Run("heads", arm, k, seed, "meta-validation", evaluate_at=(0,), workload=workload)
        for k in args.steps
        for seed in range(args.tasks)
        for arm in arms
    ]
    rows = []
    with closing(execute_all(runs, args.workers, execute)) as ended:
        for run, report in ended:
            found = report.head_start
            of = {"arm": run.arm, "steps": run.steps, "task": run.task_seed, "ridge": found and found.ridge, "scale": found and found.scale}
            rows.append(of | {"accuracy": report.accuracy[run.steps], "loss": report.loss[run.steps], "at 0": report.accuracy[0]})
    table = pd.DataFrame(rows).fillna(WORST)  # of a run that diverged
    for title, group in shown.items():
        print(f"\n{title}: accuracy (loss) after this many steps")
        for name, arm in group.items():
            mine = table[table.arm == arm].groupby("steps")[["accuracy", "loss"]].mean()
            print(f"{name:28}" + "  ".join(f"{k} {m.accuracy:.3f} ({m.loss:.3f})" for k, m in mine.iterrows()))
    begun = table[table.arm == every["start"][HEAD_START]].groupby("steps")[["at 0", "ridge", "scale"]].mean()
    print("\nthe head alone, with no step, from the batches of this many\n" + begun.round(3).to_string())
    torch.set_num_threads(1)
    took = shares(workload, args.steps, args.learned)
    print(
        "\ntime of a head start from all batches of this many steps, as a share of the run: "
        + ", ".join(f"{k} {x:.2f}" for k, x in took.items())
    )


if __name__ == "__main__":
    main()
