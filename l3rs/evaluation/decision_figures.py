"""Figures 4, 5, 8 and 9: a schedule's decisions along a run, from rows; and how far it trusts other optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from l3rs.evaluation.cell_figures import WIDTH, legend, panels
from l3rs.evaluation.decisions import KINDS
from l3rs.evaluation.pages import Picture
from l3rs.plots import BLACK, BLUE, GREEN, RED, tidy

KIND_STYLES: dict[str, dict[str, Any]] = {
    "convolution": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "scale": {"color": GREEN, "linestyle": "--", "marker": "s"},
    "shift": {"color": RED, "linestyle": ":", "marker": "^"},
    "head": {"color": BLACK, "linestyle": "-.", "marker": "D"},
}
LAMBDA, MU = "lambda (schedule's units)", "mu of {}"
COLOURS = colormaps["viridis"].resampled(256)  # its lightness rises evenly, so it can be read in grey
COMMAND = "python evaluate/decisions.py"


def decision_pictures(rows: pd.DataFrame | None, times: pd.DataFrame | None) -> Iterator[Picture]:
    """Yields all of them; without rows only their captions, and the command that makes them."""
    for name, about, draw, of in (
        ("Figure 4", "lambda against mu along a run, a line a layer, averaged over tasks; colour is the step", phase, rows),
        ("Figure 5", "lambda and mu against the step, averaged over layers of a kind and over tasks; bands hold the middle 80% of layers",
         averaged, rows),
        ("Figure 8", "the time features that the controller sees: above relative time, below absolute time, whose values depend on the "
         "length of the run only", time_features, times),
        ("Figure 9", "lambda and mu of every layer against the step, averaged over tasks; a line a layer, a row a kind of layer, colour is "
         "its stage of the network", by_layer, rows),
    ):  # fmt: skip
        if of is None or not len(of):
            yield Picture(name, f"{about[0].upper()}{about[1:]}.", "", None, (COMMAND,))
            continue
        schedule, horizon = of.schedule.iloc[0], int(of.horizon.max())
        figure, seen = draw(of if of is times else mean_over_tasks(of[of.horizon == horizon]))
        source = "" if of is times else f", {horizon} steps, mean of {of[of.horizon == horizon].task_seed.nunique()} tasks"
        yield Picture(name, f"{about[0].upper()}{about[1:]}. Schedule {schedule}{source}.", seen, figure)


def trust(name: str, rows: pd.DataFrame | None, commands: tuple[str, ...]) -> Picture:
    """Draws the shares of other optimizers in the mix, a panel each, from the rows of `l3rs.evaluation.study.mix`."""
    caption = (
        "Other optimizers as a third direction beside SGD and Adam: their share of the mix, mu, against the step, a line a kind of layer, "
        "averaged over its layers, tasks and meta-training seeds; thin lines are the seeds. At a third all shares are equal."
    )
    if rows is None or rows.empty:
        return Picture(name, caption, "", None, commands)
    settings = list(dict.fromkeys(rows.setting))
    figure, axes = panels(len(settings), 2.9, sharex=True, sharey=True)
    said = []
    for one, setting in zip(axes, settings, strict=True):
        other = setting.split(", ")[-1]
        mine = rows[rows.setting == setting]
        table = mine.pivot_table(index="step", columns="kind", values="mu_other", aggfunc="mean")
        for kind in (kind for kind in KINDS if kind in table):
            one.plot(table.index, table[kind], label=kind, linewidth=1.8, markersize=4, markevery=3, **KIND_STYLES[kind])
            seeds = mine[mine.kind == kind].pivot_table(index="step", columns="meta_seed", values="mu_other", aggfunc="mean")
            one.plot(seeds.index, seeds, linewidth=0.6, **{**KIND_STYLES[kind], "marker": ""})
            each = " and ".join(f"{seeds[seed].iloc[0]:.2f} to {seeds[seed].iloc[-1]:.2f}" for seed in seeds)
            said.append(f"{other}, {kind}: from {table[kind].iloc[0]:.2f} to {table[kind].iloc[-1]:.2f} ({each})")
        one.axhline(1 / 3, color=BLACK, linewidth=0.8)
        one.set(ylabel=MU.format(other), ylim=(0, None))
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes[-1], 4)
    seen = f"Share of the mix in the first and in the last step, in brackets that of each seed. {'; '.join(said)}."
    return Picture(name, caption, seen, figure, commands)


def mean_over_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Averages lambda and mu of each layer and step over tasks; lambda geometrically."""
    values = rows.assign(**{"lambda": np.log(rows["lambda"])})
    mean = values.groupby(["layer", "kind", "depth", "step"], sort=False).mean(numeric_only=True).reset_index()
    return mean.assign(**{"lambda": np.exp(mean["lambda"])})


