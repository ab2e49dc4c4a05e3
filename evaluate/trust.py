"""How far L3RS trusts other optimizers: torch's Muon and the shipped Celo2-base as base directions beside SGD and Adam.

    python evaluate/trust.py

meta-trains a schedule with each of them as the ablations are, at the same cost (`configs/ablations.yaml`), appends rows of its start and
its end to `evaluate/results/ablations/rows.csv`, beside `SGD, Adam` of `evaluate/ablations.py`, and writes the mean of mu by kind of layer
along two runs to `evaluate/results/ablations/trust.csv`. What is there is not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from ablations import ROOT

from l3rs.controller.config import L3RSConfig
from l3rs.directions import TorchOptimizerDirection, register
from l3rs.evaluation.decisions import record
from l3rs.evaluation.study import measure
from l3rs.learned import Celo2, weights
from l3rs.meta.config import read_config
from l3rs.schedules.schedule import LearnedSchedule

OTHERS = {"Muon": "torch.optim.Muon", "Celo2-base": "celo2-base"}  # directions by name
RESULTS = ROOT / "evaluate" / "results" / "ablations"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(OTHERS), help="some of them (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of meta-training")
    parser.add_argument("--tasks", type=int, default=40, help="meta-test tasks")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder for the meta-trainings")
    args = parser.parse_args()
    theta = weights.load("icons-celo2-base", "celo2-base").theta  # read once: an optimizer is made for each run
    register(OTHERS["Celo2-base"], TorchOptimizerDirection(Celo2, theta=theta, orthogonalize=False, vectors="learned"))
    base = replace(read_config(ROOT / "configs" / "ablations.yaml"), workers=1)
    torch.set_num_threads(1)
    file = RESULTS / "trust.csv"
    for name in args.only or OTHERS:
        direction = OTHERS[name]
        setting, schedule = f"SGD, Adam, {name}", L3RSConfig(directions=("sgd", "adam", direction))
        tables = []
        for seed in args.seeds:
            config = replace(base, schedule=schedule, nes=replace(base.nes, seed=seed))
            measure(config, setting, args.runs, args.tasks, "meta-test", RESULTS / "rows.csv")
            folder = args.runs / f"{setting.replace(' ', '-').replace(',', '')}-{seed}"
            learned = LearnedSchedule.read(folder / f"theta-{config.generations:05d}.safetensors")
            decided = pd.concat([record(learned, config.steps[1], task, workload=config.workload) for task in (0, 1)])
            mu = [c for c in decided if c.startswith("mu_")]
            tables.append(decided.groupby(["kind", "step"])[mu].mean().reset_index().assign(setting=setting, meta_seed=seed))
        new = pd.concat(tables).rename(columns={f"mu_{direction}": "mu_other"})
        whole = pd.concat([pd.read_csv(file), new] if file.exists() else [new])
        whole = whole.drop_duplicates(["setting", "meta_seed", "kind", "step"], keep="last")
        whole.to_csv(file, index=False, float_format="%.4f")
        mine = whole[(whole.setting == setting) & whole.step.isin([1, config.steps[1]])]
        ends = mine.groupby(["kind", "step"])[["mu_sgd", "mu_adam", "mu_other"]].mean()
        print(f"{setting}: mean of mu at the first and at the last step\n{ends.round(2).to_string()}")


if __name__ == "__main__":
    main()
