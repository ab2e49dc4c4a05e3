"""Measure the shipped generalist schedule on networks that it was not meta-trained on, against Adam tuned on each.

    python pretrain/backbone.py --config configs/pretrain/icons.yaml --model resnet18 --out runs/backbones
    python pretrain/backbone.py --config configs/pretrain/icons_full.yaml --out runs/backbones
    python evaluate/generalist.py --backbones runs/backbones

pretrains ResNet-18 at width 16 and ResNet-34 at full width on the pretraining classes of Icons, and fine-tunes them on tasks of 25 classes
that neither they nor the schedule have seen (Icons25Eval), for 10, 25 and 50 steps. Adam's learning rate, constant or falling along a
cosine, is tuned for each network and horizon on other classes (Icons25), over a grid of factors of about 3 (1, 3, 10, ...) that is extended
until the best is not at its edge. `icons-resnet34`, which `learned="auto"` takes for both networks as it knows all their layers by name, is
measured too.

Each run is a row of `generalist.csv` in `--out`. Rows that are there already are not made again, so a killed run goes on where it was; when
none is missing, only the table is printed, for which the networks are not needed.
"""

from __future__ import annotations

import l3rs  # isort: skip  (first: it mends `import torchvision`, which timm does, beside a CPU-only torch)

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm
from tune import Tuning, on_grid

from l3rs.files import append_rows
from l3rs.finetuning.runs import Run, execute, execute_all, row
from l3rs.finetuning.workload import Workload
from l3rs.processes import cores
from l3rs.schedules.seal import fingerprint
from l3rs.stats import mean_interval

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS = ("network", "purpose", "optimizer", "learned", "theta", "lr", "steps", "task_seed", "accuracy", "loss", "seconds")
HORIZONS = (10, 25, 50)
ADAMS = ("adam", "adam-cosine")
GENERALIST = "icons-generalist"
SCHEDULES = (GENERALIST, "icons-resnet34")
CLASSES = {"tune": "meta-train", "eval": "meta-test"}  # by purpose: which classes of the Icons split


class Subject(NamedTuple):
    """A network to measure on.

    Attributes:
        depth, width: which ResNet.
        tasks: their number by purpose. A step at full width takes twenty times as long, and so there are fewer.
        guess: log10 of the learning rate that tuning starts from.
    """

    depth: int
    width: int
    tasks: dict[str, int]
    guess: float


NETWORKS = {
    "resnet18-w16": Subject(18, 16, {"tune": 8, "eval": 30}, -2.5),
    "resnet34-w64": Subject(34, 64, {"tune": 3, "eval": 10}, -3.0),
}


class Arm(NamedTuple):
    """One way to fine-tune: an optimizer or, for `l3rs`, the schedule `learned`, for so many steps."""

    optimizer: str
    lr: float
    steps: int
    learned: str = ""


