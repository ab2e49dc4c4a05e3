"""The figures of the evaluation, from rows: each is a picture with its caption, and with what is seen in it in words.

All are one column wide, so that they can be read on a phone; lines differ in marker or dash besides colour, for print in grey.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l3rs.evaluation.ablation_tables import Contrast
from l3rs.evaluation.cell_tables import Cell, columns, standings, unique
from l3rs.evaluation.pages import Picture
from l3rs.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, STYLES, curve_figure, look, tidy
from l3rs.stats import mean_interval, performance_profile

WIDTH = 5.6  # inches
META_TRAINING = (10, 100)  # lengths of the runs that shipped schedules were meta-trained on, in steps
VARIANTS: Mapping[str, tuple[str, str, str]] = {  # of one optimizer, by the beginning of the arm's name
    "L3RS generalist refreshed": (GREY, "P", ":"),
    "L3RS generalist with head start": (GREY, ">", "-."),
    "L3RS generalist": (GREY, "p", "--"),
    "L3RS refreshed": (BLACK, "D", ":"),
    "L3RS with head start": (BLACK, "s", "--"),
    "L3RS unlearned": (SKY, "o", "-"),
    "L3RS paper": (GREY, "h", "-"),
    "L3RS, seed": (GREY, ".", ":"),
    "L3RS six": (GREY, "*", "-."),
    "Schedule-free AdamW default": (PURPLE, "<", ":"),
    "VeLO (ft)": (RED, "X", "--"),
    "Celo (ft)": (PURPLE, "X", "--"),
}
MARKERS = {"1e-3": "s", "1e-4": "^", "1e-5": "D"}  # of the paper's fixed learning rates


def style(cell: Cell, name: str) -> dict[str, Any]:
    """The style of an arm, the same in every figure."""
    optimizer = next(arm.optimizer for arm in cell.config.arms if arm.name == name)
    colour, marker, dash = next((known for begin, known in VARIANTS.items() if name.startswith(begin)), STYLES[optimizer])
    return look(colour, next((m for rate, m in MARKERS.items() if rate in name), marker), dash)


def panels(rows: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Makes a figure of one column of panels, each this many inches high."""
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, 1, **options)).flat)
    for one in axes:
        tidy(one)
    return figure, axes


def legend(axes: Axes, ncols: int = 2, below: float = 0.2, handles: Sequence[Any] | None = None) -> None:
    """Draws the legend below the panel, in columns, by this share of its height; of these artists, or of all in the panel."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=ncols, loc="upper center", bbox_to_anchor=(0.5, -below), handlelength=3.4)


def step_axis(axes: Axes, horizons: Sequence[int]) -> None:
    """Steps on a logarithmic axis, with the range of meta-training shaded."""
    axes.set_xscale("log")
    axes.set_xticks(horizons, [f"{h:,}" for h in horizons])
    axes.minorticks_off()
    axes.axvspan(*META_TRAINING, color="#999999", alpha=0.15, linewidth=0)


def met(horizon: int) -> bool:
    """Whether runs are of a length that shipped schedules were meta-trained on."""
    return META_TRAINING[0] <= horizon <= META_TRAINING[1]


def empty(table: pd.DataFrame | pd.Series[float]) -> bool:
    """Whether it is empty."""
    return not table.notna().to_numpy().any()


def grouped(cell: Cell, table: pd.DataFrame, but: str = "") -> list[list[str]]:
    """Groups the names of arms that ran by panel: the paper's rows, and the tuned ones; L3RS is in both."""
    arms = [arm for arm in unique(cell.config.arms) if not empty(table[arm.name]) and arm.name != but]
    groups = [[arm for arm in arms if arm.ours or arm.tuned == tuned] for tuned in (False, True)]
    shown = [group for group in groups if not all(arm.ours for arm in group)] or groups[:1]
    return [[arm.name for arm in group] for group in shown]


