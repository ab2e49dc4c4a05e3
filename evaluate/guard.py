"""What the guard of L3RS does: each run with it and without, from the same start, on the same task.

    python evaluate/guard.py                                         # the shipped network and its specialist, 20 runs
    python evaluate/guard.py --lr 10 30                              # the same with lengths that are 10 and 30 times too long
    python evaluate/guard.py --zoo runs/zoo --networks resnet26-icons vit-icons mobilenetv3-icons --learned NAME    # others, of the zoo

A run that the guard does not cut must be the same to the bit; where one is not, the script ends with an error. The guard was chosen on
networks that are not held out; those that are can only judge it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from pathlib import Path

import torch
from options import ROOT, count

from l3rs.finetuning.tasks import HEADS
from l3rs.finetuning.unroll import unroll
from l3rs.finetuning.variety import with_classes
from l3rs.finetuning.workbench import Workbench, workbench
from l3rs.finetuning.zoo import read_zoo
from l3rs.optimizer.l3rs import L3RS
from l3rs.text import table

ZOO = ROOT / "configs" / "zoo.yaml"


def compared(bench: Workbench, learned: str, lr: float, steps: int, tasks: int, head: str) -> tuple[int, float, float]:
    """How many of these runs are cut, and the mean accuracy without the guard and with it. Raises ValueError if another run changed."""
    cuts, accuracies = 0, []
    for seed in range(tasks):
        losses, ends = [], []
        for guard in (False, True):
            distribution, task, network = bench.ready("meta-validation", seed, steps, head)
            optimizer = L3RS(network.named_parameters(), steps, learned, lr=lr, guard=guard)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the loss leapt")
                report = unroll(network, optimizer, distribution.images, task, recent=True, head_start=bench.head_start)
            losses.append(report.train_losses)
            ends.append(report.accuracy[steps])
        cut = optimizer.param_groups[0]["cut"] < 1
        if not cut and losses[0] != losses[1]:
            raise ValueError(f"task {seed} was not cut, and must be the same run with the guard")
        cuts += cut
        accuracies.append(ends)
    without, with_it = map(statistics.fmean, zip(*accuracies, strict=True))
    return cuts, without, with_it


def main() -> None:
    """Prints a line for each network, head and multiplier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, help="folder of the zoo's weights (default: the shipped network alone)")
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="of the zoo")
    parser.add_argument("--learned", default="auto", help="the schedule (default: %(default)s)")
    parser.add_argument("--lr", type=float, nargs="+", default=[1.0], help="multipliers of lengths (default: 1)")
    parser.add_argument("--steps", type=count, default=25, help="of a run (default: %(default)s)")
    parser.add_argument("--tasks", type=count, default=10, help="with each head (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    zoo = read_zoo(ZOO, args.zoo) if args.zoo else {}
    wrong = [name for name in args.networks if name not in zoo]
    if wrong:
        parser.error(f"--networks must be of the zoo, with --zoo FOLDER (got {wrong[0]})")
    if not all(0 <= lr < math.inf for lr in args.lr):
        parser.error(f"--lr must be finite numbers of at least 0 (got {' '.join(map(str, args.lr))})")
    rows = [("network", "head", "lr", "runs", "cut", "accuracy without", "with the guard")]
    for name in args.networks or ["resnet34-w16-icons"]:
        bench = Workbench(with_classes(zoo[name].workload), workbench().task) if args.networks else workbench()
        for lr in args.lr:
            for head in HEADS:
                cuts, without, with_it = compared(bench, args.learned, lr, args.steps, args.tasks, head)
                rows.append((name, head, f"{lr:g}", str(args.tasks), str(cuts), f"{without:.3f}", f"{with_it:.3f}"))
    print(*table(rows, left=(0, 1), line=True), sep="\n")


if __name__ == "__main__":
    main()
