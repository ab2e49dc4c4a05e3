"""What one meta-gradient costs, by the length of its run: time against bare forward and backward passes, and memory.

    python evaluate/meta_gradient_cost.py

writes `evaluate/results/meta_gradient_cost.csv`: each length with the graphs of all steps kept, and with those that are made again on
the way back (`gradient.checkpoint_from`). Each is measured in a process of its own, of one thread, on the network, batches and
evaluation of `l3rs meta-train --search gradient`. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from meta_throughput import bare
from options import count
from tqdm import tqdm

from l3rs.finetuning.runs import peak, start_peak
from l3rs.meta.config import GradientConfig, MetaTrainConfig
from l3rs.meta.problem import FineTuning
from l3rs.meta.train import start

DEVICE = torch.device("cpu")


def measured(steps: int, kept: bool) -> dict[str, object]:
    """The row of one length."""
    torch.set_num_threads(1)
    shortest = steps + 1 if kept else steps  # of the runs that keep no graphs
    config = MetaTrainConfig(search="gradient", head="start", refresh=True, gradient=GradientConfig(checkpoint_from=shortest))
    learned = start(config)
    problem = FineTuning(learned, config)
    problem.through(learned.theta, "meta-train", 0, 2)  # loads what is needed
    before = start_peak(DEVICE)
    problem.through(learned.theta, "meta-train", 0, steps)  # the first run takes its memory from the system, which the next ones have
    used, passes = peak(DEVICE) - before, [bare(config, 50)]
    started = time.perf_counter()
    problem.through(learned.theta, "meta-train", 0, steps)
    seconds = time.perf_counter() - started
    passes.append(bare(config, 50))
    return {
        "steps": steps,
        "graphs": "kept" if kept else "made again",
        "seconds": round(seconds, 2),
        "passes_a_step": round(seconds / steps / (sum(passes) / 2), 2),
        "mib": round(used),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=count, nargs="+", default=[10, 25, 50, 100], help="lengths of runs (default: 10 25 50 100)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "meta_gradient_cost.csv", help="file for the rows")
    args = parser.parse_args()
    if min(args.steps) < 2:
        parser.error(f"--steps must be at least 2 (got {min(args.steps)})")
    rows = []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for steps, kept in tqdm([(steps, kept) for steps in args.steps for kept in (True, False)]):
            rows.append(pool.submit(measured, steps, kept).result())
    table = pd.DataFrame(rows)
    table.to_csv(args.out, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
