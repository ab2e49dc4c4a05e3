"""From the rows of a cell to tables; nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from l3rs import stats
from l3rs.evaluation.cells import EvaluationConfig, identity_of
from l3rs.evaluation.pages import MISSING
from l3rs.finetuning.arms import Arm

MEASURES = ("accuracy", "loss")
WORST = {"accuracy": 0.0, "loss": math.inf}  # of a run that diverged; in the rows it stays NaN


def shown_rows(rows: pd.DataFrame, config: EvaluationConfig) -> pd.DataFrame:
    """Picks the rows of a cell that end its runs, as its arms are now.

    It drops rows of another learning rate or head than the arm has now, and of another schedule than its file holds now, or, without that
    file, than the newest rows have.
    """
    r = rows[(rows.cell == config.cell) & (rows.steps == rows.horizon) & rows.error.isna()]
    shown = [(arm, learned_shown(arm, config, r)) for arm in config.arms]
    planned = [(arm, horizon, learned) for arm, learned in shown for horizon in arm.horizons or config.horizons]
    current = {(arm.name, arm.meta_seed, arm.head, horizon, rate_now(config, arm, horizon), learned) for arm, horizon, learned in planned}
    keys = zip(r.arm, r.meta_seed, r["head"], r.horizon, r.lr, r.learned, strict=True)
    return r.loc[np.array([key in current for key in keys], dtype=bool)]


def outcomes(rows: pd.DataFrame, config: EvaluationConfig, measure: str) -> pd.DataFrame:
    """Reads the outcome of each run of a cell: tasks by (arm, horizon); NaN if there is no row, or the run failed.

    It averages the meta-training seeds of an arm, task by task.

    Args:
        measure: `accuracy` or `loss`.
    """
    r = shown_rows(rows, config)
    named = dict.fromkeys((arm.name, horizon) for arm in config.arms for horizon in arm.horizons or config.horizons)
    wanted = pd.MultiIndex.from_tuples(named, names=["arm", "horizon"])
    values = r.assign(value=r[measure].fillna(WORST[measure]))
    table = values.pivot_table(index="task_seed", columns=["arm", "horizon"], values="value", aggfunc="mean")
    return table.reindex(columns=wanted)


def learned_now(arm: Arm) -> str | None:
    """The identity of an arm's schedule; None if its file is missing, like others' weights in a fresh clone."""
    try:
        return identity_of(arm.optimizer, arm.learned)
    except ValueError:
        return None


def learned_shown(arm: Arm, config: EvaluationConfig, rows: pd.DataFrame) -> str | None:
    """The identity of the schedule whose rows to show: the arm's own, or, without its file, the one of the newest rows."""
    now = learned_now(arm)
    if now is not None:
        return now
    mine = rows[(rows.arm == arm.name) & (rows.meta_seed == arm.meta_seed) & rows.horizon.isin(list(arm.horizons or config.horizons))]
    return mine.sort_values("date", kind="stable").learned.iloc[-1] if len(mine) else None


def rate_now(config: EvaluationConfig, arm: Arm, horizon: int) -> float | None:
    """Its learning rate; None if it was not tuned yet."""
    try:
        return config.rate(arm, horizon)
    except ValueError:
        return None


def unique(arms: Sequence[Arm]) -> list[Arm]:
    """One arm of each name."""
    return list({arm.name: arm for arm in arms}.values())


def columns(table: pd.DataFrame) -> list[tuple[str, int]]:
    """Lists the (arm, horizon) of each column."""
    return [(str(key[0]), int(key[1])) for key in table.columns.to_flat_index()]


class Entry(NamedTuple):
    """One entry of a table: mean, standard deviation and interquartile mean over `tasks` tasks."""

    mean: float
    std: float
    iqm: float
    tasks: int


def summarize(table: pd.DataFrame) -> dict[tuple[str, int], Entry]:
    """Makes an entry for each arm and horizon with a run."""
    found: dict[tuple[str, int], Entry] = {}
    for key in columns(table):
        x = table[key].dropna().to_numpy(dtype=float)
        if len(x):
            spread = float(x.std(ddof=1)) if len(x) > 1 and math.isfinite(x.max()) else math.nan
            found[key] = Entry(float(x.mean()), spread, stats.interquartile_mean(x), len(x))
    return found


