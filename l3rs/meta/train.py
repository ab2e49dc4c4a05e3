"""The meta-training loop: generations of a search, meta-validation, and the schedule chosen at the end."""

from __future__ import annotations

import json
import logging
import math
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from l3rs.extras import require
from l3rs.finetuning.tasks import task_seed
from l3rs.finetuning.variety import META_PURPOSES, whole_number
from l3rs.finetuning.workbench import workbench
from l3rs.learners import LEARNERS
from l3rs.meta.config import LOG_FLOOR, MetaTrainConfig
from l3rs.meta.descent import Search, search_for
from l3rs.meta.folder import MetaTrainFolder
from l3rs.meta.problem import FineTuning, MetaTrainingError, places
from l3rs.meta.progress import Progress
from l3rs.plots import plot_curve
from l3rs.processes import cores, on_sigterm
from l3rs.run_folder import CONFIG
from l3rs.schedules.learned import Learned

if find_spec("ray") is not None:
    import ray

PATIENCE = 3  # generations of a descent in a row in which most tasks diverged


def start(config: MetaTrainConfig) -> Learned:
    """Makes the schedule that meta-training starts from. Raises CheckpointError if a file of meta-parameters cannot be used."""
    learner = LEARNERS[config.optimizer]
    of_one = f"{config.workload.class_split.name}-{learner.called_after(config.workload.model)}"
    usual = of_one if config.zoo.file is None else f"{Path(config.zoo.file).stem}-{config.optimizer}"
    return learner.start(config.beginning, config.name or usual, lambda: workbench(config.workload, config.task).network)


def generation_tasks(config: MetaTrainConfig, generation: int) -> list[tuple[int, int]]:
    """Draws (seed, steps) of a generation's tasks, as a function of (config seed, generation).

    Each task has its own K. Of n tasks, the i-th draws K from the i-th of n equally likely parts of the range. So every generation sees
    short and long runs. Over a zoo the parts are shuffled where a network would else meet few of them.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config.nes.seed, generation])))
    n, share, logarithmic = config.meta_batch, float(rng.random()), config.steps_distribution == "log-uniform"
    seeds = [config.seed_for(task_seed(config.nes.seed, generation, i), generation * n + i) for i in range(n)]
    tied = config.variety is not None and math.gcd(n, len(config.variety.workloads)) > 1  # networks take turns by the number of the task
    parts = rng.permutation(n).tolist() if tied else range(n)
    return [(seed, whole_number(config.steps, (part + share) / n, logarithmic)) for seed, part in zip(seeds, parts, strict=True)]


def meta_validate(problem: FineTuning, theta: Tensor, numbers: range) -> tuple[float, float]:
    """Averages evaluation accuracy and loss over these meta-validation tasks and all horizons of the config.

    Both are NaN if a run diverged.
    """
    # The longest first, so that the processes end together.
    c = problem.config
    tasks = [(c.seed_for(task_seed(n), n), steps) for steps in sorted(c.validation_steps, reverse=True) for n in numbers]
    accuracies, losses = zip(*problem.runs(theta, "meta-validation", tasks), strict=True)
    return sum(accuracies) / len(tasks), sum(losses) / len(tasks)


def processes(config: MetaTrainConfig) -> int:
    """Counts the processes that evaluate candidates; if there are several, it joins or starts a Ray cluster."""
    mine = cores()
    if config.device == "cuda" or ((config.workers or mine) == 1 and not config.ray_address and not config.gpus_per_actor):
        return 1
    if find_spec("ray") is None and not (config.workers or config.ray_address or config.gpus_per_actor):
        return 1  # nobody asked for more
    require("meta-training on several processes", "ray")
    if not ray.is_initialized():
        check_address(config.ray_address)
        # Started here even if RAY_ADDRESS is set or a cluster runs on this machine: that one counts its own cores.
        here: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": max(config.workers, mine)}
        with on_sigterm(signal.getsignal(signal.SIGTERM)):  # Ray's own handler ends the process with code 15
            ray.init(logging_level=logging.ERROR, **({"address": config.ray_address} if config.ray_address else here))
    room = places(config.gpus_per_actor)
    if not room:
        raise ValueError(f"gpus_per_actor must be a share of a GPU that there is, or 0 for CPU (got {config.gpus_per_actor})")
    return config.workers or room


def check_address(address: str | None) -> None:
    """Raises ValueError if nothing answers at HOST:PORT; Ray would try for half a minute, and then end the process."""
    where = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or "")
    if where is None:
        return
    try:
        socket.create_connection((where[1], int(where[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"ray_address must be an address that answers (got {address}: {error}); `ray start --head` prints it") from None


def meta_train(config: MetaTrainConfig, out: str | Path, progress: bool = True) -> Learned:
    """Meta-trains a schedule and writes it to `out`; a run that was stopped resumes.

    At the end, `choose` compares the generations that validated best on more tasks, and keeps one.

    Args:
        config: of the run. A folder takes one config, but what `l3rs.meta.folder.FREE` names may change, `generations` only with
            evolution strategies.
        out: folder of the run; made if needed.
        progress: whether to show a progress bar.

    Raises:
        FolderError: `out` holds a run of another config, another process is at work in it, or it cannot be written.
        MetaTrainingError: more than half of a generation's candidates diverged or met an error; where a descent's tasks diverged, those
            of `PATIENCE` generations in a row; or processes keep dying. All earlier generations are saved.
        ValueError: the images, the class split, the weights or the device cannot be used.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and torch sees no CUDA GPU here")
    learned = start(config)  # finds the weights, or fails, before images are decoded
    if config.variety is None:
        config.workload.prepare(META_PURPOSES, config.task, progress)
    else:
        config.variety.prepare(progress)
    threads = torch.get_num_threads()
    with MetaTrainFolder(Path(out), config) as folder:
        problem = FineTuning(learned, config, processes(config))
        torch.set_num_threads(1)  # sums are rounded alike here and in processes of one thread
        try:
            run(folder, problem, learned, config, progress)
            return choose(folder, problem, learned, config, progress)
        finally:
            problem.stop()
            torch.set_num_threads(threads)


