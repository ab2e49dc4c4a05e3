"""The main job: fine-tune the shipped network on new classes with L3RS and with tuned baselines, and compare."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from l3rs import stats
from l3rs.files import claim, read_json, write_atomically
from l3rs.finetuning.baselines import BASELINES, tuned_learning_rate
from l3rs.finetuning.runs import FIELDS, Run, append_rows, execute, execute_all, row
from l3rs.finetuning.workbench import workbench
from l3rs.schedules.find import load, resolve
from l3rs.schedules.schedule import LearnedSchedule

OPTIMIZERS = ("l3rs", *BASELINES)
CELL, PURPOSE = "icons25eval", "meta-test"


@dataclass(frozen=True)
class FinetuneConfig:
    """What to compare; every value is checked here, before any work.

    Attributes:
        tasks: tasks of 25 new classes each, the same for every optimizer.
        steps: horizons; each is a run of its own.
        optimizers: names of the optimizers to compare.
        learned: the schedule for `l3rs`: "auto", a shipped name, or a path.
        seed: the tasks are those of seeds seed, seed + 1, ...
        out: folder for the results.
        workers: processes of one thread each; 0 is one a core.
    """

    tasks: int = 8
    steps: tuple[int, ...] = (10, 25, 50)
    optimizers: tuple[str, ...] = ("l3rs", "adam", "adam-cosine", "adam-cosine-head10", "sgd-cosine")
    learned: str = "auto"
    seed: int = 0
    out: Path = Path("l3rs-out")
    workers: int = 0

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ValueError(f"--tasks must be a whole number of at least 1 (got {self.tasks})")
        for steps in self.steps:
            if steps < 1:
                raise ValueError(f"--steps must be one or more whole numbers of at least 1 (got {steps})")
        for name in self.optimizers:
            if name not in OPTIMIZERS:
                raise ValueError(f"--optimizers must be one or more of {', '.join(OPTIMIZERS)} (got {name!r})")
        if self.seed < 0:
            raise ValueError(f"--seed must be a whole number of at least 0 (got {self.seed})")
        if self.workers < 0:
            raise ValueError(f"--workers must be a whole number of at least 0 (got {self.workers})")


class Results:
    """The rows of a comparison in a folder: `runs.csv`, one a run, `curves.csv`, evaluations along the longest runs, and `about.json`.

    Rows that are there already are kept and not made again, so that a comparison can be stopped, continued and extended.

    Raises:
        ValueError: the folder cannot be written, another process is at work in it, or it holds runs of another learned schedule or on
            another network, or files of something else.
    """

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.folder = folder
        self._lock = claim(folder)  # given back with this object, or with the process
        try:
            self._check(about)
        except BaseException:
            self._lock.release()
            raise

    def _check(self, about: dict[str, str]) -> None:
        """Raises ValueError where the files in the folder are of something else."""
        folder = self.folder
        file = folder / "about.json"
        before = read_json(file) if file.exists() else {}
        for key, value in about.items():
            if before.get(key, value) != value:
                raise ValueError(f"--out is {folder}, which holds runs with another {key} ({before[key]}); give another folder")
        self.runs_file, self.curves_file = folder / "runs.csv", folder / "curves.csv"
        mend(self.runs_file, FIELDS)
        mend(self.curves_file, (*FIELDS, "horizon"))
        write_atomically(file, (json.dumps(before | about, indent=1) + "\n").encode())

    @property
    def runs(self) -> pd.DataFrame:
        """All rows so far."""
        return pd.read_csv(self.runs_file) if self.runs_file.exists() else pd.DataFrame(columns=list(FIELDS))

    @property
    def curves(self) -> pd.DataFrame:
        """Evaluations along runs: the columns of a row, with `steps` those taken so far, and `horizon`."""
        return pd.read_csv(self.curves_file) if self.curves_file.exists() else pd.DataFrame(columns=[*FIELDS, "horizon"])

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Those of `runs` that have no row yet."""
        r = self.runs
        done = set(zip(r.optimizer, r.lr, r.steps, r.task_seed, strict=True))
        return [run for run in runs if (run.optimizer, run.lr, run.steps, run.task_seed) not in done]


