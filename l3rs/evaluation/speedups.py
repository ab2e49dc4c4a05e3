"""Speedups: how many times as many steps another optimizer needs to match the reference, as a picture and as a table."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from l3rs.evaluation.cell_figures import empty, grouped, legend, panels, step_axis, style
from l3rs.evaluation.cell_tables import Cell, by_horizon, columns, unique
from l3rs.evaluation.pages import Picture
from l3rs.finetuning.arms import Arm
from l3rs.plots import BLACK
from l3rs.stats import speedup

BOTTOM, NEVER = 0.25, 32.0  # where speedups are drawn that are smaller, or infinite


def often_run(table: pd.DataFrame, arm: str, tasks: pd.Index[Any]) -> list[int]:
    """The lengths of an arm's runs, rising, but those with fewer than half of the tasks that it met: few would speak for all."""
    there = table.loc[tasks, [column for column in columns(table) if column[0] == arm]].notna()
    met = int(there.any(axis=1).sum())
    return sorted(horizon for _, horizon in columns(there) if there[arm, horizon].sum() >= max(1, met / 2))


def speedup_of(table: pd.DataFrame, measure: str, reference: str, arm: str) -> dict[int, tuple[float, float, float]]:
    """By the reference's steps: the speedup over an arm with its interval.

    Lengths count that are `often_run`. Left out where the reference diverged, no task is shared, or all runs of the arm are shorter: that
    it did not get there says nothing.
    """
    sign = 1 if measure == "accuracy" else -1
    found: dict[int, tuple[float, float, float]] = {}
    for steps in sorted(h for a, h in columns(table) if a == reference):
        target = table[reference, steps].dropna()
        horizons = often_run(table, arm, target.index)
        if steps <= max(horizons, default=0) and np.isfinite(target).all():
            runs = table.loc[target.index, [(arm, horizon) for horizon in horizons]]
            behind = (sign * runs.sub(target, axis=0).dropna(how="all")).to_numpy(dtype=float)
            found[steps] = _speedup(steps, tuple(np.log(horizons)), behind.shape, behind.tobytes())
    return found


@lru_cache(maxsize=4096)
def _speedup(steps: int, log_steps: tuple[float, ...], shape: tuple[int, int], behind: bytes) -> tuple[float, float, float]:
    """Remembers what takes thousands of resamples: a picture and a table show the same."""
    return speedup(steps, log_steps, np.frombuffer(behind).reshape(shape))


def in_words(times: float, low: float, high: float) -> str:
    """A speedup with its interval: `1.5 times (1.3 to 1.8)`; a bound that is infinite is `never`."""
    if not math.isfinite(times):
        return "never" if not math.isfinite(low) else f"never ({low:.1f} at least)"
    upper = f"{high:.1f}" if math.isfinite(high) else "never"
    return f"{times:.1f} times" + ("" if math.isnan(low) else f" ({low:.1f} to {upper})")


def steps_to_match(cell: Cell, measure: str) -> pd.DataFrame:
    """Makes a table of the speedups of the reference, a line an arm."""
    table, reference = cell.outcomes(measure), cell.reference or ""
    arms = [arm for arm in unique(cell.config.arms) if arm.name != reference]
    found = {arm.name: speedup_of(table, measure, reference, arm.name) for arm in arms if arm.name in table.columns}

    def text(arm: Arm, horizon: int) -> str | None:
        mine = found.get(arm.name, {})
        return in_words(*mine[horizon]) if horizon in mine else "too short runs" if mine else None

    return by_horizon(cell.config, text, arms)


def speedups(cell: Cell, name: str, measure: str) -> Picture:
    """Draws the speedup of the reference: how many times as many steps each arm needs to match it (Figures 3F and 10F)."""
    reference = cell.reference or ""
    caption = (
        f"{cell.about}: how many times as many steps each optimizer needs to reach the {measure} that {reference} has after a run of the "
        "length below, on the tasks that both ran, interpolated in log steps between its own runs. 1 is as fast. Bars are bootstrap 95% "
        "intervals over tasks. Never: not within its longest runs on half of the tasks or more; left out where these are shorter than "
        "L3RS's. Where its shortest runs are good enough, it needs no more than shown."
    )
    table = cell.outcomes(measure)
    if reference not in table.columns or empty(table[reference]):
        return Picture(name, caption, "", None, cell.commands())
    groups = grouped(cell, table, but=reference)
    figure, axes = panels(len(groups), 4.6)
    said = []
    for one, group in zip(axes, groups, strict=True):
        for place, arm in enumerate(group):
            found = speedup_of(table, measure, reference, arm)
            if not found:
                continue
            x = np.array(list(found)) * 1.03 ** (place - (len(group) - 1) / 2)  # side by side, so that bars do not hide each other
            y, low, high = (np.clip(bound, BOTTOM, NEVER) for bound in np.array(list(found.values())).T)
            line = style(cell, arm)
            one.plot(x, np.where(y < NEVER, y, np.nan), label=arm, **line)
            one.plot(x[y == NEVER], y[y == NEVER], **line | {"linestyle": "none"})
            one.vlines(x, np.fmin(low, y), np.fmax(high, y), color=line["color"], linewidth=0.9)
            said.append(f"{arm} " + ", ".join(f"{in_words(*bounds)} at {h}" for h, bounds in found.items()))
        step_axis(one, sorted(cell.config.horizons))
        one.set_yscale("log", base=2)
        one.set_ylim(BOTTOM / 1.15, NEVER * 1.2)
        one.set_yticks([BOTTOM, 0.5, 1, 2, 4, 8, 16, NEVER], ["1/4 or less", "1/2", "1", "2", "4", "8", "16", "never"])
        one.axhline(1, color=BLACK, linewidth=0.8)
        one.set(xlabel=f"length of {reference}'s run (steps)", ylabel="times as many steps")
        legend(one)
    if not said:
        return Picture(name, caption, "", None, cell.commands())
    words = f"Steps needed relative to {reference}'s, by its steps, with 95% intervals: {'; '.join(said)}."
    return Picture(name, caption, words, figure, cell.commands())