def run(folder: MetaTrainFolder, problem: FineTuning, learned: Learned, config: MetaTrainConfig, progress: bool) -> None:
    """The generations that are missing; each is written before the next begins."""
    search = search_for(problem, learned.theta / problem.scale, config)
    folder.load_state(search)
    with folder.writing(folder.path / "tensorboard"):
        shown = Progress(folder.path, learned.name, search.generation, config.generations, progress)
    try:
        if search.generation == 0 and not folder.curve():
            row: dict[str, float | int | str] = {"generation": 0, **validated(folder, problem, learned, search, config), "seconds": 0}
            folder.append(row)
            show(folder, shown, row)
        while search.generation < config.generations:
            started = time.perf_counter()
            row = one_generation(problem, search, config, lost_before(folder.curve(), config.meta_batch))
            if search.generation % config.validate_every == 0 or search.generation == config.generations:
                row |= validated(folder, problem, learned, search, config)
            row["seconds"] = round(time.perf_counter() - started, 2)
            folder.append(row)
            folder.save_state(search)
            show(folder, shown, row)
    finally:
        shown.close()


def show(folder: MetaTrainFolder, shown: Progress, row: dict[str, float | int | str]) -> None:
    """Shows a row of the curve."""
    with folder.writing(f"TensorBoard's file or the picture in {folder.path}"):
        shown.generation(row)


def lost_before(rows: Sequence[Mapping[str, str]], tasks: int) -> int:
    """Counts the last generations of a descent, in a row, of whose tasks most were lost."""
    lost = [2 * (int(row["diverged"] or 0) + int(row["failed"] or 0)) > tasks for row in rows]
    return next((i for i, one in enumerate(reversed(lost)) if not one), len(lost))


def one_generation(problem: FineTuning, search: Search, config: MetaTrainConfig, lost: int = 0) -> dict[str, float | int | str]:
    """One update of the search, and its row of the curve; `lost`: what `lost_before` counted.

    Raises:
        MetaTrainingError: most candidates or tasks met an error, or diverged. A descent passes over two generations in a row whose tasks
            diverged (`PATIENCE`), as the next ones have other tasks.
    """
    started = time.perf_counter()
    problem.tasks = generation_tasks(config, search.generation)
    inner = sum(steps for _, steps in problem.tasks)
    row: dict[str, float | int | str] = {"sigma": search.sigma, "lr": search.lr, "steps": round(inner / len(problem.tasks))}
    runs = config.nes.population if search.sigma else 1  # of each task
    search.step()
    diverged, failed = (int(column.sum()) for column in search.evaluations[:, 1:].T)
    every = len(search.evaluations)
    patience = 1 if row["sigma"] or 2 * failed > every else PATIENCE
    if 2 * (diverged + failed) > every and lost + 1 >= patience:
        raise MetaTrainingError(explain(problem, search, bool(row["sigma"]), diverged, failed))
    seconds = time.perf_counter() - started
    row |= {name: search.status[name] for name in ("mean_loss", "best_loss", "spread")}
    if config.objective == "log":  # the mean is the geometric one then, and the spread stays one of logarithms
        row |= {name: math.exp(search.status[name]) - LOG_FLOOR for name in ("mean_loss", "best_loss")}
    return row | {
        "generation": search.generation,
        "diverged": diverged,
        "failed": failed,
        "inner_steps_per_second": round(runs * inner / seconds, 1),
    }