class Comparison(Tuning):
    """The rows of one network so far, and the runs that are still to be made."""

    def __init__(self, path: Path, network: str, backbones: Path, workers: int) -> None:
        self.path, self.network, self.workers = path, network, workers
        depth, width, self.tasks_of, _ = NETWORKS[network]
        self.weights = backbones / f"{network}-icons.safetensors"
        self.workload = Workload(model=f"resnet{depth}", width=width, weights=str(self.weights))
        self.theta = {name: fingerprint(l3rs.load(name).theta)[:12] for name in SCHEDULES}  # trained anew, measured anew
        self.read()

    def read(self) -> None:
        text = {"learned": str, "theta": str}  # even where all cells are empty, or a digest is all digits
        rows = pd.read_csv(self.path, dtype=text) if self.path.exists() else pd.DataFrame(columns=list(FIELDS))
        self.rows = rows[rows.network == self.network].fillna(dict.fromkeys(text, ""))

    def of(self, purpose: str, arm: Arm) -> pd.DataFrame:
        """The rows of an arm, by task; a diverged run counts as 0 right."""
        r = self.rows
        mine = (r.purpose == purpose) & (r.optimizer == arm.optimizer) & (r.lr == arm.lr) & (r.steps == arm.steps)
        mine &= (r.learned == arm.learned) & (r.theta == self.theta.get(arm.learned, "")) & (r.task_seed < self.tasks_of[purpose])
        return r[mine].fillna({"accuracy": 0.0, "loss": float("inf")}).set_index("task_seed").sort_index()

    def make(self, purpose: str, arms: Sequence[Arm]) -> None:
        """Makes the runs of `arms` that are missing. A constant learning rate does not depend on K: its shorter runs are the beginnings of
        the longest.

        Raises:
            FileNotFoundError: there are some, and the network is not there.
        """
        missing = [(seed, arm) for arm in arms for seed in set(range(self.tasks_of[purpose])) - set(self.of(purpose, arm).index)]
        runs = {  # task by task, so that a comparison that is stopped has met every arm on the same tasks; each run once
            Run(
                cell=purpose,
                optimizer=arm.optimizer,
                lr=arm.lr,
                steps=max(HORIZONS) if arm.optimizer == "adam" else arm.steps,
                task_seed=seed,
                purpose=CLASSES[purpose],
                learned=arm.learned,
                evaluate_at=HORIZONS if arm.optimizer == "adam" else (),
                workload=self.workload,
            ): None
            for seed, arm in sorted(missing, key=lambda m: m[0])
        }
        if runs and not self.weights.exists():
            command = "python pretrain/backbone.py --config configs/pretrain/icons.yaml"
            asked = f"--model {self.workload.model} --width {self.workload.width} --out {self.weights.parent}"
            raise FileNotFoundError(f"{self.weights} is not there; make it with\n  {command} {asked}")
        with closing(execute_all(list(runs), self.workers, execute)) as ended:
            for run, report in tqdm(ended, f"{self.network} {purpose}", len(runs), disable=not runs):
                known = {"network": self.network, "purpose": purpose, "learned": run.learned, "theta": self.theta.get(run.learned, "")}
                rows = [row(run, report, steps) | known for steps in run.evaluate_at or (run.steps,)]
                append_rows(self.path, [{name: r[name] for name in FIELDS} for r in rows], FIELDS)
        self.read()

    # What the search for the best learning rate, `Tuning.best`, asks for

    def measure(self, name: str, rates: list[float], steps: int) -> None:
        self.make("tune", [Arm(name, lr, steps) for lr in rates])

    def accuracy(self, name: str, lr: float, steps: int) -> float:
        return float(self.of("tune", Arm(name, lr, steps)).accuracy.mean())

    def arms(self) -> list[Arm]:
        """Adam, at the learning rates that tuning has found, and the schedules."""
        arms = []
        guess = round(2 * NETWORKS[self.network].guess)
        for name in ADAMS:
            for steps in HORIZONS:
                guess = self.best(name, steps, guess)
                arms.append(Arm(name, on_grid(guess), steps))
        return arms + [Arm("l3rs", 1.0, steps, learned) for learned in SCHEDULES for steps in HORIZONS]

    def table(self, arms: Sequence[Arm]) -> str:
        """One line an arm: accuracy, and how much more accurate the generalist is, paired task by task."""
        tasks = self.tasks_of
        lines = [
            f"{self.network}: {tasks['eval']} tasks; learning rates tuned on {tasks['tune']} others",
            f"{'steps':>5}  {'arm':<17}{'lr':>8}{'accuracy (std)':>17}{'loss':>7}  generalist minus it in points (95% interval)",
        ]
        for steps in HORIZONS:
            found = {arm: self.of("eval", arm) for arm in arms if arm.steps == steps}
            generalist = next(rows for arm, rows in found.items() if arm.learned == GENERALIST)
            best = max((arm for arm in found if arm.optimizer in ADAMS), key=lambda arm: found[arm].accuracy.mean())
            for arm, rows in found.items():
                a = rows.accuracy
                line = f"{steps:>5}  {arm.learned or arm.optimizer:<17}{'learned' if arm.learned else f'{arm.lr:g}':>8}"
                line += f"{f'{a.mean():.3f} ({a.std():.3f})':>17}{rows.loss.mean():>7.3f}"
                if arm.learned != GENERALIST:
                    mean, low, high = mean_interval(100 * (generalist.accuracy - a))
                    line += f"  {mean:+.1f} ({low:+.1f} to {high:+.1f}){'  <- best tuned Adam' if arm == best else ''}"
                lines.append(line)
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backbones = Path("runs/backbones")
    parser.add_argument("--backbones", type=Path, default=backbones, help="folder of the pretrained networks (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="some of these (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for generalist.csv (default: evaluate/results)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes of one thread each (default: one a core)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for network in args.networks:
        comparison = Comparison(args.out / "generalist.csv", network, args.backbones, args.workers)
        try:
            arms = comparison.arms()
            comparison.make("eval", arms)
        except FileNotFoundError as error:
            parser.exit(2, f"{error}\n")
        print(comparison.table(arms) + "\n", flush=True)


if __name__ == "__main__":
    main()