class Difference(NamedTuple):
    """The lead of an arm over another on common tasks: mean, 95% interval (`l3rs.stats.interval`), probability of improvement."""

    mean: float
    low: float
    high: float
    probability: float
    tasks: int


def differences(table: pd.DataFrame, measure: str, reference: str) -> dict[tuple[str, int], Difference]:
    """Subtracts every other arm from `reference`, task by task; losses the other way round, so that above 0 the reference is better."""
    found: dict[tuple[str, int], Difference] = {}
    for arm, horizon in columns(table):
        if arm == reference or (reference, horizon) not in table.columns:
            continue
        pair = table[[(reference, horizon), (arm, horizon)]].dropna().to_numpy(dtype=float)
        if len(pair):
            mine, theirs = pair.T if measure == "accuracy" else -pair.T
            gain, better = mine - theirs, stats.probability_of_improvement(mine, theirs)
            found[arm, horizon] = Difference(float(gain.mean()), *stats.interval(gain), better, len(gain))
    return found


def planned_by(config: EvaluationConfig) -> set[tuple[str, int]]:
    """The arms of a cell by name, each with its lengths of a run; arms may share a name."""
    return {(arm.name, horizon) for arm in config.arms for horizon in arm.horizons or config.horizons}


def missing_arms(config: EvaluationConfig, table: pd.DataFrame) -> list[str]:
    """Names the arms that lack runs."""
    lacking = [
        arm.name
        for arm in config.arms  # of which some may share a name, each with lengths of its own
        if any(table[arm.name, h].notna().sum() < config.horizons[h] for h in arm.horizons or config.horizons)
    ]
    return list(dict.fromkeys(lacking))


def of_a_seed(arm: Arm) -> bool:
    """Whether an arm shows another meta-training seed."""
    return ", seed " in arm.name


class Cell(NamedTuple):
    """A cell of the comparison: its config, the config's file, all rows, and a few words about it."""

    config: EvaluationConfig
    file: str
    rows: pd.DataFrame
    about: str

    @property
    def reference(self) -> str | None:
        """The name of the reference: the first arm, if it is L3RS."""
        first = self.config.arms[0] if self.config.arms else None
        return first.name if first is not None and first.ours else None

    def outcomes(self, measure: str) -> pd.DataFrame:
        """The outcomes of its runs."""
        return outcomes(self.rows, self.config, measure)

    def part(self, arms: Sequence[Arm], horizons: Sequence[int] = ()) -> Cell:
        """Picks some arms and lengths of a run, or all lengths. It drops an arm without these lengths."""
        return self._replace(config=self.config.part(arms, [h for h in horizons if h in self.config.horizons]))

    def without_seeds(self) -> Cell:
        """Drops the arms of other seeds, which have a table of their own."""
        return self.part([arm for arm in self.config.arms if not of_a_seed(arm)])

    def commands(self) -> tuple[str, ...]:
        """Lists the commands that make the missing runs, and the files that they need; empty if none are missing."""
        lacking = missing_arms(self.config, self.outcomes("accuracy"))
        if not lacking:
            return ()
        needed = {arm.learned: arm for arm in self.config.arms if arm.name in lacking and learned_now(arm) is None}
        pages = {file: "reproduce" if arm.ours else "learned-optimizers" for file, arm in needed.items()}
        files = [f"# {arm.name} needs the file {file}: see docs/{pages[file]}.md" for file, arm in needed.items()]
        untuned = [arm for arm in unique(self.config.arms) if rate_now(self.config, arm, min(self.config.horizons)) is None]
        if not self.config.workload.class_split.classes["meta-train"]:
            untuned = []  # another cell tunes their learning rates
        names: dict[str, dict[str, None]] = {}
        for arm in untuned:
            where = f" --config {self.file}" if self.config.rates else " --head start" if arm.head == "start" else ""
            names.setdefault(where, {})[arm.optimizer] = None
        tune = [f"python evaluate/tune.py{where} --names {' '.join(mine)}" for where, mine in names.items()]
        return (*files, *tune, f"python evaluate/run.py --config {self.file}")


