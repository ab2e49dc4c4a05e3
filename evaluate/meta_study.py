"""A study, at small cost, of what matters most in meta-training: noise, learning rate, decay, population, unit of lambda, directions.

    python evaluate/meta_study.py

meta-trains every setting of `configs/meta_study.yaml` at the same cost and runs what comes out, and the start of it, on the same
meta-validation tasks. One row a run is appended to `evaluate/results/meta_study.csv`; what is there already is not made again, and a
meta-training that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml

from l3rs.evaluation.study import measure, with_overrides
from l3rs.meta.config import MetaTrainConfig

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "meta_study.yaml", help="base and settings")
    parser.add_argument("--only", nargs="+", help="some settings by name (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of meta-training")
    parser.add_argument("--tasks", type=int, default=16, help="meta-validation tasks at each horizon")
    parser.add_argument("--runs", type=Path, default=Path("runs/meta-study"), help="folder for the meta-trainings")
    parser.add_argument("--out", type=Path, default=ROOT / "evaluate" / "results" / "meta_study.csv", help="file for the rows")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 is one a core")
    args = parser.parse_args()
    plan = yaml.safe_load(args.config.read_text())
    unknown = sorted(set(args.only or ()) - set(plan["settings"]))
    if unknown:
        parser.error(f"--only must be one or more of {', '.join(plan['settings'])} (got {unknown[0]!r})")
    if args.workers == 1:
        torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for setting in args.only or plan["settings"]:
            overrides = {**plan["base"], **plan["settings"][setting], "nes.seed": seed, "workers": args.workers}
            config = with_overrides(MetaTrainConfig(), overrides)
            measure(config, setting, args.runs, args.tasks, "meta-validation", args.out)


if __name__ == "__main__":
    main()
