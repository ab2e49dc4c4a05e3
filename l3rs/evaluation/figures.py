"""The figures of the evaluation: the paper's, and performance profiles, from rows; nothing is run here.

Figures 3 and 10 show the rows of cells, Figures 4, 5, 8 and 9 the decisions, and Figure 6 the curves beside the shipped checkpoints. A
figure without rows names the command that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd

from l3rs.evaluation.ablation_tables import contrasts
from l3rs.evaluation.cell_figures import ahead, forest, meta_training, profiles, progress, speedups
from l3rs.evaluation.decision_figures import decision_pictures, trust
from l3rs.evaluation.pages import Picture
from l3rs.evaluation.sources import BEYOND, PAPER, Sources
from l3rs.evaluation.tables import (
    ABLATED_FROM,
    REFRESHED,
    STUDIED_FROM,
    STUDY,
    ablated,
    compared_cells,
    every_command,
    heading,
    on_refreshed,
    studied,
)
from l3rs.schedules.find import CHECKPOINTS, SHIPPED, SHIPPED_WEIGHTS

OTHERS = {"Celo (ft)": "celo", "VeLO from random weights": "velo"}  # meta-trainings that are not shipped
OVERVIEW = "A"  # the cell of the overview, and its lines: L3RS, the best baselines, and the usual one
IN_SHORT = ("L3RS", "Schedule-free AdamW tuned", "AdamW layer decay tuned", "Adam cosine head x10 tuned", "Adam cosine tuned")


def summary(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Draws the summary, at the lengths of meta-training."""
    cells = compared_cells(sources)
    if not cells:
        return
    caption = (
        "The lead of each schedule of L3RS over the best other optimizer of its cell, in points of accuracy, tuned baselines included. The "
        "best is chosen for each length of a run, on the same tasks. Bars are bootstrap 95% intervals over tasks. "
        f"{REFRESHED} " + "; ".join(heading(name, cell) for name, cell in cells.items()) + "."
    )
    yield "In short", ahead(cells, "Ahead", caption, every_command(cells))


def comparisons(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """An overview; then Figures 3 and 10 and performance profiles of each cell, without the arms of other seeds."""
    for name in PAPER:
        if name not in sources.cells:
            continue
        cell, section = sources.cells[name].without_seeds(), heading(name, sources.cells[name])
        if name == OVERVIEW and cell.reference:
            few = [arm for arm in cell.config.arms if arm.name in IN_SHORT]
            yield "In short", progress(cell.part(few, [10, 25, 50, 100]), "Overview", "accuracy")
        first = progress(cell, f"Figure 3{name}", "accuracy")
        yield section, replace(first, caption=first.caption + on_refreshed(cell))
        yield section, progress(cell, f"Figure 10{name}", "loss")
        if cell.reference:
            yield section, speedups(cell, f"Figure 3F, {name}", "accuracy")
            yield section, speedups(cell, f"Figure 10F, {name}", "loss")
            yield section, profiles(cell, f"Profile {name}")


def beyond(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figure 3F of the cells beyond the paper."""
    for name, (section, _) in BEYOND.items():
        if cell := sources.cells.get(name):
            yield section, speedups(cell, f"{name.capitalize()}, steps", "accuracy")


def decided(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figures 4, 5, 8 and 9."""
    if sources.of_icons:
        for picture in decision_pictures(*sources.decisions()):
            yield "What the schedule decides", picture


def curves(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figure 6."""
    if not sources.of_icons:
        return
    shipped = {name: CHECKPOINTS / f"{name}.csv" for name in (*SHIPPED, *SHIPPED_WEIGHTS)}
    others = {name: sources.results / "meta_train" / f"icons-{run}.csv" for name, run in OTHERS.items()}  # the run's curve.csv
    for name, file in (shipped | others).items():
        run = OTHERS.get(name)
        command = () if file.exists() else (f"l3rs meta-train --config configs/meta_train/icons_{run}.yaml --out runs/{run}",)
        yield "Meta-training", meta_training(f"Figure 6, {name}", name, pd.read_csv(file) if file.exists() else None, command)


def differences(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """The settings of meta-training, and the ablations, each against its reference."""
    if not sources.of_icons:
        return
    made, rows, called = studied(sources)
    sets = [(STUDY, "Settings", "settings of meta-training", STUDIED_FROM, made, rows, called)]
    made = sources.study("ablations")
    rows = sources.measured(made)
    sets += [("Ablations", title, what, ABLATED_FROM, made, rows, called) for title, what, called in ablated(made)]
    for section, title, what, reference, made, rows, called in sets:
        found = contrasts(rows, reference, "accuracy")
        others = {name: setting for name, setting in called.items() if setting != reference}
        caption = f"{what[0].upper()}{what[1:]}: each one's lead over {reference!r}. Bars are 95% intervals, of tasks and of seeds."
        lacking = [setting for setting in others.values() if setting not in {setting for setting, _ in found}]
        commands = (made.command(made.names if rows.empty else lacking),) if lacking else ()
        yield section, forest(f"{title}, differences", caption, found, others, "points of accuracy", commands)


def trusted(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """The shares of other optimizers in the mix."""
    if sources.of_icons:
        made = sources.study("ablations")
        file = sources.root / str(made.mixes)
        rows = pd.read_csv(file) if file.exists() else None
        lacking = [setting for setting in made.settings if rows is None or setting not in set(rows.setting)]
        yield "Ablations", trust("Trust", rows, (made.command(lacking),) if lacking else ())


FIGURES: tuple[Callable[[Sources], Iterator[tuple[str, Picture]]], ...] = (
    summary,
    comparisons,
    beyond,
    decided,
    curves,
    differences,
    trusted,
)
