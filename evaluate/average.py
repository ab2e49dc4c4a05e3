"""Take the adaptivity out of a schedule: lambda and mu averaged over the steps and layers of a few runs, one constant schedule a horizon.

    python evaluate/average.py

writes `runs/averaged/NAME-K.safetensors` for each horizon K, the arms of `configs/evaluate/averaged.yaml`. The runs are on meta-train
tasks; of lambda the geometric mean is taken, of mu the arithmetic one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from options import count, schedule

from l3rs.evaluation.decisions import record
from l3rs.schedules.find import save
from l3rs.schedules.variants import fixed_mix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--learned", type=schedule, default="icons-resnet34-paper", help="a shipped schedule's name, or a path (default: %(default)s)"
    )
    parser.add_argument("--steps", type=count, nargs="+", default=[10, 25, 50, 100], help="horizons (default: 10 25 50 100)")
    parser.add_argument("--tasks", type=count, default=4, help="runs that are averaged over (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/averaged"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    learned = args.learned
    if learned.config.unit != "rms":
        parser.error(f"{learned.name} has the unit {learned.config.unit!r} of lambda; constant schedules are made for 'rms'")
    args.out.mkdir(parents=True, exist_ok=True)
    for steps in args.steps:
        rows = pd.concat([record(learned, steps, seed, "meta-train") for seed in range(args.tasks)])
        lam = float(np.exp(np.log(rows["lambda"].astype(float)).mean()))
        mu = {name: float(rows[f"mu_{name}"].astype(float).mean()) for name in learned.config.directions}
        total = sum(mu.values())  # 1 but for rounding
        mixed = fixed_mix({name: share / total for name, share in mu.items()}, learned.config.lr0 * lam)
        file = args.out / f"{learned.name}-{steps}.safetensors"
        save(replace(mixed, name=f"{learned.name}-averaged-{steps}"), file)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in mu.items())
        print(f"{file}: lambda {lam:.3f}, that is {learned.config.lr0 * lam:.2e} per element; mu {shares}")


if __name__ == "__main__":
    main()
