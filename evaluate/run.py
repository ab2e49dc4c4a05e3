"""Run a meta-evaluation: every arm of a cell on the same tasks, one row for every evaluation of every run.

    python evaluate/run.py --config configs/evaluate/A.yaml               # goes on where it was
    python evaluate/run.py --config configs/evaluate/A.yaml --plan        # how much there is to do
    python evaluate/run.py --config configs/evaluate/equal.yaml --tasks 10 --steps 10 25 --arms L3RS    # a part; the rest another time
    python evaluate/run.py --config configs/evaluate/A.yaml --compact     # all rows to evaluate/results/A/rows.parquet, to be committed

Rows are appended to a CSV file of this invocation in `--out`. Runs that have a row there, or in `evaluate/results`, are not made again;
of runs that another cell beside the config has made with the same settings, rows are copied. Runs of one length must be of the same
weights. A run that fails is a row with its error; `--again` tries those anew. Arms whose learned weights or library are not there, or
whose learning rate was not tuned, are left out, unless `--arms` names them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
from options import RESULTS, count, device
from tqdm import tqdm

from l3rs.evaluation.cells import (
    KEY,
    EvaluationConfig,
    Planned,
    Rows,
    check_made_with,
    check_weights,
    identity_of,
    missing,
    plan,
    rows_of,
    shared,
)
from l3rs.evaluation.sources import chosen, read_cells
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import CELL_FIELDS, attempt, execute_all, execute_on_ray
from l3rs.learners import load
from l3rs.processes import cores
from l3rs.schedules.learned import wrong_tool


def is_there(config: EvaluationConfig, arm: Arm) -> bool:
    """Whether what the arm has learned is there, or its learning rate was tuned; says so where it is not."""
    try:
        identity_of(arm.optimizer, arm.learned)
        config.rate(arm, 1)
        if arm.lacking:
            raise ValueError(f"it {arm.lacking}")
    except ValueError as error:
        print(f"left out: {arm.name} ({error})")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the cell, such as configs/evaluate/A.yaml")
    parser.add_argument("--arms", nargs="+", help="some of its arms, by name (default: all)")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="some of those that a config with a zoo has (default: all)")
    parser.add_argument("--steps", "--horizons", type=count, nargs="+", help="some of its lengths of a run (default: all)")
    parser.add_argument("--tasks", type=count, help="run at most this many tasks at each horizon (default: as the cell has)")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="folder for the rows (default: %(default)s)")
    parser.add_argument("--data", help="the images' folder, for the one that the config names; for splits that are not embedded")
    parser.add_argument("--workers", type=count, default=cores(), help="processes of one thread each (default: one a core)")
    parser.add_argument("--ray-address", help="of a Ray cluster to run on instead")
    parser.add_argument("--device", type=device, default="cpu", help="where runs are made (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="make runs anew that failed")
    parser.add_argument("--plan", action="store_true", help="only say what there is to do")
    parser.add_argument("--compact", action="store_true", help="write all rows to evaluate/results/CELL/rows.parquet, and run nothing")
    args = parser.parse_args()
    try:
        for config in chosen(read_cells(args.config, args.data), args.networks):
            make_rows(config, args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def copied(config: EvaluationConfig, todo: Sequence[Planned], args: argparse.Namespace) -> pd.DataFrame:
    """Finds the rows of runs to make that a cell beside this one has made, each once. What is no cell is passed over."""
    found = [pd.DataFrame(columns=list(CELL_FIELDS))]
    for file in sorted(args.config.parent.glob("*.yaml")):
        try:
            cells = read_cells(file, args.data)
        except ValueError:
            continue
        for other in cells.values():
            if other.cell != config.cell and other.workload == config.workload:
                found.append(shared(config, todo, other, Rows(args.out / other.cell, RESULTS / other.cell).read()))
                if len(found[-1]):
                    print(f"{config.cell}: {len(found[-1])} rows are those of {other.cell}")
    return pd.concat([rows for rows in found if len(rows)] or found).drop_duplicates([*KEY, "steps"])


def make_rows(config: EvaluationConfig, args: argparse.Namespace) -> None:
    """Makes the missing rows of a cell, or says how many they are, or compacts them. Raises ValueError if all runs would fail."""
    rows = Rows(args.out / config.cell, RESULTS / config.cell)
    if args.compact:
        (RESULTS / config.cell).mkdir(parents=True, exist_ok=True)
        file = RESULTS / config.cell / "rows.parquet"
        print(f"{rows.compact(file)} rows in {file}, {file.stat().st_size / 2**20:.2f} MiB")
        return
    names = [arm.name for arm in config.arms]
    unknown = [name for name in args.arms or () if name not in names]
    if unknown:
        raise ValueError(f"--arms names {unknown[0]!r}; there are {', '.join(dict.fromkeys(names))}")
    arms = tuple(arm for arm in config.arms if (arm.name in args.arms if args.arms else is_there(config, arm)))
    config = config.part(arms, args.steps or (), args.tasks)
    if arms and not config.arms:
        named = ", ".join(dict.fromkeys(arm.name for arm in arms))
        raise ValueError(f"{config.cell} has no runs of {' or '.join(map(str, args.steps))} steps of these arms: {named}")
    there = rows.read()
    check_made_with(config, there)
    todo = missing(plan(config), there[there.error.isna()] if args.again else there)  # a schedule or weights may be missing
    new = copied(config, todo, args)
    left = missing(todo, new)
    steps = sum(p.run.steps for p in left)
    print(f"{config.cell}: {len(left)} runs are missing, {steps:,} steps")
    for given in dict.fromkeys(arm.learned for arm in config.arms if arm.ours and config.workload.from_scratch):
        if said := wrong_tool(load(given)):
            print(said)
    if args.plan or not todo:
        return
    config.prepare(config.purpose)
    check_weights(config, todo, there)
    if len(new):
        rows.append(new.to_dict("records"))
    if not left:
        return
    planned = {replace(p.run, device=args.device): p for p in left}
    found = execute_on_ray(list(planned), args.ray_address) if args.ray_address else execute_all(list(planned), args.workers, attempt)
    failed = 0
    with tqdm(total=steps, unit="step", desc=config.cell, smoothing=0) as bar, closing(found):
        for run, report in found:
            made = list(rows_of(planned[run], report))
            failed += "error" in made[0]
            rows.append(made)
            bar.update(run.steps)
            bar.set_postfix(arm=run.arm.name, K=run.steps, failed=failed)
    print(f"{len(left)} runs in {rows.shard}" + (f"; {failed} runs failed: see their column `error`" if failed else ""))
    if failed == len(left):
        raise ValueError(f"{config.cell}: all runs failed: {made[0]['error']}")


if __name__ == "__main__":
    main()