def by_horizon(config: EvaluationConfig, text: Callable[[Arm, int], str | None], arms: Sequence[Arm] | None = None) -> pd.DataFrame:
    """Makes a table of text, an arm a line, a horizon a column. None becomes `missing`, or stays empty if no run is planned."""

    planned = planned_by(config)

    def entry(arm: Arm, horizon: int) -> str:
        return (text(arm, horizon) or MISSING) if (arm.name, horizon) in planned else ""

    horizons = sorted(config.horizons)
    arms = unique(config.arms) if arms is None else arms
    lines = [[entry(arm, h) for h in horizons] for arm in arms]
    return pd.DataFrame(lines, pd.Index([arm.name for arm in arms], name="optimizer"), [f"{h} steps" for h in horizons], dtype=object)


def tasks_note(config: EvaluationConfig, horizon: int, tasks: int) -> str:
    """The number of tasks, if fewer than planned."""
    return f", n={tasks}" if tasks < config.horizons[horizon] else ""


def means(config: EvaluationConfig, table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation as in the paper; in brackets tuned learning rates and, if tasks are missing, their number."""
    entries = summarize(table)

    def text(arm: Arm, horizon: int) -> str | None:
        entry = entries.get((arm.name, horizon))
        if entry is None:
            return None
        spread = "" if math.isnan(entry.std) else f" ± {entry.std:.3f}"
        rate = f"lr {rate_now(config, arm, horizon):g}" if arm.tuned else ""
        notes = (rate + tasks_note(config, horizon, entry.tasks)).removeprefix(", ")
        return f"{number(entry.mean)}{spread}" + (f" ({notes})" if notes else "")

    return by_horizon(config, text)


def number(x: float) -> str:
    """Formats to three digits; an infinite mean is `diverged`."""
    return f"{x:.3f}" if math.isfinite(x) else "diverged"


def signed(mean: float, low: float = math.nan, high: float = math.nan, scale: float = 100, digits: int = 1) -> str:
    """Formats a lead with its interval, if it has one: `+1.5 (1.0 to 2.0)`. `scale` is 100 for points of accuracy."""
    mean, low, high = (round(scale * x, digits) + 0.0 for x in (mean, low, high))  # + 0.0: there is no -0.0
    return f"{mean:+.{digits}f}" + ("" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})")


def points(gaps: pd.Series[float]) -> str:
    """The mean of paired differences in points of accuracy, with its 95% interval."""
    return signed(float(gaps.mean()), *stats.interval(gaps.to_numpy()))


def interquartile_means(config: EvaluationConfig, table: pd.DataFrame) -> pd.DataFrame:
    """The mean of the middle half of the tasks."""
    entries = summarize(table)

    def text(arm: Arm, horizon: int) -> str | None:
        e = entries.get((arm.name, horizon))
        return None if e is None else number(e.iqm) + tasks_note(config, horizon, e.tasks)

    return by_horizon(config, text)


def paired(config: EvaluationConfig, table: pd.DataFrame, measure: str, reference: str) -> pd.DataFrame:
    """Paired differences to the reference with their 95% intervals, the probability of improvement, and the number of common tasks.

    Accuracies are in points. If one run diverged, there is no interval.
    """
    found = differences(table, measure, reference)
    scale, digits = (100, 1) if measure == "accuracy" else (1, 3)

    def text(arm: Arm, horizon: int) -> str | None:
        d = found.get((arm.name, horizon))
        if d is None:
            return None
        tail = f"{d.probability:.0%}, n={d.tasks}"
        if not math.isfinite(d.mean):
            return f"diverged; {tail}"
        return f"{signed(d.mean, d.low, d.high, scale, digits)}; {tail}"

    return by_horizon(config, text, [arm for arm in unique(config.arms) if arm.name != reference])


class Standing(NamedTuple):
    """An arm of L3RS at a horizon: its mean, the best other optimizer and its mean, and the difference; None if rows are missing."""

    arm: str
    horizon: int
    mean: float | None
    best: str | None = None
    of_best: float | None = None
    ahead: Difference | None = None


def least_behind(mine: pd.Series[float], table: pd.DataFrame, others: Sequence[str], horizon: int) -> tuple[str, pd.Series[float]] | None:
    """Finds the arm that is least behind `mine`, an accuracy for each task, and the lead of `mine` over it by task; None without rows.

    The best is chosen on the tasks that all of these arms with rows have run, or, if there is none, among those that ran most: an arm
    whose rows are still few can be the best. Of two that are level there, all their tasks decide.
    """
    there = [(other, horizon) for other in others if (other, horizon) in table.columns]
    gaps = table[there].rsub(mine, axis=0).droplevel("horizon", axis=1).dropna(axis=1, how="all")
    if gaps.empty:
        return None
    common = gaps.dropna()
    chosen_on = common if len(common) else gaps.loc[:, gaps.count() == gaps.count().max()]
    best = min(chosen_on, key=lambda arm: (round(chosen_on[arm].mean(), 9), gaps[arm].mean()))
    return str(best), gaps[best].dropna()


def others_of(mine: Arm, arms: Sequence[Arm]) -> list[str]:
    """Names the arms that an arm of L3RS is compared with: not those with a head start, where it has a random head itself."""
    return [arm.name for arm in arms if not arm.ours and (arm.head == "random" or arm.head == mine.head)]


def standings(cell: Cell) -> list[Standing]:
    """Compares each arm of L3RS at each horizon with the best of `others_of` it, the one that is `least_behind`."""
    table = cell.outcomes("accuracy")
    entries = summarize(table)
    found = []
    for horizon in sorted(cell.config.horizons):
        arms = [arm for arm in unique(cell.config.arms) if (arm.name, horizon) in table.columns]
        for mine in (arm for arm in arms if arm.ours):
            arm = mine.name
            mean = entries[arm, horizon].mean if (arm, horizon) in entries else None
            nearest = least_behind(table[arm, horizon], table, others_of(mine, arms), horizon)
            if nearest is None:
                found.append(Standing(arm, horizon, mean))
                continue
            best = nearest[0]
            (ahead,) = differences(table[[(arm, horizon), (best, horizon)]], "accuracy", arm).values()
            found.append(Standing(arm, horizon, mean, best, entries[best, horizon].mean, ahead))
    return found


def against_best(cells: Mapping[str, Cell]) -> pd.DataFrame:
    """Makes a table of `standings`, a line a cell, horizon and arm of L3RS; `cells` are by their names in the lines."""
    columns = ["accuracy", "of the best other", "which", "points ahead", "better on", "tasks"]

    def texts(s: Standing) -> list[str]:
        mean = MISSING if s.mean is None else number(s.mean)
        if s.ahead is None or s.best is None or s.of_best is None:
            return [mean] + [MISSING] * (len(columns) - 1)
        d = s.ahead
        return [mean, number(s.of_best), s.best, signed(d.mean, d.low, d.high), f"{d.probability:.0%}", str(d.tasks)]

    lines: dict[str, list[str]] = {}
    for name, cell in cells.items():
        found = standings(cell)
        if all(s.mean is None for s in found):
            lines[name] = [MISSING] * len(columns)
            continue
        lines |= {f"{name}, {s.horizon} steps, {s.arm}": texts(s) for s in found}
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns, dtype=object)


def over_seeds(config: EvaluationConfig, table: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Compares arms that differ only in their meta-training seed, a column a horizon: their accuracies, and the mean over seeds by task.

    Below, in points: the standard deviation of the seeds' means, and the lead of their mean over the best other optimizer, as in
    `standings`. It takes only tasks and horizons that all of these arms have.
    """
    others = others_of(config.arms[0], unique(config.arms))
    ahead = "mean minus the best other, points"
    lines = [*arms, "mean of the seeds", "between seeds, points", ahead, "which"]
    horizons = [h for h in sorted(config.horizons) if all((arm, h) in table.columns for arm in arms)]
    found = nothing(lines, [f"{h} steps" for h in horizons], "meta-training seed")
    for horizon in horizons:
        mine = table[[(arm, horizon) for arm in arms]].droplevel("horizon", axis=1).dropna()
        if mine.empty:
            continue
        mean = mine.mean(axis=1)
        column = [number(x) for x in (*mine.mean(), mean.mean())] + [f"{100 * mine.mean().std():.1f}"]
        if nearest := least_behind(mean, table, others, horizon):
            best, gap = nearest
            column += [f"{points(gap)}, n={len(gap)}", best]
        else:
            column += [MISSING, MISSING]
        found[f"{horizon} steps"] = column
    return found


def nothing(lines: Sequence[str], columns: Sequence[str], name: str) -> pd.DataFrame:
    """Makes a table in which everything is missing."""
    return pd.DataFrame(MISSING, pd.Index(lines, name=name), list(columns), dtype=object)