def progress(cell: Cell, name: str, measure: str, together: bool = False) -> Picture:
    """Accuracy or loss at the end of runs, against their length: above the untuned ones, below tuned baselines (Figures 3 and 10).

    Args:
        together: draws all in one panel.
    """
    table = cell.outcomes(measure)
    caption = (
        f"{cell.about}: evaluation {measure} at the end of a run, against the length of the run, each a run of its own. "
        + ("" if together else "Above what has no tuned learning rate, as the paper's rows, below what has one. ")
        + "Bands are 95% intervals of the mean over tasks (Student's t); grey is the range "
        "of lengths in meta-training." + (" A mean that a diverged run makes infinite has no point." if measure == "loss" else "")
    )
    if empty(table):
        return Picture(name, caption, "", None, cell.commands())
    groups = grouped(cell, table)
    groups = [list(dict.fromkeys(arm for group in groups for arm in group))] if together else groups
    figure, axes = panels(len(groups), 4.2)
    ends: dict[str, None] = {}
    for one, group in zip(axes, groups, strict=True):
        drawn: list[float] = []
        for arm in group:
            points = {h: mean_interval(x) for h in sorted(table[arm].columns) if len(x := finite(table[arm, h]))}
            if not points:
                continue
            steps, (mean, low, high) = list(points), np.array(list(points.values())).T
            line = style(cell, arm)
            one.plot(steps, mean, label=arm, **line)
            one.fill_between(steps, low, high, color=line["color"], alpha=0.12, linewidth=0)
            drawn += mean.tolist()
            ends[f"{arm} from {mean[0]:.3f} at {steps[0]} steps to {mean[-1]:.3f} at {steps[-1]}"] = None
        step_axis(one, sorted(cell.config.horizons))
        margin = 0.06 * (max(drawn, default=1) - min(drawn, default=0)) + 0.01
        one.set_ylim(max(0.0, min(drawn, default=0) - margin), max(drawn, default=1) + margin)
        one.set(xlabel="length of the run (steps)", ylabel="evaluation accuracy" if measure == "accuracy" else "cross entropy (nats)")
        legend(one)
    return Picture(name, caption, f"Mean evaluation {measure}, line by line: {'; '.join(ends)}.", figure, cell.commands())


def finite(values: pd.Series[float]) -> np.ndarray:
    """Drops missing values, and infinite ones, for which an axis has no room."""
    x = values.dropna().to_numpy(dtype=float)
    return x if np.isfinite(x).all() else x[:0]


def profiles(cell: Cell, name: str) -> Picture:
    """Performance profiles: the share of tasks with at least an accuracy, a panel a length in the range of meta-training."""
    table = cell.outcomes("accuracy")
    arms = [a.name for a in unique(cell.config.arms) if a.lr is None]
    within = [h for h in sorted(cell.config.horizons) if met(h)]
    horizons = [h for h in within if not empty(table[[key for key in columns(table) if key[0] in arms and key[1] == h]])]
    caption = (
        f"{cell.about}: performance profiles, the share of tasks on which an optimizer is at least as accurate as the value below; further "
        "to the right is better. The paper's fixed learning rates are left out. A run that diverged has accuracy 0."
    )
    if not horizons:
        return Picture(name, caption, "", None, cell.commands())
    figure, axes = panels(len(horizons), 2.3)
    medians = []
    for one, horizon in zip(axes, horizons, strict=True):
        values = {arm: table[arm, horizon].dropna().to_numpy(dtype=float) for arm in arms if (arm, horizon) in table.columns}
        values = {arm: x for arm, x in values.items() if len(x)}
        everything = np.concatenate(list(values.values()))
        low, high = np.quantile(everything, 0.01), everything.max()
        grid = np.linspace(low - 0.01, high + 0.01, 400)
        for place, (arm, x) in enumerate(values.items()):
            line = style(cell, arm) | {"markevery": (13 * place, 80), "markersize": 4}
            one.plot(grid, performance_profile(x, grid), label=arm, **line)
            medians.append(f"{arm} {np.median(x):.3f} at {horizon}")
        one.set(title=f"{horizon} steps", xlabel="evaluation accuracy", ylabel="share of tasks", ylim=(0, 1.02))
    legend(axes[-1], below=0.35)
    return Picture(name, caption, f"Median accuracy over tasks, by steps: {'; '.join(medians)}.", figure, cell.commands())


def meta_training(name: str, schedule: str, curve: pd.DataFrame | None, commands: tuple[str, ...]) -> Picture:
    """Fitness and accuracy along meta-training (Figure 6)."""
    caption = (
        f"Meta-training of {schedule}: accuracy on meta-validation tasks, and losses. The fitness of a candidate is minus its evaluation "
        "loss after K steps; K is drawn anew for each task, which is why the mean loss jumps."
    )
    if curve is None:
        return Picture(name, caption, "", None, commands)
    v = curve.dropna(subset=["validation_accuracy"])
    first, last = v.iloc[0], v.iloc[-1]
    alt = (
        f"From generation {first.generation:.0f} to {last.generation:.0f} meta-validation accuracy goes from "
        f"{first.validation_accuracy:.3f} to {last.validation_accuracy:.3f}, and the loss from {first.validation_loss:.3f} to "
        f"{last.validation_loss:.3f}."
    )
    return Picture(name, caption, alt, curve_figure(curve, f"{schedule}: meta-training", stacked=True))


