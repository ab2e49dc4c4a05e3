"""Pictures, in one style: colour-blind safe, labelled, legible in print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from l3rs.stats import mean_interval

# Okabe and Ito's palette, told apart by all, and a grey; L3RS is the dark one and thicker.
BLACK, GREY, BLUE, SKY = "#000000", "#777777", "#0072B2", "#56B4E9"
GREEN, ORANGE, RED, PURPLE = "#009E73", "#E69F00", "#D55E00", "#CC79A7"
STYLES: Mapping[str, tuple[str, str, str]] = {  # colour, marker and dash, by optimizer
    "l3rs": (BLACK, "o", "-"),
    "adam": (BLUE, "s", "-"),
    "adam-cosine": (SKY, "^", "--"),
    "adam-cosine-head10": (GREEN, "D", "-."),
    "sgd-cosine": (ORANGE, "v", ":"),
    "adamw": (RED, "d", ":"),
    "adamw-cosine-head10": (GREEN, "h", ":"),
    "adamw-layer-decay": (RED, "<", "--"),
    "schedule-free": (PURPLE, ">", "-."),
    "muon-cosine": (RED, "X", "-"),
    "soap-cosine": (PURPLE, "P", ":"),
    "fastai": (BLUE, "o", "--"),
    "autogluon": (ORANGE, "s", "-."),
    "prodigy": (GREEN, ">", "-"),
    "l-dog": (SKY, "v", ":"),
    "lr-finder": (GREY, "^", "-"),
    "none": (GREY, "D", ":"),
    "velo": (RED, "v", "-"),
    "celo": (PURPLE, "P", "-"),
    "celo2": (ORANGE, "X", "--"),
    "celo2-base": (ORANGE, "P", "-"),
    "small-fc": (BLUE, "*", ":"),
    "mulo": (GREEN, "v", "--"),
}


def look(colour: str, marker: str, dash: str) -> dict[str, Any]:
    """Style of a line; L3RS has thick black ones."""
    return {"color": colour, "marker": marker, "linestyle": dash, "markersize": 5, "linewidth": 2.4 if colour == BLACK else 1.3}


def colours(optimizers: Sequence[str]) -> list[str]:
    """Gives each optimizer its own colour; if two share one, the later gets a free one, as long as there are any."""
    given: list[str] = []
    for optimizer in optimizers:
        own = STYLES[optimizer][0]
        free = [colour for colour in dict.fromkeys(c for c, *_ in STYLES.values()) if colour not in {*given, BLACK}]
        given.append(free[0] if own in given and free else own)
    return given


def tidy(axes: Axes) -> None:
    """The house style of a panel."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure that was made without pyplot, without its margins."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def png(figure: Figure) -> bytes:
    """Makes a small PNG file, the same bytes for the same figure; few colours make it a third of the size."""
    small = BytesIO()
    _drawn(figure, 150, 255).save(small, "png", optimize=True)
    return small.getvalue()


def webp(figure: Figure) -> bytes:
    """Makes a lossless WebP file of half the bytes, for pages that hold many pictures; browsers show it since 2020."""
    small = BytesIO()
    _drawn(figure, 110, 64).convert("RGB").save(small, "webp", lossless=True, quality=90, method=4)
    return small.getvalue()


def _drawn(figure: Figure, dpi: int, colours: int) -> Image.Image:
    FigureCanvasAgg(figure)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    return Image.open(drawn).convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def plot_finetune(curves: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    """Plots evaluation accuracy: left along the longest runs, right at the end of each run, by its length.

    Left it says so where these runs have no curve, since longer ones were the longest when they were made.
    """
    figure = Figure(figsize=(9.5, 4.2))
    left, right = figure.subplots(1, 2)
    horizon, along = int(table.steps.max()), []
    for name in table.optimizer.unique():
        style = look(*STYLES[name])
        ends = table[table.optimizer == name]
        rate = float(ends[ends.steps == horizon].lr.iloc[0])
        c = curves[(curves.optimizer == name) & (curves.horizon == horizon) & (curves.lr == rate)]
        points = pd.DataFrame(
            {step: mean_interval(group.accuracy.fillna(0).to_numpy()) for step, group in c.groupby("steps")}, index=["mean", "low", "high"]
        ).T
        along += [points] if len(c) else []
        left.plot(points.index, points["mean"], label=name, **style)
        left.fill_between(points.index, points["low"], points["high"], color=style["color"], alpha=0.12, linewidth=0)
        error = [ends.accuracy - ends.low, ends.high - ends.accuracy]
        right.errorbar(ends.steps, ends.accuracy, yerr=error, capsize=2, elinewidth=1, label=name, **style)
    left.set(title=f"along runs of {horizon} steps", xlabel="step", ylabel="evaluation accuracy")
    right.set(title="at the end of runs", xlabel="length of the run (steps)", xscale="log")
    ticks = sorted(table.steps.unique())
    right.set_xticks(ticks, [str(t) for t in ticks])
    right.minorticks_off()
    if not along:
        said = "not recorded: these runs were made\nbeside longer ones (a new --out records them)"
        left.set_xticks([])
        left.text(0.5, 0.5, said, ha="center", va="center", transform=left.transAxes)
    for axes, shown in ((left, pd.concat(along) if along else table), (right, table)):
        axes.set_ylim(max(0.0, shown.low.fillna(0).min() - 0.02), min(1.0, shown.high.fillna(1).max() + 0.02))  # shares, whatever t says
        tidy(axes)
    figure.suptitle("Fine-tuning on 25 new classes; bands and bars: 95% interval over tasks", fontsize=11)
    figure.tight_layout()
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False, "fontsize": 9}  # where no curve runs
    figure.legend(*right.get_legend_handles_labels(), ncols=4, **below)
    save(figure, path)


