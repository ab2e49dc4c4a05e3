"""Pictures of a run on your own images: the confusion matrix and the curves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from l3rs.plots import STYLES, colours, look, save, tidy
from l3rs.text import printable

DRAWN = 60  # classes; the most confused of them, if there are more
WIDE = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans")


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Counts the images of each class, a row, that were taken for each class, a column."""
    n = len(classes)
    counts = np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n)
    names = [printable(name) for name in classes]
    return pd.DataFrame(counts, pd.Index(names, name="class"), names)


def most_confused(table: pd.DataFrame, number: int) -> list[int]:
    """Finds the classes with the most mistakes in their row and column; returns their places, in order."""
    counts = table.to_numpy()
    wrong = counts.sum(axis=1) + counts.sum(axis=0) - 2 * np.diag(counts)
    return sorted(np.argsort(-wrong, kind="stable")[:number].tolist())


def plot_confusion(table: pd.DataFrame, path: Path, title: str, what: str = "validation") -> None:
    """Draws the shares of each row, and up to 25 classes also the counts."""
    shown = most_confused(table, DRAWN) if len(table) > DRAWN else list(range(len(table)))
    counts = table.to_numpy()[np.ix_(shown, shown)]
    totals = table.to_numpy().sum(axis=1)[shown]
    shares = counts / np.maximum(totals, 1)[:, None]
    labels = [_legible(str(table.index[i]), i) for i in shown]
    n = len(shown)
    side = max(3.6, 0.36 * n if n <= 25 else 0.22 * n)
    size = 9 if n <= 25 else 8
    figure = Figure(figsize=(side + 2.2, side + 1.2))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")  # shows even one mistake of many
    axes.set_xticks(range(n), labels, rotation=90, fontsize=size, fontfamily=list(_families()))
    axes.set_yticks(range(n), labels, fontsize=size, fontfamily=list(_families()))
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(length=0, which="both")
    axes.spines[:].set_visible(False)
    axes.set(xlabel="taken for", ylabel="is")
    if n <= 25:
        for i, j in zip(*np.nonzero(counts), strict=True):
            dark = shares[i, j] > 0.25
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    part = f" (the {n} most confused of {len(table)} classes)" if len(table) > n else ""
    axes.set_title(title + part, fontsize=11)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label(f"share of the class's {what} images", fontsize=9)
    bar.outline.set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        save(figure, path)


def plot_curves(curves: Mapping[str, pd.DataFrame], path: Path, metric: str = "val_accuracy") -> None:
    """Loss and accuracy against the step, for each optimizer: columns `step`, `train_loss`, `val_loss`, and the metric.

    The legends stand below, where no curve runs.
    """
    figure = Figure(figsize=(9.5, 4.0))
    left, right = figure.subplots(1, 2)
    first, *others = (name.partition("=")[0] for name in curves)
    shades = colours([first if first in STYLES else "l3rs", *others])  # the head alone stands in the place of L3RS
    for (name, curve), colour in zip(curves.items(), shades, strict=True):
        style = {"color": colour, "linewidth": look(colour, "", "")["linewidth"]}
        left.plot(curve.step, curve.train_loss, linestyle="--", alpha=0.6, **style)
        left.plot(curve.step, curve.val_loss, marker="o", markersize=3, **style)
        right.plot(curve.step, curve[metric], marker="o", markersize=3, label=name, **style)
    left.plot([], [], color="0.4", marker="o", markersize=3, label="validation")
    left.plot([], [], color="0.4", linestyle="--", label="training, mean since the last point")
    left.set(title="loss", xlabel="step", ylabel="cross entropy", xlim=(0, None), ylim=(0, None))
    said = metric.removeprefix("val_").replace("_", " ")
    right.set(title=f"validation {said}", xlabel="step", ylabel=said, xlim=(0, None), ylim=(0, 1))
    below = {"loc": "upper center", "frameon": False, "fontsize": 9, "bbox_to_anchor": (0.5, -0.16)}
    left.legend(ncols=2, **below)
    if len(curves) > 1:
        right.legend(ncols=3, **below)
    for axes in (left, right):
        tidy(axes)
    figure.tight_layout()
    save(figure, path)


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    """Lists the installed fonts of `WIDE`."""
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in WIDE if name in installed)


@lru_cache(maxsize=1)
def _known() -> frozenset[int]:
    """Lists the characters of these fonts."""
    return frozenset(c for name in _families() for c in get_font(findfont(FontProperties(family=name))).get_charmap())


def _legible(name: str, number: int) -> str:
    """Shortens a class's name, or gives its number if no font has the letters."""
    shown = name if len(name) <= 24 else f"{name[:22]}…"
    shown = shown.replace("$", r"\$")  # a plain one would begin a formula
    return shown if all(ord(c) in _known() for c in shown) else f"class {number + 1}"