def meta_trainings(name: str, curves: Mapping[str, pd.DataFrame], commands: tuple[str, ...]) -> Picture:
    """Accuracy and loss on meta-validation along several meta-trainings, a line a schedule (Figure 6)."""
    caption = (
        f"Meta-training of {', '.join(curves) or 'schedules'}: accuracy and loss on their meta-validation tasks. A generation of evolution "
        "strategies and one of meta-gradients differ in cost; the tasks and their lengths may differ as well."
    )
    if not curves:
        return Picture(name, caption, "", None, commands)
    figure, axes = panels(2, 3.0, sharex=True)
    said = []
    for (called, curve), (colour, marker, dash) in zip(curves.items(), itertools.cycle(STYLES.values()), strict=False):
        v = curve.dropna(subset=["validation_accuracy"])
        for one, column in zip(axes, ("validation_accuracy", "validation_loss"), strict=True):
            one.plot(v.generation, v[column], label=called, **look(colour, marker, dash) | {"linewidth": 1.5, "markersize": 4})
        said.append(f"{called} from {v.validation_loss.iloc[0]:.3f} to {v.validation_loss.iloc[-1]:.3f}")
    axes[0].set(ylabel="evaluation accuracy")
    axes[1].set(xlabel="generation", ylabel="cross entropy (nats)")
    legend(axes[1])
    return Picture(name, caption, f"Meta-validation loss: {'; '.join(said)}.", figure, commands)


def ahead(cells: Mapping[str, Cell], name: str, caption: str, commands: tuple[str, ...]) -> Picture:
    """Draws the lead of each arm of L3RS over the best other optimizer, by cell, at the lengths of meta-training."""
    found = {
        (f"{cell}, {s.arm}", s.horizon): Contrast(*(100 * x for x in s.ahead[:3]))
        for cell, rows in cells.items()
        for s in standings(rows)
        if s.ahead is not None and met(s.horizon)
    }
    caption += " The axis is linear from -1 to 1 point, and logarithmic beyond."
    picture = forest(name, caption, found, {line: line for line, _ in found}, commands, "the best other")
    if picture.figure is not None:
        (axes,) = picture.figure.axes
        axes.set_xscale("symlog", linthresh=1, linscale=0.6)  # from random weights differences are ten times those elsewhere
        low, high = axes.get_xlim()
        ticks = [tick for tick in (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
        ticks = [tick for tick in ticks if abs(tick) != 10 or 2 * tick not in ticks]  # the two would run into one another
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    return picture


def forest(
    name: str,
    caption: str,
    found: Mapping[tuple[str, int], Contrast],
    variants: Mapping[str, str],
    commands: tuple[str, ...] = (),
    reference: str = "the reference",
) -> Picture:
    """Draws differences of settings to a reference, in accuracy, with their intervals, a line a setting and a marker a horizon.

    Args:
        found: of `l3rs.evaluation.ablation_tables.contrasts`.
        variants: what `found` calls them, by what the picture does.
        reference: what they are to, for the axis.
    """
    there = {called: setting for called, setting in variants.items() if any(s == setting for s, _ in found)}
    if not there:
        return Picture(name, caption, "", None, commands)
    horizons = sorted({horizon for _, horizon in found})
    figure, (axes,) = panels(1, 1.0 + 0.34 * len(there))
    axes.axvline(0, color=BLACK, linewidth=1)
    said = []
    looks = itertools.cycle(((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "^")))
    for place, (horizon, (colour, marker)) in enumerate(zip(horizons, looks, strict=False)):
        shift = 0.5 * ((place + 0.5) / len(horizons) - 0.5)
        points = [(line + shift, found[s, horizon]) for line, s in enumerate(there.values()) if (s, horizon) in found]
        y, means = [at for at, _ in points], [c.mean for _, c in points]
        spread = np.nan_to_num([[c.mean - c.low for _, c in points], [c.high - c.mean for _, c in points]])
        axes.errorbar(means, y, xerr=spread, fmt=marker, color=colour, markersize=4, elinewidth=1, label=f"{horizon} steps")
    for called, setting in there.items():
        values = ", ".join(f"{found[setting, h].mean:+.2g} at {h}" for h in horizons if (setting, h) in found)
        said.append(f"{called} {values}")
    axes.set_yticks(range(len(there)), list(there), fontsize=8)
    axes.set_ylim(len(there) - 0.5, -0.5)
    axes.set_xlabel(f"better than {reference} by (points of accuracy)")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return Picture(name, caption, f"Differences in points of accuracy, with steps of the runs: {'; '.join(said)}.", figure, commands)
