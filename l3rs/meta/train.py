"""The meta-training loop: NES generations, meta-validation, checkpoints that resume, and the schedule chosen at the end."""

from __future__ import annotations

import csv
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from l3rs.checkpoint import CheckpointError, read, save
from l3rs.controller import initial_theta
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.nes import NES
from l3rs.meta.problem import FineTuning, fine_tune
from l3rs.networks import head_names
from l3rs.plots import plot_curve
from l3rs.runs import append_rows
from l3rs.schedule import LearnedSchedule
from l3rs.tasks import task_seed
from l3rs.workbench import workbench

CURVE = ("generation", "steps", "mean_loss", "best_loss", "sigma", "lr", "validation_accuracy", "validation_loss", "seconds")


def start(config: MetaTrainConfig) -> LearnedSchedule:
    """The schedule that meta-training starts from."""
    network = workbench(config.workload, config.task).network
    layers = tuple(name for name, _ in network.named_parameters()) if config.specialist else ()
    theta = initial_theta(config.schedule, layers, config.nes.seed, head_names(network))
    name = config.name or f"{config.workload.class_split.name}-{config.model}"
    return LearnedSchedule(config.schedule, layers, theta, name)


def generation_tasks(config: MetaTrainConfig, generation: int) -> list[tuple[int, int]]:
    """(seed, steps) of a generation's tasks, a function of (config seed, generation): one K, then a seed a task."""
    low, high = config.steps
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config.nes.seed, generation])))
    steps = int(rng.integers(low, high + 1))
    return [(task_seed(config.nes.seed, generation, i), steps) for i in range(config.meta_batch)]


def meta_validate(learned: LearnedSchedule, theta: Tensor, config: MetaTrainConfig, numbers: range) -> tuple[float, float]:
    """Mean evaluation accuracy and loss on the meta-validation tasks of these numbers, over all horizons of the config.

    A run that diverged has NaN for both, and so has the mean.
    """
    bench = workbench(config.workload, config.task)
    runs = [
        (r.accuracy[steps], r.loss[steps])
        for steps in config.validation_steps
        for number in numbers
        for r in [fine_tune(learned, theta, bench, "meta-validation", task_seed(number), steps)]
    ]
    accuracies, losses = zip(*runs, strict=True)
    return sum(accuracies) / len(runs), sum(losses) / len(runs)


