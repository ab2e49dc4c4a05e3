"""Pretrain the networks of the zoo (configs/zoo.yaml) that are not there yet, one process after another or a few at a time.

    python pretrain/zoo.py --out runs/zoo --processes 2
    python datasets/efficientnet_lite.py --out runs/zoo

writes to `--out` what `pretrain/backbone.py` writes of each network; `configs/pretrain/zoo/NAME.yaml` says how it is pretrained. It takes
about two hours of two cores, and goes on where it was stopped. Each process has one thread, and gives way to other work. In the end
it compares the networks with `pretrain/results/zoo.csv`; on another machine the weights are others in their last digits, and so in
their hashes. `--record` writes that file instead.
"""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (first: it mends `import torchvision`, which Lightning does, beside a CPU-only torch)

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from l3rs.finetuning.zoo import read_zoo

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, RECORD = ROOT / "configs" / "pretrain" / "zoo", ROOT / "pretrain" / "results" / "zoo.csv"
NICE = 12


def pretrain(name: str, out: Path) -> int:
    """Pretrains one network in a process of its own, unless its record is there; gives the exit code."""
    if (out / f"{name}.json").is_file():
        return 0
    print(f"{name} ...", flush=True)
    command = [sys.executable, str(ROOT / "pretrain" / "backbone.py"), "--config", str(CONFIGS / f"{name}.yaml"), "--out", str(out)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (out / f"{name}.log").open("w") as log:
        done = subprocess.run(["nice", "-n", str(NICE), *command], env=os.environ | threads, stdout=log, stderr=log, check=False)
    print(f"{name}: {'done' if done.returncode == 0 else f'failed, see {out / name}.log'}", flush=True)
    return done.returncode


def row_of(name: str, out: Path) -> dict[str, object]:
    """What is recorded of a network."""
    about = json.loads((out / f"{name}.json").read_text())
    kept = {k: about[k] for k in ("classes", "validation_accuracy", "seconds", "torch", "sha256")}
    return {
        "network": name,
        "split": about["config"]["split"],
        "model": about["config"]["model"],
        "steps": about["config"]["steps"],
        **kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), help="folder for the weights, the logs and the records")
    parser.add_argument("--processes", type=int, default=1, help="networks pretrained at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks to pretrain; default: all")
    parser.add_argument("--record", action="store_true", help="write what is in --out to pretrain/results/zoo.csv")
    args = parser.parse_args()
    ours = [name for name in read_zoo(ROOT / "configs" / "zoo.yaml", args.out) if (CONFIGS / f"{name}.yaml").is_file()]
    unknown = sorted(set(args.only or ()) - set(ours))
    if unknown:
        parser.error(f"--only has {unknown[0]}, which is not one of {', '.join(ours)}")
    if args.processes < 1:
        parser.error(f"--processes must be at least 1 (got {args.processes})")
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.record:
        with ThreadPoolExecutor(args.processes) as pool:
            failed = sum(code != 0 for code in pool.map(lambda name: pretrain(name, args.out), args.only or ours))
        if failed:
            sys.exit(f"{failed} networks failed")
    rows = pd.DataFrame([row_of(name, args.out) for name in ours if (args.out / f"{name}.json").is_file()])
    if args.record:
        rows.to_csv(RECORD, index=False)
        return
    recorded = pd.read_csv(RECORD).set_index("network")
    for row in rows.itertuples():
        compared = "not recorded"
        if row.network in recorded.index:
            before = recorded.loc[row.network]
            same = "the recorded weights" if before.sha256 == row.sha256 else "other weights"
            compared = f"recorded {before.validation_accuracy:.3f}, {same}"
        print(f"{row.network:<22} accuracy {row.validation_accuracy:.3f}; {compared}")


if __name__ == "__main__":
    main()