def mend(file: Path, fields: Sequence[str]) -> None:
    """Takes away a last row that was cut off as its process was killed. Raises ValueError where a file is none of these columns."""
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        file.unlink()
    elif whole.splitlines()[0] != ",".join(fields).encode():
        raise ValueError(f"{file} is not of l3rs finetune: its columns are not {', '.join(fields)}; give another --out")
    elif whole != data:
        write_atomically(file, whole)


def along(horizon: int) -> tuple[int, ...]:
    """Steps at which a curve is drawn: 0, and about eight more, equally spaced."""
    return tuple(sorted({round(horizon * i / 8) for i in range(9)}))


def planned_runs(config: FinetuneConfig) -> list[Run]:
    """Every run of the comparison, longest first so that the cores end together."""
    longest = max(config.steps)
    return [
        Run(
            cell=CELL,
            optimizer=name,
            lr=1.0 if name == "l3rs" else tuned_learning_rate(name, steps),
            steps=steps,
            task_seed=config.seed + i,
            purpose=PURPOSE,
            learned=config.learned,
            evaluate_at=along(steps) if steps == longest else (),
        )
        for steps in sorted(set(config.steps), reverse=True)
        for i in range(config.tasks)
        for name in config.optimizers
    ]


def schedule_for(config: FinetuneConfig) -> LearnedSchedule:
    """The learned schedule that the comparison uses. Raises ValueError if it does not fit the shipped network."""
    names = [name for name, _ in workbench().network.named_parameters()]
    learned = resolve("auto", names) if config.learned == "auto" else load(config.learned)
    learned.slots(len(names), names)
    return learned


def digest(tensors: Sequence[torch.Tensor]) -> str:
    """A short fingerprint of some tensors' values."""
    sha = hashlib.sha256()
    for t in tensors:
        sha.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes() if t.ndim else str(t.item()).encode())
    return sha.hexdigest()[:12]


def summary(results: Results, config: FinetuneConfig) -> pd.DataFrame:
    """One line an optimizer and horizon: accuracy with its 95% interval over tasks, loss, and the paired difference to L3RS.

    A diverged run counts as 0 right, and as an infinite loss.
    """
    planned = {(r.optimizer, r.lr, r.steps, r.task_seed) for r in planned_runs(config)}
    r = results.runs
    r = r[[key in planned for key in zip(r.optimizer, r.lr, r.steps, r.task_seed, strict=True)]]
    accuracy = r.assign(accuracy=r.accuracy.fillna(0)).pivot(index="task_seed", columns=["steps", "optimizer"], values="accuracy")
    loss = r.assign(loss=r.loss.fillna(math.inf)).groupby(["steps", "optimizer"]).loss.mean()
    lines = []
    for steps in sorted(set(config.steps)):
        for name in config.optimizers:
            mine = accuracy[steps, name].to_numpy()
            mean, low, high = stats.mean_interval(mine)
            line = {"steps": steps, "optimizer": name, "accuracy": mean, "low": low, "high": high, "loss": loss[steps, name]}
            line["lr"] = 1.0 if name == "l3rs" else tuned_learning_rate(name, steps)
            if name != "l3rs" and "l3rs" in config.optimizers:
                line["difference"], line["difference_low"], line["difference_high"] = stats.mean_interval(
                    mine - accuracy[steps, "l3rs"].to_numpy()
                )
            lines.append(line)
    return pd.DataFrame(lines)


