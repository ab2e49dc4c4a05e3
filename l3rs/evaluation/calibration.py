"""Whether lr = 1 is right: the accuracy of one schedule of L3RS with its steps multiplied by several numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from l3rs.evaluation.cell_figures import legend, panels
from l3rs.evaluation.cell_tables import Cell, by_horizon, columns, differences, signed, unique
from l3rs.evaluation.pages import Picture
from l3rs.finetuning.arms import Arm
from l3rs.plots import STYLES, look
from l3rs.stats import mean_interval


def multiplied(cell: Cell) -> dict[float, str]:
    """Names the arm of each multiplier of the reference's steps, the smallest first; empty if there is but one."""
    first = cell.config.arms[0]
    if not first.ours:
        return {}

    def but_for_lr(arm: Arm) -> Arm:
        return replace(arm, name="", lr=None, horizons=())

    same = [arm for arm in unique(cell.config.arms) if but_for_lr(arm) == but_for_lr(first)]
    found = {1.0 if arm.lr is None else arm.lr: arm.name for arm in same}
    return dict(sorted(found.items())) if len(found) > 1 and 1.0 in found else {}


def calibration_table(cells: Mapping[str, Cell]) -> pd.DataFrame:
    """The points by which lr = 1 is ahead of each other multiplier, a line a cell and multiplier, a column a length."""
    parts = []
    for name, cell in cells.items():
        rates = multiplied(cell)
        found = differences(cell.outcomes("accuracy"), "accuracy", rates[1.0])

        def text(arm: Arm, horizon: int, found: dict = found) -> str | None:  # type: ignore[type-arg]
            d = found.get((arm.name, horizon))
            return None if d is None else f"{signed(d.mean, d.low, d.high)}, n={d.tasks}"

        others = [next(arm for arm in cell.config.arms if arm.name == called) for rate, called in rates.items() if rate != 1]
        part = by_horizon(cell.config, text, others)
        part.index = pd.Index([f"{name}, against lr {rate:g}" for rate in rates if rate != 1])
        parts.append(part)
    return pd.concat(parts).fillna("").rename_axis("network") if parts else pd.DataFrame(dtype=object)


def calibration_picture(cells: Mapping[str, Cell], name: str, caption: str, commands: tuple[str, ...]) -> Picture:
    """Draws accuracy against the multiplier, a line a cell and a panel a length of a run."""
    tables = {cell: (rows.outcomes("accuracy"), multiplied(rows)) for cell, rows in cells.items()}
    points: dict[int, dict[str, dict[float, tuple[float, float, float]]]] = {}
    for cell, (table, rates) in tables.items():
        for rate, arm in rates.items():
            for horizon in sorted(h for a, h in columns(table) if a == arm):
                if len(x := table[arm, horizon].dropna()):
                    points.setdefault(horizon, {}).setdefault(cell, {})[rate] = mean_interval(x.to_numpy())
    compared = {h: {cell: by_rate for cell, by_rate in by_cell.items() if len(by_rate) > 1} for h, by_cell in points.items()}
    points = {horizon: by_cell for horizon, by_cell in compared.items() if by_cell}
    if not points:
        return Picture(name, caption, "", None, commands)
    looks = {cell: look(*which) for cell, which in zip(tables, itertools.cycle(list(STYLES.values())[1:]), strict=False)}
    figure, axes = panels(len(points), 2.3, sharex=True)
    said, lines = [], {}
    for one, (horizon, by_cell) in zip(axes, sorted(points.items()), strict=True):
        for place, (cell, by_rate) in enumerate(by_cell.items()):
            mean, low, high = np.array(list(by_rate.values())).T
            spread = np.nan_to_num([mean - low, high - mean])
            x = np.array(list(by_rate)) * 1.03 ** (place - (len(by_cell) - 1) / 2)  # side by side, so that bars do not hide each other
            lines[cell] = one.errorbar(x, mean, yerr=spread, elinewidth=0.9, label=cell, **looks[cell])
            said.append(f"{cell}, {horizon} steps, " + ", ".join(f"{x[0]:.3f} at {rate:g}" for rate, x in by_rate.items()))
        one.set(title=f"{horizon} steps", xscale="log", ylabel="evaluation accuracy")
        ticks = sorted({rate for by_rate in by_cell.values() for rate in by_rate})
        one.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        one.minorticks_off()
    axes[-1].set_xlabel("lr, the multiplier of the schedule's steps")
    legend(axes[-1], below=0.35, handles=[lines[cell] for cell in looks if cell in lines])
    return Picture(name, caption, f"Accuracy by lr: {'; '.join(said)}.", figure, commands)
