"""The main job: fine-tunes the shipped network on new classes with L3RS and with tuned baselines, and compares them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from l3rs import stats, text
from l3rs.files import append_rows, whole_rows, write_atomically
from l3rs.finetuning.arms import OURS, Arm
from l3rs.finetuning.baselines import BASELINES, tuned_learning_rate, tuned_learning_rates
from l3rs.finetuning.runs import FIELDS, Run, execute, execute_all, row
from l3rs.finetuning.tasks import HEADS
from l3rs.finetuning.unroll import Report
from l3rs.finetuning.workbench import workbench
from l3rs.networks.head_start import HeadStartReport
from l3rs.processes import cores
from l3rs.run_folder import FolderError, RunFolder
from l3rs.schedules.find import Chosen, resolve

OPTIMIZERS = (OURS, *BASELINES)
USUAL = (OURS, "adam", "adam-cosine", "adam-cosine-head10", "sgd-cosine", "adamw-layer-decay", "schedule-free")
CELL, PURPOSE = "icons25eval", "meta-test"
CURVE_FIELDS = (*FIELDS, "horizon")


@dataclass(frozen=True)
class FinetuneConfig:
    """The settings of a comparison; it checks every value before any work.

    Attributes:
        tasks: tasks of 25 new classes each, the same for every optimizer.
        steps: lengths of runs; each is a run of its own.
        optimizers: names of the optimizers to compare.
        head: every run begins with a head in closed form, `start`, from the features of its own batches, or with a `random` one.
        learned: the schedule for `l3rs`: "auto", a shipped name, or a path.
        seed: tasks come from the seeds seed, seed + 1, ...
        out: folder for the results.
        workers: processes of one thread each; 0 takes one for each core.
    """

    tasks: int = 8
    steps: tuple[int, ...] = (10, 25, 50)
    optimizers: tuple[str, ...] = field(default_factory=lambda: tuple(name for name in USUAL if not Arm(name, name).lacking))
    head: str = "start"
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
            if lacking := Arm(name, name).lacking:
                raise ValueError(f"--optimizers has {name}, which {lacking}")
        if self.head not in HEADS:
            raise ValueError(f"--head must be one of {', '.join(HEADS)} (got {self.head!r})")
        if untuned := [name for name in self.optimizers if name in BASELINES and name not in tuned_learning_rates(head=self.head)]:
            raise ValueError(f"--optimizers has {untuned[0]}, whose learning rate was not tuned for head starts: add --head random")
        if self.seed < 0:
            raise ValueError(f"--seed must be a whole number of at least 0 (got {self.seed})")
        if self.workers < 0:
            raise ValueError(f"--workers must be a whole number of at least 0 (got {self.workers})")


class Results(RunFolder):
    """The rows of a comparison in a folder: `runs.csv`, one a run, `curves.csv`, evaluations along the longest runs, and `about.json`.

    Rows that are there already are kept. So a comparison can be stopped, resumed and extended.

    Raises:
        FolderError: the folder cannot be written, another process is at work in it, or it holds runs of another learned schedule or on
            another network, or files of something else.
    """

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        schedule = {name: value for name, value in about.items() if name == "schedule"}  # which a comparison without L3RS lacks
        super().__init__(path, about, "about.json", defaults=schedule)
        self.runs_file, self.curves_file = path / "runs.csv", path / "curves.csv"
        try:
            for file, fields in ((self.runs_file, FIELDS), (self.curves_file, CURVE_FIELDS)):
                self._mend(file, fields)
            self._forget_curves_without_a_run()
        except BaseException:
            self.close()
            raise

    @property
    def runs(self) -> pd.DataFrame:
        """All rows so far."""
        return pd.read_csv(self.runs_file) if self.runs_file.exists() else pd.DataFrame(columns=list(FIELDS))

    @property
    def curves(self) -> pd.DataFrame:
        """Evaluations along runs: the columns of a row, with `steps` those taken so far, and `horizon`."""
        return pd.read_csv(self.curves_file) if self.curves_file.exists() else pd.DataFrame(columns=list(CURVE_FIELDS))

    def append(self, run: Run, report: Report, meta_seed: int | str) -> None:
        """Adds the report of a run. The curve comes first, since the row marks the run as done."""
        with self.writing(self.path):
            if run.evaluate_at:
                curve = [row(run, report, steps, meta_seed) | {"horizon": run.steps} for steps in sorted(report.loss)]
                append_rows(self.curves_file, curve, CURVE_FIELDS)
            append_rows(self.runs_file, [row(run, report, run.steps, meta_seed)], FIELDS)

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Returns the runs that have no row yet."""
        done = self._done()
        return [run for run in runs if (run.optimizer, run.lr, run.steps, run.task_seed) not in done]

    def _done(self) -> set[tuple[str, float, int, int]]:
        r = self.runs
        return set(zip(r.optimizer, r.lr, r.steps, r.task_seed, strict=True))

    def _mend(self, file: Path, fields: Sequence[str]) -> None:
        """Removes a last row that was cut off. Raises FolderError if a file has other columns."""
        if not file.exists():
            return
        whole = whole_rows(file)
        if not whole:
            file.unlink()
        elif whole.splitlines()[0] != ",".join(fields).encode():
            raise FolderError(f"{file} is no file of l3rs finetune: its columns must be {', '.join(fields)}; give another --out")
        elif whole != file.read_bytes():
            with self.writing(file):
                write_atomically(file, whole)

    def _forget_curves_without_a_run(self) -> None:
        """Drops the curves of runs that were stopped between their two files; the runs are repeated, and so would be their rows."""
        curves, done = self.curves, self._done()
        keys = zip(curves.optimizer, curves.lr, curves.horizon, curves.task_seed, strict=True)
        kept = [True, *(key in done for key in keys)]  # with the header
        if not all(kept):
            with self.writing(self.curves_file):
                write_atomically(self.curves_file, b"".join(compress(self.curves_file.read_bytes().splitlines(keepends=True), kept)))