def baseline_steps(results: Results, config: FinetuneConfig, accuracy: float) -> float:
    """How many steps the best tuned baseline needs to reach `accuracy` on the tasks of `config`.

    Read off the upper envelope of the baselines over all horizons that `results` holds them for, interpolated linearly in log
    steps; infinite if none gets there.
    """
    r = results.runs
    r = r[(r.optimizer != "l3rs") & r.task_seed.between(config.seed, config.seed + config.tasks - 1)]
    r = r[[lr == tuned_learning_rate(name, steps) for name, steps, lr in zip(r.optimizer, r.steps, r.lr, strict=True)]]
    means = r.assign(accuracy=r.accuracy.fillna(0)).groupby(["steps", "optimizer"]).accuracy.agg(["mean", "size"])
    envelope = means[means["size"] == config.tasks]["mean"].groupby("steps").max().cummax()
    return stats.crossing([math.log(s) for s in envelope.index], envelope.to_list(), accuracy)


HEADER = ("optimizer", "steps", "lr", "accuracy", "95% interval", "loss", "to l3rs", "95% interval")


def as_text(table: pd.DataFrame) -> str:
    """The table as people read it: the name to the left, numbers to the right."""
    lines = [HEADER]
    for t in table.to_dict("records"):
        rate = "learned" if t["optimizer"] == "l3rs" else f"{t['lr']:g}"
        line = (t["optimizer"], str(t["steps"]), rate, f"{t['accuracy']:.3f}", f"{t['low']:.3f} .. {t['high']:.3f}", f"{t['loss']:.3f}")
        if math.isnan(t.get("difference", math.nan)):
            lines.append((*line, "", ""))
        else:
            lines.append((*line, f"{t['difference']:+.3f}", f"{t['difference_low']:+.3f} .. {t['difference_high']:+.3f}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    rows = [f"{line[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True)) for line in lines]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])


def finetune(config: FinetuneConfig, learned: LearnedSchedule, results: Results) -> pd.DataFrame:
    """Makes the runs that are missing, then the table and the picture; returns the table."""
    from l3rs.plots import plot_finetune

    runs = planned_runs(config)
    missing = results.missing(runs)
    workers = config.workers or os.cpu_count() or 1
    print(
        f"Fine-tuning ResNet-34 (width 16, pretrained on 200 icon classes) on {config.tasks} tasks of 25 new classes,\n"
        f"{len(config.optimizers)} optimizers, {' '.join(map(str, sorted(set(config.steps))))} steps. "
        f"l3rs uses the schedule {learned.name} ({len(learned.theta)} meta-parameters);\n"
        f"the baselines' learning rates were tuned on other classes. {len(missing)} runs on {workers} processes"
        + (f"; {len(runs) - len(missing)} are in {results.runs_file} already." if len(missing) < len(runs) else "."),
        flush=True,
    )
    started = time.perf_counter()
    bar = tqdm(total=sum(r.steps for r in missing), unit="step", desc="fine-tuning", disable=not missing)
    try:
        meta_seed = learned.training["config"]["nes"]["seed"]
    except (KeyError, TypeError):  # how it was trained is free-form
        meta_seed = ""
    for run, report in execute_all(missing, workers, execute):
        if run.evaluate_at:
            curve = pd.DataFrame([row(run, report, s, meta_seed) | {"horizon": run.steps} for s in sorted(report.loss)])
            curve.to_csv(results.curves_file, mode="a", header=not results.curves_file.exists(), index=False)
        append_rows(results.runs_file, [row(run, report, run.steps, meta_seed)])
        bar.update(run.steps)
    bar.close()

    table = summary(results, config)
    print(f"\n{as_text(table)}\n\nto l3rs: accuracy minus that of l3rs, task by task.")
    if "l3rs" in config.optimizers and len(config.optimizers) > 1:
        for line in table[table.optimizer == "l3rs"].to_dict("records"):
            needed = baseline_steps(results, config, line["accuracy"])
            said = (
                f"{needed:.0f}, {needed / line['steps']:.1f} times as many"
                if math.isfinite(needed)
                else f"more than {int(results.runs.steps.max())}"
            )
            print(f"For the accuracy of l3rs after {line['steps']} steps the best tuned baseline needs {said}.")
    plot_finetune(results.curves, table, results.folder / "finetune.png")
    print(
        f"Wrote {results.runs_file}, {results.curves_file} and {results.folder / 'finetune.png'} in {time.perf_counter() - started:.0f} s."
    )
    return table
