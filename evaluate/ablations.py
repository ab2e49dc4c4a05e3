"""The paper's ablations, Tables 2 to 4: controllers, adaptive features, sets of base directions; at small cost, equal for all.

    python evaluate/ablations.py

meta-trains every variant of `l3rs.schedules.variants` as `configs/ablations.yaml` says, and runs its start and its end on the same
meta-test tasks. One row a run is appended to `evaluate/results/ablations/rows.csv`; what is there already is not made again, and a
meta-training that was stopped goes on where it was. Variants of the three tables that are one and the same are made once.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from l3rs.evaluation.study import measure
from l3rs.meta.config import read_config
from l3rs.schedules.variants import NAMES

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "ablations.yaml", help="what all variants have in common")
    parser.add_argument("--only", nargs="+", help="some variants by name (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of meta-training")
    parser.add_argument("--tasks", type=int, default=40, help="meta-test tasks")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder for the meta-trainings")
    parser.add_argument("--out", type=Path, default=ROOT / "evaluate" / "results" / "ablations" / "rows.csv", help="file for the rows")
    parser.add_argument("--workers", type=int, default=1, help="processes; runs this short gain little from more than one")
    args = parser.parse_args()
    unknown = sorted(set(args.only or ()) - set(NAMES.values()))
    if unknown:
        parser.error(f"--only must be one or more of {', '.join(map(repr, NAMES.values()))} (got {unknown[0]!r})")
    base = read_config(args.config)
    if args.workers == 1:
        torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for schedule, name in NAMES.items():
            if args.only is None or name in args.only:
                nes = replace(base.nes, seed=seed)
                config = replace(base, schedule=schedule, specialist=schedule.by_layer, nes=nes, workers=args.workers)
                measure(config, name, args.runs, args.tasks, "meta-test", args.out)


if __name__ == "__main__":
    main()
