"""Accuracy against the images that were seen, beside accuracy against steps: what larger batches are worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.lines import Line2D

from l3rs.evaluation.cell_figures import finite, panels
from l3rs.evaluation.cell_tables import Cell, columns, standings
from l3rs.evaluation.pages import Picture
from l3rs.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, look
from l3rs.stats import mean_interval

LONGEST = 100  # steps
TICKS, IMAGE_TICKS = (5, 10, 25, 50, 100), (100, 200, 500, 1000, 2000, 5000, 10000, 20000)
COLOURS, MARKERS = (ORANGE, BLACK, BLUE, GREEN, PURPLE), ("s", "o", "D", "^", "v")  # by the size of a batch


def images_picture(cells: Mapping[str, Cell], name: str, commands: tuple[str, ...]) -> Picture:
    """Draws L3RS, and dashed the best other optimizer of all these cells, at each size of a batch: against steps, and against images.

    Args:
        cells: that differ in the size of a batch.
    """
    caption = (
        "What a larger batch is worth: evaluation accuracy at the end of runs with batches of several sizes, above against steps, below "
        "against the images seen, steps times the batch. Bands are 95% intervals of the mean over tasks (Student's t). Dashed is "
    )
    sizes = sorted((cell.config.task.batch_size, key) for key, cell in cells.items())
    tables = {key: cell.outcomes("accuracy") for key, cell in cells.items()}
    there = [{arm for arm, h in columns(table) if table[arm, h].notna().any()} for table in tables.values()]
    common = set.intersection(*there) if there else set()
    best = [s.best for _, key in sizes for s in standings(cells[key]) if s.best in common]
    if len(cells) < 2 or not best:
        return Picture(name, caption + "the best other optimizer.", "", None, commands)
    other = max(dict.fromkeys(best), key=best.count)
    figure, axes = panels(2, 3.2)
    reference = cells[sizes[0][1]].reference or ""
    said = []
    for (size, key), colour, marker in zip(sizes, COLOURS, MARKERS, strict=False):
        for arm, dash in ((reference, "-"), (other, "--")):
            table = tables[key]
            points = {h: mean_interval(x) for h in sorted(table[arm].columns) if h <= LONGEST and len(x := finite(table[arm, h]))}
            steps, (mean, low, high) = np.array(list(points)), np.array(list(points.values())).T
            for one, x in zip(axes, (steps, steps * size), strict=True):
                one.plot(x, mean, **look(colour, marker, dash) | {"linewidth": 1.5})
                one.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            ends = ", ".join(f"{m:.3f} after {size * h:,} images" for h, m in zip(steps, mean, strict=True))
            said.append(f"{arm} in batches of {size} {ends}")
    for one, label, ticks in zip(axes, ("steps", "images seen"), (TICKS, IMAGE_TICKS), strict=True):
        one.set(xlabel=label, ylabel="evaluation accuracy", xscale="log")
        low, high = one.get_xlim()
        one.set_xticks([tick for tick in ticks if low <= tick <= high], [f"{tick:,}" for tick in ticks if low <= tick <= high])
        one.minorticks_off()
    looks = {f"batches of {size}": look(c, m, "-") for (size, _), c, m in zip(sizes, COLOURS, MARKERS, strict=False)}
    looks |= {arm: look(GREY, "", dash) for arm, dash in ((reference, "-"), (other, "--"))}
    handles = [Line2D([], [], label=label, **line) for label, line in looks.items()]
    axes[0].legend(handles=handles, frameon=False, fontsize=8, loc="lower right")
    return Picture(name, f"{caption}{other}.", f"Mean accuracy: {'; '.join(said)}.", figure, commands)
