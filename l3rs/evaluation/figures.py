"""The figures of the evaluation: the paper's, and performance profiles, from rows; nothing is run here.

Figures 3 and 10 show the rows of cells, Figures 4, 5, 8 and 9 the decisions, and Figure 6 the curves beside the shipped checkpoints. A
figure without rows names the command that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd

from l3rs.evaluation.ablation_tables import contrasts
from l3rs.evaluation.calibration import calibration_picture, multiplied
from l3rs.evaluation.cell_figures import ahead, forest, meta_training, meta_trainings, profiles, progress
from l3rs.evaluation.decision_figures import decision_pictures, trust
from l3rs.evaluation.images_seen import images_picture
from l3rs.evaluation.pages import Picture
from l3rs.evaluation.sources import BEYOND, PAPER, Sources
from l3rs.evaluation.speedups import speedups
from l3rs.evaluation.tables import (
    ABLATED_FROM,
    REFRESHED,
    STUDIED_FROM,
    STUDY,
    UNMET,
    WINNERS,
    ablated,
    compared_cells,
    contested,
    every_command,
    heading,
    network_cells,
    on_refreshed,
    studied,
)
from l3rs.evaluation.winners import winner_picture
from l3rs.schedules.find import CHECKPOINTS, PAPER_SPECIALIST, SHIPPED, SHIPPED_WEIGHTS, START

OTHERS = {"Celo (ft)": "celo", "VeLO from random weights": "velo"}  # meta-trainings that are not shipped
OVERVIEWS = {  # the cell of the overview, if it has rows, and its lines: at most five
    "recipes": ("L3RS", "Head alone", "Schedule-free AdamW tuned", "Schedule-free AdamW default", "AdamW 1e-3"),
    "A": ("L3RS", "Schedule-free AdamW tuned", "AdamW layer decay tuned", "Adam cosine head x10 tuned", "Adam cosine tuned"),
}
PROFILED = "A"  # the cell with performance profiles
BATCHES = ("stress-batch-16", "A", "stress-batch-256")  # cells that differ in the size of a batch


def overview(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Draws a few lines of one cell."""
    for name, lines in OVERVIEWS.items():
        cell = sources.cells.get(name)
        if cell is not None and cell.reference and len(cell.rows):
            few = [arm for arm in cell.config.arms if arm.name in lines]
            yield "In short", progress(cell.part(few, [10, 25, 50, 100]), "Overview", "accuracy", together=True)
            return