def shares(rows: pd.DataFrame) -> list[str]:
    """Lists the columns of mu; of two, which sum to 1, only the second."""
    found = [c for c in rows if str(c).startswith("mu_")]
    return [str(c) for c in (found[1:] if len(found) == 2 else found)]


def trajectory(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A table of steps by layers."""
    return rows.pivot(index="step", columns="layer", values=column)[rows.layer.unique()]


def phase(rows: pd.DataFrame) -> tuple[Figure, str]:
    mu = shares(rows)[-1]
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    norm = Normalize(1, rows.step.max())
    said = []
    for axes, kind in zip(grid.flat, KINDS, strict=True):
        mine = rows[rows.kind == kind]
        x, y = trajectory(mine, mu).to_numpy(), trajectory(mine, "lambda").to_numpy()
        for i in range(x.shape[1]):
            points = np.stack([x[:, i], y[:, i]], axis=1)
            lines = LineCollection(list(np.stack([points[:-1], points[1:]], axis=1)), cmap=COLOURS, norm=norm, linewidths=0.7)
            lines.set_array(rows.step.unique()[1:])
            axes.add_collection(lines)
        axes.plot(x[0], y[0], "o", color=BLACK, markersize=2.5, linestyle="none")
        axes.plot(x[-1], y[-1], "x", color=RED, markersize=3.5, linestyle="none")
        axes.set(yscale="log", title=f"{kind} ({x.shape[1]} layers)")
        tidy(axes)
        said.append(f"{kind}: lambda from {np.exp(np.log(y[0]).mean()):.2g} to {np.exp(np.log(y[-1]).mean()):.2g}, "
                    f"{mu} from {x[0].mean():.2f} to {x[-1].mean():.2f}")  # fmt: skip
    for axes in grid[1]:
        axes.set_xlabel(MU.format(mu.removeprefix("mu_").capitalize()))
    for axes in grid[:, 0]:
        axes.set_ylabel(LAMBDA)
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=grid, location="bottom", shrink=0.7, aspect=40)
    bar.set_label("step (a dot: the first, a cross: the last)")
    return figure, f"Means over layers, from the first step to the last. {'; '.join(said)}."


def averaged(rows: pd.DataFrame) -> tuple[Figure, str]:
    mus = shares(rows)
    figure, axes = panels(1 + len(mus), 3.0, sharex=True)
    said = []
    for one, column in zip(axes, ("lambda", *mus), strict=True):
        for place, kind in enumerate(KINDS):
            values = trajectory(rows[rows.kind == kind], column)
            mean = np.exp(np.log(values).mean(axis=1)) if column == "lambda" else values.mean(axis=1)
            look = KIND_STYLES[kind]
            one.plot(mean.index, mean, label=kind, linewidth=1.8, markersize=4, markevery=(3 * place, max(1, len(mean) // 8)), **look)
            low, high = values.quantile(0.1, axis=1), values.quantile(0.9, axis=1)
            one.fill_between(mean.index, low, high, color=look["color"], alpha=0.1, linewidth=0)
            middle, peak = mean.iloc[len(mean) // 2], mean.idxmax()
            said.append(f"{column} of {kind}: {mean.iloc[0]:.2g} at first, {middle:.2g} half way, {mean.iloc[-1]:.2g} at the end, "
                        f"highest at step {peak}")  # fmt: skip
        one.set_ylabel(LAMBDA if column == "lambda" else MU.format(column.removeprefix("mu_").capitalize()))
    axes[0].set_yscale("log")
    axes[-1].set_xlabel("step")
    legend(axes[-1], 4)
    return figure, f"Means over layers. {'; '.join(said)}."


def by_layer(rows: pd.DataFrame) -> tuple[Figure, str]:
    mu = shares(rows)[-1]
    stages = list(rows.depth.unique())
    colour = {stage: COLOURS(0.92 * i / max(1, len(stages) - 1)) for i, stage in enumerate(stages)}
    dashes = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))]
    figure = Figure(figsize=(WIDTH, 8.6), layout="constrained")
    grid = figure.subplots(len(KINDS), 2, sharex=True, sharey="col")
    for pair, kind in zip(grid, KINDS, strict=True):
        for axes, column in zip(pair, ("lambda", mu), strict=True):
            mine = rows[rows.kind == kind]
            table, stage_of = trajectory(mine, column), mine.drop_duplicates("layer").set_index("layer").depth
            for layer in table:
                stage = stage_of[str(layer)]
                axes.plot(table.index, table[layer], color=colour[stage], linestyle=dashes[stages.index(stage) % 6], linewidth=0.8)
            axes.set_title(kind, fontsize=9)
            axes.set_ylabel("lambda" if column == "lambda" else MU.format(mu.removeprefix("mu_").capitalize()))
            tidy(axes)
        pair[0].set_yscale("log")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for stage in stages:
        grid[0, 0].plot([], [], color=colour[stage], linestyle=dashes[stages.index(stage) % 6], label=stage)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    last = rows[rows.step == rows.step.max()].groupby("depth", sort=False)[["lambda", mu]].mean()
    ends = "; ".join(f"{stage}: lambda {x:.2g}, {mu} {y:.2f}" for stage, x, y in zip(last.index, last["lambda"], last[mu], strict=True))
    return figure, f"Means over layers of a stage in the last step. {ends}."


def time_features(rows: pd.DataFrame) -> tuple[Figure, str]:
    figure, (above, below) = panels(2, 3.2)
    rows = rows.assign(kind=rows.feature.str.split("/").str[0], point=rows.feature.str.split("/").str[1].astype(float))
    longest = rows[rows.horizon == rows.horizon.max()]
    relative = longest[longest.kind == "relative_time"].pivot(index="step", columns="point", values="value")
    for i, point in enumerate(relative):
        look = {"color": COLOURS(0.92 * i / max(1, relative.shape[1] - 1)), "linestyle": ("-", "--", "-.", ":")[i % 4]}
        above.plot(relative.index, relative[point], linewidth=1.4, label=f"{point:g}", **look)
    above.set(xlabel=f"step, of {longest.horizon.iloc[0]}", ylabel="relative time", ylim=(-1.05, 1.05))
    above.legend(title="t", fontsize=7, title_fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    first = rows[(rows.kind == "absolute_time") & (rows.step == 1)]
    markers = "os^Dv"
    for i, (horizon, table) in enumerate(first.groupby("horizon")):
        look = {
            "color": COLOURS(0.8 * i / max(1, first.horizon.nunique() - 1)),
            "marker": markers[i % 5],
            "linestyle": ("-", "--", ":")[i % 3],
        }
        below.plot(table.point, table.value, label=f"runs of {horizon} steps", **look)
    below.set(xscale="log", xlabel="scale s (steps)", ylabel="absolute time", ylim=(-1.05, 1.05))
    below.legend(frameon=False, fontsize=8)
    return figure, (
        f"{relative.shape[1]} curves of relative time rise from -1 to 1, one after the other, each through 0 at its reference point t from "
        f"{relative.columns[0]:g} to {relative.columns[-1]:g} of the run; absolute time, at {first.point.nunique()} scales from "
        f"{first.point.min():,.0f} to {first.point.max():,.0f} steps, falls with the scale from {first.value.max():.2f} to "
        f"{first.value.min():.2f} and is 0 where the scale is the length of the run."
    )