def explain(problem: FineTuning, search: Search, noise: bool, diverged: int, failed: int) -> str:
    """What is said where most of the last generation failed: its candidates, if it had `noise`, or its tasks."""
    generation = search.generation - 1
    what = "candidates" if noise else "tasks"
    tasks = ", ".join(f"{seed} of {steps} steps" for seed, steps in problem.tasks)
    said = f"in generation {generation}, {diverged} of {len(search.evaluations)} {what} diverged and {failed} met an error"
    if error := problem.error():
        said += f", such as {error}"
    return (
        f"{said}; nothing was learned from it. To see it again: nes.seed {problem.config.nes.seed}, tasks {tasks}. In a new folder, a "
        f"smaller {'nes.sigma or ' if noise else ''}schedule.lr0 makes runs tamer"
    )


def validated(folder: MetaTrainFolder, problem: FineTuning, learned: Learned, search: Search, config: MetaTrainConfig) -> dict[str, float]:
    """Validates the centre and keeps it as a schedule; gives its columns of the curve."""
    theta = search.center * problem.scale
    accuracy, loss = meta_validate(problem, theta, range(config.validation_tasks))
    folder.save_learned(replace(cast(Any, learned), theta=theta), folder.theta_file(search.generation))
    return {"validation_accuracy": round(accuracy, 6), "validation_loss": round(loss, 6)}


def choose(folder: MetaTrainFolder, problem: FineTuning, learned: Learned, config: MetaTrainConfig, progress: bool) -> Learned:
    """Chooses the schedule to keep, and writes it as `<name>.safetensors`, with the record of its training, and `curve.png`.

    It looks at those that a run of this length validates: one that was extended has also validated its earlier end.

    The best of many noisy validations is mostly lucky. So the most accurate `finalists`, the newest first among equals, are validated
    again on `final_tasks` other tasks. The lowest loss there wins: meta-training minimizes the loss, and it is steadier than accuracy. A
    generation that diverged wins only if all did.
    """
    rows = folder.curve()
    planned = {*range(0, config.generations, config.validate_every), config.generations}
    validated = [r for r in rows if r["validation_accuracy"] and int(r["generation"]) in planned]
    if not validated:
        raise MetaTrainingError(
            f"{folder.path / 'curve.csv'} has no generation that was validated, so none can be chosen; it was removed or damaged. The "
            "schedules of validated generations are there as theta-*.safetensors"
        )
    candidates = [r for r in validated if math.isfinite(float(r["validation_loss"]))] or validated[-1:]
    candidates.sort(key=lambda r: (float(r["validation_accuracy"]), int(r["generation"])), reverse=True)
    finalists = [int(r["generation"]) for r in candidates[: config.finalists]]
    finals = {}
    for generation in tqdm(finalists, desc=f"{learned.name}, choosing", unit="finalist", disable=not progress):
        theta = folder.theta(generation)
        finals[generation] = meta_validate(problem, theta, range(config.validation_tasks, config.validation_tasks + config.final_tasks))
    generation, (accuracy, loss) = min(finals.items(), key=lambda item: (not math.isfinite(item[1][1]), item[1][1]))
    training = {
        "config": json.loads((folder.path / CONFIG).read_text()),
        "generation": generation,
        "validation_accuracy": round(accuracy, 6),
        "validation_loss": round(loss, 6),
        "finalists": {str(g): [round(a, 6), round(x, 6)] for g, (a, x) in finals.items()},
        "seconds": round(sum(float(r["seconds"]) for r in rows), 1),
        "workers": 1 if config.device == "cuda" else config.workers or problem.processes,
    }
    chosen: Learned = replace(cast(Any, learned), theta=folder.theta(generation), training=training)
    folder.save_learned(chosen, folder.path / f"{learned.name}.safetensors")
    with folder.writing(folder.path / "curve.png"):
        plot_curve(pd.read_csv(folder.path / "curve.csv"), folder.path / "curve.png", f"{learned.name}: meta-training")
    return chosen