def summary(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Draws the summary, at the lengths of meta-training."""
    cells = compared_cells(sources)
    if not cells:
        return
    caption = (
        "The lead of each schedule of L3RS over the best other optimizer of its cell, in points of accuracy, tuned baselines included. The "
        "best is chosen for each length of a run, on the same tasks. Bars are 95% intervals over tasks. "
        f"{REFRESHED} " + "; ".join(heading(name, cell) for name, cell in cells.items()) + "."
    )
    yield "In short", ahead(cells, "Ahead", caption, every_command(cells))
    caption = f"{WINNERS} Blue: L3RS; orange: another; grey: level."
    yield "In short", winner_picture(contested(sources), "Winners", caption, every_command(cells))


def comparisons(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """An overview; then Figures 3 and 10 and performance profiles of each cell, without the arms of other seeds."""
    for name in PAPER:
        if name not in sources.cells:
            continue
        cell, section = sources.cells[name].without_seeds(), heading(name, sources.cells[name])
        cell = cell.part([arm for arm in cell.config.arms if arm.head == "random"])  # as in the paper
        first = progress(cell, f"Figure 3{name}", "accuracy")
        yield section, replace(first, caption=first.caption + on_refreshed(cell))
        yield section, progress(cell, f"Figure 10{name}", "loss")
        if cell.reference:
            yield section, speedups(cell, f"Figure 3F, {name}", "accuracy")
            if name == PROFILED:
                yield section, profiles(cell, f"Profile {name}")


def beyond(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figures 3 and 3F of the cells beyond the paper; accuracy against images seen; calibration."""
    for name, (section, _) in BEYOND.items():
        if cell := sources.cells.get(name):
            if name in ("equal", "recipes"):
                yield section, progress(cell.without_seeds(), f"{name.capitalize()}, accuracy", "accuracy")
            yield section, speedups(cell.without_seeds(), f"{name.capitalize()}, steps", "accuracy")
    batches = {name: sources.cells[name] for name in BATCHES if name in sources.cells}
    if len(batches) > 1:
        yield "Stress", images_picture(batches, "Images seen", every_command(batches))
    if several := {name: cell for name, cell in network_cells(sources).items() if multiplied(cell)}:
        caption = (
            "Is lr = 1 right on networks that the schedule never met? Evaluation accuracy of the same schedule with all steps multiplied, "
            "means over tasks with 95% intervals (Student's t). A line that is highest at 1 says yes."
        )
        yield UNMET, calibration_picture(several, "Calibration", caption, every_command(several))


def decided(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figures 4, 5, 8 and 9."""
    if sources.of_icons:
        for picture in decision_pictures(*sources.decisions()):
            yield "What the schedule decides", picture


def curves(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figure 6."""
    if not sources.of_icons:
        return
    shipped = {name: CHECKPOINTS / f"{name}.csv" for name in (*SHIPPED, *SHIPPED_WEIGHTS) if name != START}
    others = {name: sources.results / "meta_train" / f"icons-{run}.csv" for name, run in OTHERS.items()}  # the run's curve.csv
    curves = {name: pd.read_csv(file) for name, file in (shipped | others).items() if file.exists()}
    lacking = [run for name, run in OTHERS.items() if name not in curves]
    commands = tuple(f"l3rs meta-train --config configs/meta_train/icons_{run}.yaml --out runs/{run}" for run in lacking)
    yield "Meta-training", meta_training("Figure 6", PAPER_SPECIALIST, curves.get(PAPER_SPECIALIST), commands)
    for name, called in (("Figure 6, all", SHIPPED), ("Figure 6, others", (*SHIPPED_WEIGHTS, *OTHERS))):
        yield "Meta-training", meta_trainings(name, {c: curve for c, curve in curves.items() if c in called}, commands)


def differences(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """The settings of meta-training, and the ablations, each against its reference."""
    if not sources.of_icons:
        return
    made, rows, called = studied(sources)
    sets = [(STUDY, "Settings", "settings of meta-training", STUDIED_FROM, made, rows, called)]
    made = sources.study("ablations")
    rows = made.measured(sources.root)
    sets += [("Ablations", title, what, ABLATED_FROM, made, rows, called) for title, what, called in ablated(made)]
    for section, title, what, reference, made, rows, called in sets:
        found = contrasts(rows, reference, "accuracy", made.uses)
        others = {name: setting for name, setting in called.items() if setting != reference}
        caption = f"{what[0].upper()}{what[1:]}: each one's lead over {reference!r}. Bars are 95% intervals, of tasks and of seeds."
        lacking = [setting for setting in others.values() if setting not in {setting for setting, _ in found}]
        commands = (made.command(made.judged if rows.empty else lacking),) if lacking else ()
        yield section, forest(f"{title}, differences", caption, found, others, commands)


def trusted(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """The shares of other optimizers in the mix."""
    if sources.of_icons:
        made = sources.study("ablations")
        file = sources.root / str(made.mixes)
        rows = pd.read_csv(file) if file.exists() else None
        lacking = [setting for setting in made.settings if rows is None or setting not in set(rows.setting)]
        yield "Ablations", trust("Trust", rows, (made.command(lacking),) if lacking else ())


FIGURES: tuple[Callable[[Sources], Iterator[tuple[str, Picture]]], ...] = (
    overview,
    summary,
    comparisons,
    beyond,
    decided,
    curves,
    differences,
    trusted,
)
