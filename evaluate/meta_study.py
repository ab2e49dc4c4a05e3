"""A study, at small cost, of what matters most in meta-training: noise, learning rate, decay, population, unit of lambda, directions.

    python evaluate/meta_study.py

meta-trains every setting of `configs/meta_study.yaml` at the same cost and runs what comes out, and the start of it, on the same
meta-validation tasks. One row a run is appended to `evaluate/results/meta_study.csv`; what is there already is not made again, and a
meta-training that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from l3rs.checkpoint import read
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.problem import fine_tune
from l3rs.meta.train import meta_train
from l3rs.runs import append_rows
from l3rs.tasks import task_seed
from l3rs.workbench import workbench

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("setting", "meta_seed", "generation", "steps", "task", "accuracy", "loss", "meta_seconds")


def with_overrides(config: Any, overrides: dict[str, Any]) -> Any:
    """A copy of a config dataclass with the fields at these dotted names replaced.

    Raises:
        ValueError: there is no such field; the message names those there are.
    """
    for name, value in overrides.items():
        first, _, rest = name.partition(".")
        known = [f.name for f in fields(config)]
        if first not in known:
            raise ValueError(f"no setting is called {first!r}; there are {', '.join(known)}")
        if rest:
            value = with_overrides(getattr(config, first), {rest: value})
        config = replace(config, **{first: tuple(value) if isinstance(value, list) else value})
    return config


def measure(config: MetaTrainConfig, setting: str, folder: Path, tasks: int, out: Path) -> None:
    """Meta-trains `config` in `folder` unless that is done, and appends the rows that are missing for its start and its end."""
    rows = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=list(COLUMNS))
    there = rows[(rows.setting == setting) & (rows.meta_seed == config.nes.seed)]
    done = set(zip(there.generation, there.steps, there.task, strict=True))
    wanted = [(g, s, t) for g in (0, config.generations) for t in range(tasks) for s in config.validation_steps]
    missing = [key for key in wanted if key not in done]
    if not missing:
        return
    meta_train(config, folder)
    seconds = round(float(pd.read_csv(folder / "curve.csv").seconds.sum()), 1)
    bench = workbench(config.workload, config.task)
    for generation, steps, task in tqdm(missing, desc=f"{setting}, seed {config.nes.seed}"):
        learned = read(folder / f"theta-{generation:05d}.safetensors")
        report = fine_tune(learned, learned.theta, bench, "meta-validation", task_seed(task), steps)
        found = (round(report.accuracy[steps], 6), round(report.loss[steps], 6))
        values = (setting, config.nes.seed, generation, steps, task, *found, seconds if generation else 0.0)
        append_rows(out, [dict(zip(COLUMNS, values, strict=True))], COLUMNS)


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
        parser.error(f"--only is {unknown[0]!r}; it is some of {', '.join(plan['settings'])}")
    if args.workers == 1:
        torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for setting in args.only or plan["settings"]:
            overrides = {**plan["base"], **plan["settings"][setting], "nes.seed": seed, "workers": args.workers}
            config = with_overrides(MetaTrainConfig(), overrides)
            measure(config, setting, args.runs / f"{setting.replace(' ', '-').replace(',', '')}-{seed}", args.tasks, args.out)


if __name__ == "__main__":
    main()
