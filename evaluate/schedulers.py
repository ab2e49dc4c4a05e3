"""What a scheduler of the learning rate does to L3RS, whose `lr` is a multiplier: accuracies on meta-validation tasks of Icons.

Every scheduler runs on the same tasks, head starts and batches, with the schedule that `auto` takes:

    python evaluate/schedulers.py --tasks 10 --steps 25 100
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from options import count
from torch.optim import lr_scheduler

from l3rs import L3RS
from l3rs.finetuning.unroll import unroll
from l3rs.finetuning.workbench import workbench
from l3rs.stats import interval


def plateau(optimizer: L3RS, steps: int) -> Any:
    """torch's defaults, on the training loss of each step."""
    losses: list[float] = []

    def listen(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def closure() -> torch.Tensor:
            loss: torch.Tensor = args[1]()
            losses.append(loss.item())
            return loss

        return (args[0], closure), kwargs

    class OfTheLoss(lr_scheduler.ReduceLROnPlateau):
        def step(self) -> None:  # type: ignore[override]
            super().step(losses[-1])

    optimizer.register_step_pre_hook(listen)
    return OfTheLoss(optimizer)


SCHEDULERS: dict[str, Callable[[L3RS, int], Any]] = {
    "none": lambda optimizer, steps: None,
    "warm-up over a tenth (`LinearLR`)": lambda o, k: lr_scheduler.LinearLR(o, 0.1, total_iters=max(1, k // 10)),
    "linear decay to 0 (`Trainer`'s default)": lambda o, k: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=k),
    "`CosineAnnealingLR`": lambda o, k: lr_scheduler.CosineAnnealingLR(o, k),
    "`OneCycleLR` up to 1": lambda o, k: lr_scheduler.OneCycleLR(o, 1.0, k, cycle_momentum=False),
    "`ReduceLROnPlateau`": plateau,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=count, default=10, help="runs of each (default: %(default)s)")
    parser.add_argument("--steps", type=count, nargs="+", default=[25, 100], help="lengths (default: 25 100)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = workbench()
    for steps in options.steps:
        accuracy: dict[str, list[float]] = {name: [] for name in SCHEDULERS}
        for seed in range(options.tasks):
            for name, make in SCHEDULERS.items():
                tasks, task, network = bench.ready("meta-validation", seed, steps, "start")
                optimizer = L3RS(network.named_parameters(), steps)
                report = unroll(network, optimizer, tasks.images, task, make(optimizer, steps), refresh=True)
                accuracy[name].append(100 * report.accuracy[steps])
        print(f"\n{steps} steps, {options.tasks} tasks\n")
        for name, values in accuracy.items():
            differences = np.array(values) - np.array(accuracy["none"])
            low, high = interval(differences)
            print(f"| {name} | {np.mean(values):.1f} | {differences.mean():+.1f} ({low:+.1f} to {high:+.1f}) |", flush=True)


if __name__ == "__main__":
    main()