def plot_curve(curve: pd.DataFrame, path: Path, title: str) -> None:
    """Writes `curve_figure` to a file."""
    save(curve_figure(curve, title), path)


def curve_figure(curve: pd.DataFrame, title: str, stacked: bool = False) -> Figure:
    """Plots a meta-training curve: accuracy and loss on meta-validation, and the mean loss of each generation's candidates.

    Args:
        stacked: one plot above the other, for narrow pages.
    """
    figure = Figure(figsize=(5.6, 6.4) if stacked else (9.5, 3.6))
    left, right = figure.subplots(*((2, 1) if stacked else (1, 2)))
    validated = curve.dropna(subset=["validation_accuracy"])
    left.plot(validated.generation, validated.validation_accuracy, color=BLACK, marker="o", markersize=4)
    left.set(title="meta-validation", xlabel="generation", ylabel="evaluation accuracy")
    right.plot(curve.generation, curve.mean_loss, color=SKY, linewidth=0.8, label="each generation's candidates")
    smooth = curve.mean_loss.rolling(15, center=True, min_periods=5).mean()
    if smooth.notna().any():  # there are generations enough
        right.plot(curve.generation, smooth, color=BLUE, linewidth=2, label="mean of 15 generations")
    right.plot(validated.generation, validated.validation_loss, color=BLACK, marker="o", markersize=4, label="meta-validation")
    right.set(title="evaluation loss after K steps", xlabel="generation", ylabel="cross entropy", ylim=(0, None))
    right.legend(framealpha=0.8, edgecolor="none", fontsize=9)  # curves may run below it
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    return figure


def plot_decisions(rows: pd.DataFrame, path: Path) -> None:
    """Plots a schedule's decisions along a run: lambda and mu against the step, a column for each kind of layer, a colour for each depth.

    Args:
        rows: columns `step`, `depth`, `kind`, `lambda` and `mu_NAME` of each direction; depths come in the order of the network.
    """
    kinds = [kind for kind in ("convolution", "dense", "scale", "shift", "other", "head") if kind in set(rows.kind)]
    depths = [str(depth) for depth in rows.depth.unique() if depth != "head"]
    shades = colormaps["viridis"]([0.88 * i / max(1, len(depths) - 1) for i in range(len(depths))])  # its last shades are too pale on white
    colours = {**dict(zip(depths, shades, strict=True)), "head": BLACK}
    mixed = [str(column) for column in rows if str(column).startswith("mu_")]
    shown = ["lambda", *(mixed[:1] if len(mixed) == 2 else mixed if len(mixed) > 2 else [])]  # of two shares one says all
    figure = Figure(figsize=(2.6 * len(kinds), 2.6 * len(shown)))
    between = {"left": 0.07, "right": 0.98, "wspace": 0.1, "hspace": 0.1}
    grid = figure.subplots(len(shown), len(kinds), sharex=True, sharey="row", squeeze=False, gridspec_kw=between)
    for line, column in zip(grid, shown, strict=True):
        for axes, kind in zip(line, kinds, strict=True):
            for depth, curve in rows[rows.kind == kind].groupby("depth", sort=False):
                marker = "o" if len(curve) == 1 else None
                axes.plot(curve.step, curve[column], color=colours[str(depth)], linewidth=1.6, marker=marker, markersize=4)
            tidy(axes)
            if column == "lambda":
                axes.set_yscale("log")
                axes.set_title(kind, fontsize=10)
            else:
                axes.set_ylim(0, 1)
        rest = f"\n(the rest is {mixed[1][3:]})" if len(mixed) == 2 else ""
        line[0].set_ylabel("lambda" if column == "lambda" else f"mu of {column[3:]}{rest}")
    for axes in grid[-1]:
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [Line2D([], [], color=colours[depth], linewidth=2.4, label=depth) for depth in colours if depth in set(rows.depth)]
    columns = 1 + len(handles) // 20
    figure.legend(handles=handles, title="depth", loc="upper left", bbox_to_anchor=(0.985, 0.9), frameon=False, fontsize=9, ncols=columns)
    save(figure, path)