def along(horizon: int) -> tuple[int, ...]:
    """Spaces the points of a curve: 0, and about eight more."""
    return tuple(sorted({round(horizon * i / 8) for i in range(9)}))


def planned_runs(config: FinetuneConfig) -> list[Run]:
    """Lists every run of the comparison, longest first, so that the cores end together."""
    longest = max(config.steps)
    arms = [Arm(name, name, learned=config.learned, recent=True, head=config.head) for name in config.optimizers]
    return [
        Run(CELL, arm, steps, config.seed + i, PURPOSE, along(steps) if steps == longest else ())
        for steps in sorted(set(config.steps), reverse=True)
        for i in range(config.tasks)
        for arm in arms
    ]


def schedule_for(config: FinetuneConfig) -> Chosen:
    """Finds the schedule of the comparison. Raises ValueError if it does not fit the shipped network."""
    named = list(workbench().network.named_parameters())
    chosen = resolve(config.learned, named)
    chosen.schedule.slots(len(named), [name for name, _ in named])
    return chosen


def summary(results: Results, config: FinetuneConfig) -> pd.DataFrame:
    """Makes one line for each optimizer and horizon: accuracy with its 95% interval over tasks, loss, and the paired difference to L3RS.

    A diverged run counts as accuracy 0, and as an infinite loss.
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
            low, high = max(low, 0.0), min(high, 1.0)  # Student's t knows no bounds, an accuracy does
            line = {"steps": steps, "optimizer": name, "accuracy": mean, "low": low, "high": high, "loss": loss[steps, name]}
            line["lr"] = Arm(name, name, head=config.head).rate(steps)
            if name != OURS and OURS in config.optimizers:
                gaps = stats.mean_interval(mine - accuracy[steps, OURS].to_numpy())
                line["difference"], line["difference_low"], line["difference_high"] = gaps
            lines.append(line)
    return pd.DataFrame(lines)


def baseline_steps(results: Results, config: FinetuneConfig, accuracy: float) -> tuple[float, int]:
    """Finds the steps that the best baseline needs to reach `accuracy` on the tasks of `config`, and the most that any baseline took.

    It reads them off the upper envelope of all baselines and horizons in `results`, linear in log steps; infinite if none gets there.
    """
    r = results.runs
    r = r[(r.optimizer != OURS) & r.task_seed.between(config.seed, config.seed + config.tasks - 1)]
    r = r[[lr == tuned_learning_rate(name, steps, head=config.head) for name, steps, lr in zip(r.optimizer, r.steps, r.lr, strict=True)]]
    means = r.assign(accuracy=r.accuracy.fillna(0)).groupby(["steps", "optimizer"]).accuracy.agg(["mean", "size"])
    envelope = means[means["size"] == config.tasks]["mean"].groupby("steps").max().cummax()
    return float(stats.crossing([math.log(s) for s in envelope.index], envelope.to_list(), accuracy)), int(envelope.index.max())


HEADER = ("optimizer", "steps", "lr", "accuracy", "95% interval", "loss", "to l3rs", "95% interval")


def as_text(summary: pd.DataFrame) -> str:
    """Formats the summary for the terminal."""
    rows = [HEADER]
    for t in summary.to_dict("records"):
        rate = "learned" if t["optimizer"] == OURS else f"{t['lr']:g}"
        row = (t["optimizer"], str(t["steps"]), rate, f"{t['accuracy']:.3f}", f"{t['low']:.3f} .. {t['high']:.3f}", f"{t['loss']:.3f}")
        if math.isnan(t.get("difference", math.nan)):
            rows.append((*row, "", ""))
        else:
            rows.append((*row, f"{t['difference']:+.3f}", f"{t['difference_low']:+.3f} .. {t['difference_high']:+.3f}"))
    return "\n".join(text.table(rows, line=True))


def of_all(starts: Sequence[HeadStartReport]) -> str:
    """What the head starts of all runs chose, in a line."""

    def spread(name: str) -> str:
        values = [value for start in starts if not math.isnan(value := getattr(start, name))]
        return f"{min(values):.3g} to {max(values):.3g}" if values else "none"

    kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(start.kind for start in starts).items())
    return (
        f"Head starts: {kinds}, from {spread('images')} images; on held-out ones {spread('accuracy')} right; "
        f"ridge {spread('ridge')}, scale {spread('scale')}."
    )


def finetune(config: FinetuneConfig, chosen: Chosen, results: Results) -> pd.DataFrame:
    """Makes the missing runs, the table and the picture; returns the table."""
    from l3rs.plots import plot_finetune  # only now: matplotlib takes a second

    learned = chosen.schedule
    runs = planned_runs(config)
    missing = results.missing(runs)
    workers = config.workers or cores()
    heads = {"start": "heads in closed form", "random": "random heads"}[config.head]
    print(
        f"Fine-tuning ResNet-34 (width 16, pretrained on 200 icon classes) on {config.tasks} tasks of 25 new classes,\n"
        f"{len(config.optimizers)} optimizers, {' '.join(map(str, sorted(set(config.steps))))} steps. "
        f"l3rs uses the schedule {text.printable(str(chosen))} ({len(learned.theta)} meta-parameters);\n"
        f"all begin with {heads} (--head), and the baselines' learning rates were tuned so, on other classes. "
        f"{len(missing)} runs on {workers} processes"
        + (f"; {len(runs) - len(missing)} are in {results.runs_file} already." if len(missing) < len(runs) else "."),
        flush=True,
    )
    started = time.perf_counter()
    bar = tqdm(total=sum(r.steps for r in missing), unit="step", desc="fine-tuning", disable=not missing)
    try:
        meta_seed = learned.training["config"]["nes"]["seed"]
    except (KeyError, TypeError):  # the record of its training is free-form
        meta_seed = ""
    starts: list[HeadStartReport] = []
    with bar, closing(execute_all(missing, workers, execute)) as ended:
        for run, report in ended:
            results.append(run, report, meta_seed)
            starts += [report.head_start] if report.head_start else []
            bar.update(run.steps)

    if starts:
        print(f"\n{of_all(starts)}")
    table = summary(results, config)
    print(f"\n{as_text(table)}\n\nto l3rs: accuracy minus the accuracy of l3rs, paired by task.")
    if OURS in config.optimizers and len(config.optimizers) > 1:
        for line in table[table.optimizer == OURS].to_dict("records"):
            needed, most = baseline_steps(results, config, line["accuracy"])
            said = f"{needed:.0f}, {needed / line['steps']:.1f} times as many" if math.isfinite(needed) else f"more than {most}"
            print(f"To match l3rs after {line['steps']} steps, the best baseline of this comparison needs {said}.")
    picture = results.path / "finetune.png"
    with results.writing(picture):
        plot_finetune(results.curves, table, picture)
    print(f"Wrote {results.runs_file}, {results.curves_file} and {picture} in {time.perf_counter() - started:.0f} s.")
    return table
