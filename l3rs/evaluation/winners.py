"""Who wins where: the best optimizer of each cell and length of a run, and by how much, as one table and one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from l3rs.evaluation.cell_figures import met, panels
from l3rs.evaluation.cell_tables import Cell, Difference, standings
from l3rs.evaluation.pages import MISSING, Picture
from l3rs.plots import BLUE, GREY, ORANGE

FULL = 5.0  # points at which a colour is at its strongest


class Winner(NamedTuple):
    """The best of L3RS and the best of the others in a cell, at a length of a run, and the lead of the first."""

    ours: str
    other: str
    ahead: Difference

    @property
    def level(self) -> bool:
        """Whether the interval holds 0, or there is none."""
        return not (self.ahead.low > 0 or self.ahead.high < 0)

    @property
    def best(self) -> str:
        """The name of the one that is ahead, also where they are level."""
        return self.ours if self.ahead.mean >= 0 else self.other

    @property
    def margin(self) -> tuple[float, float, float]:
        """The lead of the winner over the best of the other kind, with its interval, in points."""
        d = self.ahead
        mean, low, high = (d.mean, d.low, d.high) if d.mean >= 0 else (-d.mean, -d.high, -d.low)
        return 100 * mean, 100 * low, 100 * high


def winners(cell: Cell) -> dict[int, Winner]:
    """Finds who wins at each length: the arm of L3RS that is farthest ahead of the best other optimizer, on the most tasks."""
    found: dict[int, Winner] = {}
    for s in standings(cell):
        if s.ahead is not None and s.best is not None:
            known = found.get(s.horizon)
            if known is None or (s.ahead.tasks, s.ahead.mean) > (known.ahead.tasks, known.ahead.mean):
                found[s.horizon] = Winner(s.arm, s.best, s.ahead)
    return found


def winner_table(cells: Mapping[str, Cell]) -> pd.DataFrame:
    """Makes a table of winners, a line a cell and a column a length, with the margin in points and its interval."""
    by_cell = {name: winners(cell) for name, cell in cells.items()}
    horizons = sorted({h for cell in cells.values() for h in cell.config.horizons})

    def text(name: str, horizon: int) -> str:
        if horizon not in cells[name].config.horizons:
            return ""
        w = by_cell[name].get(horizon)
        if w is None:
            return MISSING
        mean, low, high = w.margin
        interval = f" ({low:.1f} to {high:.1f})" if low == low else ""
        return f"{'level: ' if w.level else ''}{w.best} +{mean:.1f}{interval}"

    lines = [[text(name, h) for h in horizons] for name in cells]
    return pd.DataFrame(lines, pd.Index(cells, name="cell"), [f"{h:,} steps" for h in horizons], dtype=object)


def winner_picture(cells: Mapping[str, Cell], name: str, caption: str, commands: tuple[str, ...]) -> Picture:
    """Draws the matrix at the lengths of meta-training: blue where L3RS wins, orange where another does, grey where they are level."""
    by_cell: dict[str, dict[int, Winner]] = {}
    for cell, rows in cells.items():
        if found := {h: w for h, w in winners(rows).items() if met(h)}:
            by_cell[cell] = found
    horizons = sorted({h for found in by_cell.values() for h in found})
    if not horizons:
        return Picture(name, caption, "", None, commands)
    figure, (axes,) = panels(1, 0.5 + 0.46 * len(by_cell))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    said = []
    for line, (cell, found) in enumerate(by_cell.items()):
        for place, horizon in enumerate(horizons):
            if (w := found.get(horizon)) is None:
                continue
            colour = GREY if w.level else BLUE if w.ahead.mean > 0 else ORANGE
            strength = 0.12 if w.level else 0.2 + 0.5 * min(1.0, w.margin[0] / FULL)
            axes.add_patch(Rectangle((place - 0.5, line - 0.5), 1, 1, facecolor=to_rgba(colour, strength), edgecolor="white", linewidth=2))
            short = "\n".join(textwrap.wrap(w.best.removesuffix(" tuned"), 18))
            axes.text(place, line, f"{short}\n+{w.margin[0]:.1f}", ha="center", va="center", fontsize=7, linespacing=1.05)
        said.append(f"{cell} " + ", ".join(f"{found[h].best} by {found[h].margin[0]:.1f} at {h}" for h in horizons if h in found))
    axes.set_xlim(-0.5, len(horizons) - 0.5)
    axes.set_ylim(len(by_cell) - 0.5, -0.5)
    axes.set_xticks(range(len(horizons)), [f"{h} steps" for h in horizons])
    axes.set_yticks(range(len(by_cell)), [textwrap.fill(cell, 20) for cell in by_cell], fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    words = f"The best optimizer, and the points by which it is ahead of the best of the other kind: {'; '.join(said)}."
    return Picture(name, caption, words, figure, commands)
