"""From the rows of `l3rs.evaluation.study` to tables: settings of meta-training, and their differences.

A difference between two meta-trainings has two noises: the tasks, and the luck of each meta-training, which only other seeds show. A
difference that both together explain is called noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from l3rs.evaluation.cell_tables import WORST, number, signed
from l3rs.evaluation.pages import MISSING
from l3rs.stats import half_width

START = "the start"


def with_start(rows: pd.DataFrame, setting: str, called: str = START) -> pd.DataFrame:
    """Adds a setting before any generation as one more setting, of one seed: luck has no part in it. Its name begins with `START`."""
    before = rows[(rows.setting == setting) & (rows.generation == 0)]
    whole: pd.DataFrame = pd.concat([rows, before[before.meta_seed == before.meta_seed.min()].assign(setting=called)], ignore_index=True)
    return whole


def at_the_end(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Picks the rows after meta-training, with a column `value`; a run that diverged has the worst."""
    ends = rows[(rows.generation > 0) | rows.setting.astype(str).str.startswith(START)]
    return ends.assign(value=ends[measure].fillna(WORST[measure]))


def ablation(rows: pd.DataFrame, variants: Mapping[str, str], horizons: Sequence[int], measure: str) -> pd.DataFrame:
    """Makes a line for each variant: mean and standard deviation over tasks after meta-training, seeds averaged by task.

    Args:
        rows: of a study.
        variants: names in the rows, by names in the table.
    """
    values = at_the_end(rows, measure)

    def entry(setting: str, horizon: int) -> str:
        x = values[(values.setting == setting) & (values.steps == horizon)].groupby("task").value.mean()
        return MISSING if x.empty else number(x.mean()) + (f" ± {x.std():.3f}" if len(x) > 1 and math.isfinite(x.max()) else "")

    def seeds(setting: str) -> str:
        mine = values[values.setting == setting]
        return f"{mine.meta_seed.nunique()}, {mine.task.nunique()}" if len(mine) else MISSING

    lines = [[*(entry(setting, h) for h in horizons), seeds(setting)] for setting in variants.values()]
    return pd.DataFrame(lines, pd.Index(variants, name="variant"), [*(f"{h} steps" for h in horizons), "seeds, tasks"], dtype=object)


class Contrast(NamedTuple):
    """The lead of a setting over the reference, in points of accuracy or in loss, with a 95% interval; NaN if it has none."""

    mean: float
    low: float
    high: float


def seed_variance(values: pd.DataFrame) -> tuple[float, int]:
    """Pools the variance between the means of meta-training seeds over settings with several; returns it and its degrees of freedom.

    It drops a seed with an infinite loss.
    """
    means = values.groupby(["setting", "meta_seed"]).value.mean()
    by_setting = means[np.isfinite(means)].groupby("setting")
    freedom = int((by_setting.size() - 1).sum())
    return (float((by_setting.var() * (by_setting.size() - 1)).sum() / freedom) if freedom else math.nan), freedom


def luck(values: pd.DataFrame, sides: Collection[str]) -> tuple[float, int]:
    """The variance that the luck of meta-training gives the difference of two settings, and its degrees of freedom.

    It is the pooled variance between seeds over each side's number of them; in a start luck has no part.
    """
    variance, freedom = seed_variance(values)
    seeds = values.groupby("setting").meta_seed.nunique()
    return variance * sum(1 / seeds[side] for side in sides if not side.startswith(START)), freedom


def luck_of_the_same(values: pd.DataFrame, one: str, other: str) -> tuple[float, int]:
    """As `luck`, for two uses of the same meta-trainings: the variance of the difference between seeds, over their number."""
    means = values.pivot_table(index="meta_seed", columns="setting", values="value", aggfunc="mean")
    gaps = (means[one] - means[other]).dropna()
    gaps = gaps[np.isfinite(gaps)]
    return (float(gaps.var() / len(gaps)) if len(gaps) > 1 else math.nan), max(len(gaps) - 1, 0)


def contrasts(rows: pd.DataFrame, reference: str, measure: str, uses: Collection[str] = ("",)) -> dict[tuple[str, int], Contrast]:
    """Compares every setting with the reference, by (setting, horizon); positive is better.

    A setting is compared with the reference in the same use; and the reference in another use with the reference itself, seed by seed.

    The mean is over the differences on common tasks, after averaging the seeds of each side. Its variance has three parts: the variance of
    the differences over their number, and, for each side but a start, in which luck has no part, the variance between seeds, pooled over
    the settings in the same use, over its number of seeds. The interval is Student's, with the degrees of freedom of Welch and
    Satterthwaite (Satterthwaite 1946, doi 10.2307/3002019). There is no interval if no setting has two seeds, or a run diverged.

    Args:
        rows: with the columns of `l3rs.evaluation.study`.
        reference: the name of a setting.
        measure: `accuracy` or `loss`.
        uses: what is added to a setting's name in the rows by each use, see `l3rs.evaluation.study.Study.uses`.
    """
    scale = 100 if measure == "accuracy" else -1
    found = {}
    ends = at_the_end(rows, measure)
    use = {name: max((added for added in uses if name.endswith(added)), key=len) for name in ends.setting.astype(str).unique()}
    for horizon in sorted(ends.steps.unique()):
        values = ends[ends.steps == horizon]
        tasks = values.pivot_table(index="task", columns="setting", values="value", aggfunc="mean")
        for setting in tasks.columns.drop(reference, errors="ignore"):
            again = setting == reference + use[setting]
            against = reference if again else reference + use[setting]
            if against not in tasks:
                continue
            gaps = scale * (tasks[setting] - tasks[against]).dropna()
            if gaps.empty:
                continue
            alike = values[values.setting.map(use) == use[setting]]
            variance, freedom = luck_of_the_same(values, setting, against) if again else luck(alike, (setting, against))
            mean, half = float(gaps.mean()), math.nan
            if freedom and len(gaps) > 1 and math.isfinite(mean):
                half = half_width((gaps.var() / len(gaps), len(gaps) - 1), (scale**2 * variance, freedom))
            found[str(setting), int(horizon)] = Contrast(mean, mean - half, mean + half)
    return found


def contrast_table(found: Mapping[tuple[str, int], Contrast], variants: Mapping[str, str], measure: str) -> pd.DataFrame:
    """Makes a line for each variant of `contrasts`: the differences with their intervals, and a verdict."""
    digits = 1 if measure == "accuracy" else 3
    horizons = sorted({horizon for _, horizon in found})

    def text(c: Contrast | None) -> str:
        if c is None:
            return MISSING
        if not math.isfinite(c.mean):
            return "diverged"
        return signed(c.mean, c.low, c.high, 1, digits)

    def verdict(setting: str) -> str:
        here = {h: found[setting, h] for h in horizons if (setting, h) in found}
        if not here or any(math.isnan(c.low) for c in here.values()):
            return MISSING
        words = {"better": [h for h, c in here.items() if c.low > 0], "worse": [h for h, c in here.items() if c.high < 0]}
        said = [f"{word} at {', '.join(map(str, where))}" for word, where in words.items() if where]
        return "; ".join(said) or "within the noise"

    lines = [[*(text(found.get((s, h))) for h in horizons), verdict(s)] for s in variants.values()]
    return pd.DataFrame(lines, pd.Index(variants, name="variant"), [*(f"{h} steps" for h in horizons), "verdict"], dtype=object)