class RunFolder:
    """The files of one run: `config.json`, `curve.csv`, `state.safetensors` to resume from, and `theta-*.safetensors`."""

    def __init__(self, path: Path, config: MetaTrainConfig) -> None:
        self.path, self.config = path, config
        path.mkdir(parents=True, exist_ok=True)
        described = json.loads(json.dumps(asdict(config)))
        file = path / "config.json"
        # How long a run goes on, on how many processes, and how one is chosen in the end change nothing of what it did before.
        # And images stay what they are wherever they lie.
        free = ("generations", "workers", "finalists", "final_tasks", "data", "cache")
        if file.exists():
            before = json.loads(file.read_text())
            different = [k for k in described if k not in free and before.get(k) != described[k]]
            if different:
                raise CheckpointError(f"{path} holds a run of another config: {', '.join(different)} differ; choose another --out")
        file.write_text(json.dumps(described, indent=1) + "\n")

    def save_state(self, nes: NES) -> None:
        """Replaces the state atomically: a kill leaves the old one or the new one."""
        state = nes.state_dict()
        tensors = {k: torch.as_tensor(v).clone().contiguous() for k, v in state.items()}
        temporary = self.path / "state.tmp"
        save_file(tensors, temporary)
        os.replace(temporary, self.path / "state.safetensors")

    def load_state(self, nes: NES) -> None:
        """Takes up the state of a run that was stopped, if there is one, and forgets rows of generations that it had not saved."""
        file = self.path / "state.safetensors"
        if not file.exists():
            return
        with safe_open(file, framework="pt") as tensors:
            nes.load_state_dict({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118  (not a dict)
        rows = [row for row in self.curve() if int(row["generation"]) <= nes.generation]
        with open(self.path / "curve.csv", "w", newline="") as curve:
            writer = csv.DictWriter(curve, CURVE, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def curve(self) -> list[dict[str, str]]:
        """The rows of `curve.csv` so far."""
        file = self.path / "curve.csv"
        if not file.exists():
            return []
        with file.open(newline="") as rows:
            return list(csv.DictReader(rows))

    def append(self, row: dict[str, float | int | str]) -> None:
        """Adds a row to `curve.csv`."""
        append_rows(self.path / "curve.csv", [row], CURVE)

    def theta_file(self, generation: int) -> Path:
        """Where the schedule of a validated generation is kept."""
        return self.path / f"theta-{generation:05d}.safetensors"


def meta_train(config: MetaTrainConfig, out: str | Path, progress: bool = True) -> LearnedSchedule:
    """Meta-trains a schedule, or goes on with a run that was stopped, and writes it to `out`.

    The generations that validated best meet again on more meta-validation tasks, and the one with the lowest loss there is
    kept: see `choose`.

    Args:
        config: of the run. A folder takes one config; more `generations` or other `workers` continue it.
        out: folder of the run; made if needed.
        progress: whether to show a progress bar.

    Raises:
        CheckpointError: `out` holds a run of another config.
        ValueError: the images, the class split or the weights cannot be used.
    """
    learned = start(config)  # finds the weights, or fails, before images are decoded
    config.workload.prepare(("meta-train", "meta-validation"), config.task, progress)
    folder = RunFolder(Path(out), config)
    workers = config.workers or os.cpu_count() or 1
    problem = FineTuning(learned, config.workload, config.task, config.penalty, workers)
    nes = NES(problem, learned.theta, config.nes)
    folder.load_state(nes)

    def validated(row: dict[str, float | int | str]) -> float:
        theta = nes.center.clone()
        accuracy, loss = meta_validate(learned, theta, config, range(config.validation_tasks))
        save(replace(learned, theta=theta), folder.theta_file(nes.generation))
        row |= {"validation_accuracy": round(accuracy, 6), "validation_loss": round(loss, 6)}
        return accuracy

    bar = tqdm(total=config.generations, initial=nes.generation, desc=learned.name, unit="gen", disable=not progress)
    if nes.generation == 0 and not folder.curve():
        row: dict[str, float | int | str] = {"generation": 0, "seconds": 0}
        bar.set_postfix(accuracy=f"{validated(row):.3f}")
        folder.append(row)
    while nes.generation < config.generations:
        started = time.perf_counter()
        problem.tasks = generation_tasks(config, nes.generation)
        row = {"sigma": nes.sigma, "lr": nes.lr, "steps": problem.tasks[0][1]}
        nes.step()
        row |= {"generation": nes.generation, "mean_loss": nes.status["mean_loss"], "best_loss": nes.status["best_loss"]}
        if nes.generation % config.validate_every == 0 or nes.generation == config.generations:
            bar.set_postfix(accuracy=f"{validated(row):.3f}")
        row["seconds"] = round(time.perf_counter() - started, 2)
        folder.append(row)
        folder.save_state(nes)
        bar.update()
    bar.close()
    if problem.is_main and workers > 1:
        problem.kill_actors()
    return choose(folder, learned, config)


def choose(folder: RunFolder, learned: LearnedSchedule, config: MetaTrainConfig) -> LearnedSchedule:
    """The schedule to keep, written as `<name>.safetensors` with how it was made, and `curve.png`.

    The best of many noisy validations is mostly lucky. So the `finalists` that validated most accurately, the newest first among
    equals, are validated again on `final_tasks` other meta-validation tasks, and the one with the lowest loss there is kept: the
    loss is what was meta-trained, and the steadier of the two.
    """
    rows = folder.curve()
    validated = [r for r in rows if r["validation_accuracy"]]
    validated.sort(key=lambda r: (float(r["validation_accuracy"]), int(r["generation"])), reverse=True)
    finals = {}
    for generation in (int(r["generation"]) for r in validated[: config.finalists]):
        theta = read(folder.theta_file(generation)).theta
        numbers = range(config.validation_tasks, config.validation_tasks + config.final_tasks)
        finals[generation] = meta_validate(learned, theta, config, numbers)
    generation, (accuracy, loss) = min(finals.items(), key=lambda item: item[1][1])
    training = {
        "config": json.loads((folder.path / "config.json").read_text()),
        "generation": generation,
        "validation_accuracy": round(accuracy, 6),
        "validation_loss": round(loss, 6),
        "finalists": {str(g): [round(a, 6), round(x, 6)] for g, (a, x) in finals.items()},
        "seconds": round(sum(float(r["seconds"]) for r in rows), 1),
    }
    chosen = LearnedSchedule(learned.config, learned.layers, read(folder.theta_file(generation)).theta, learned.name, training)
    save(chosen, folder.path / f"{learned.name}.safetensors")
    plot_curve(pd.read_csv(folder.path / "curve.csv"), folder.path / "curve.png", f"{learned.name}: meta-training")
    return chosen
