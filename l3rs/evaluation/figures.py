"""From rows to figures: the paper's, and performance profiles; nothing is run here.

    python evaluate/figures.py                    # all of them, to evaluate/results/figures
    python evaluate/figures.py --cells A
    python evaluate/figures.py --only Overview "Figure 3F, A" --out docs/pictures

Figures 3 and 10 are of the rows of `evaluate/run.py`, Figures 4, 5, 8 and 9 of those of `evaluate/decisions.py`, Figure 6 of the curves
that are shipped beside the checkpoints. A figure without rows is named, with the command that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
from run import RESULTS
from tables import (
    ABLATED_FROM,
    BEYOND,
    PAPER,
    REFRESHED,
    STUDIED_FROM,
    STUDY,
    TRUSTED,
    Sources,
    ablated,
    arguments,
    collect,
    compared_cells,
    every_command,
    heading,
    on_refreshed,
    part,
    settings_rows,
    studied,
    without_seeds,
)

from l3rs.evaluation.ablation_tables import contrasts
from l3rs.evaluation.decision_figures import decision_pictures, trust
from l3rs.evaluation.figures import ahead, forest, meta_training, profiles, progress, speedups
from l3rs.evaluation.pages import Picture, save_pictures
from l3rs.schedules.find import CHECKPOINTS, SHIPPED, SHIPPED_WEIGHTS

OTHERS = {"Celo (ft)": "celo", "VeLO from random weights": "velo"}  # meta-trainings whose outcome is not in the library
FOLDER = RESULTS / "figures"
OVERVIEW = "A"  # the cell that it is of


def summary(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """The table of that name as a picture, at the lengths of meta-training."""
    cells = compared_cells(sources)
    caption = (
        "By how many points of accuracy each schedule of L3RS is ahead of the best other optimizer of its cell, tuned baselines included. "
        "That one is chosen for each length of a run, on the same tasks. Bars are bootstrap 95% intervals over tasks. "
        f"{REFRESHED} " + "; ".join(heading(name, cell) for name, cell in cells.items()) + "."
    )
    yield "In short", ahead(cells, "Ahead", caption, every_command(cells))


def comparisons(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figures 3 and 10 and performance profiles of each cell, without what shows the spread between seeds; before them an overview."""
    for name in PAPER:
        if name not in sources.cells:
            continue
        cell, section = without_seeds(sources.cells[name]), heading(name, sources.cells[name])
        if name == OVERVIEW and cell.reference:
            tuned = [arm for arm in cell.config.arms if (arm.optimizer == "l3rs" and not arm.refresh) or arm.tuned]
            yield "In short", progress(part(cell, tuned, [10, 25, 50, 100]), "Overview", "accuracy")
        first = progress(cell, f"Figure 3{name}", "accuracy")
        yield section, replace(first, caption=first.caption + on_refreshed(cell))
        yield section, progress(cell, f"Figure 10{name}", "loss")
        if cell.reference:
            yield section, speedups(cell, f"Figure 3F, {name}", "accuracy")
            yield section, speedups(cell, f"Figure 10F, {name}", "loss")
            yield section, profiles(cell, f"Profile {name}")


def beyond(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figure 3F of the cells that the paper has not."""
    for name, (section, _) in BEYOND.items():
        if cell := sources.cells.get(name):
            yield section, speedups(cell, f"{name.capitalize()}, steps", "accuracy")


def decided(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figures 4, 5, 8 and 9."""
    for picture in decision_pictures(*sources.decisions()) if sources.of_icons else ():
        yield "What the schedule decides", picture


def curves(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """Figure 6."""
    shipped = {name: CHECKPOINTS / f"{name}.csv" for name in (*SHIPPED, *SHIPPED_WEIGHTS)}
    others = {name: RESULTS / "meta_train" / f"icons-{run}.csv" for name, run in OTHERS.items()}  # the run's curve.csv
    for name, file in (shipped | others).items() if sources.of_icons else ():
        run = OTHERS.get(name)
        command = () if file.exists() else (f"l3rs meta-train --config configs/meta_train/icons_{run}.yaml --out runs/{run}",)
        yield "Meta-training", meta_training(f"Figure 6, {name}", name, pd.read_csv(file) if file.exists() else None, command)


def differences(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """The settings of meta-training, and ablations, against what each set is compared with."""
    if not sources.of_icons:
        return
    sets = [(STUDY, "Settings", "settings of meta-training", STUDIED_FROM, "python evaluate/meta_study.py", *studied())]
    rows = settings_rows("ablations/rows")
    for title, what, called in ablated():
        command = f"python evaluate/{'trust' if TRUSTED.keys() & called else 'ablations'}.py"
        sets.append(("Ablations", title, what, ABLATED_FROM, command, rows, called))
    for section, title, what, reference, command, rows, called in sets:
        found = contrasts(rows, reference, "accuracy")
        others = {name: setting for name, setting in called.items() if setting != reference}
        caption = (
            f"{what[0].upper()}{what[1:]}: by how much each is better than {reference!r}. Bars are 95% intervals, of tasks and of seeds."
        )
        lacking = set(others.values()) - {setting for setting, _ in found}
        yield section, forest(f"{title}, differences", caption, found, others, "points of accuracy", (command,) if lacking else ())


def trusted(sources: Sources) -> Iterator[tuple[str, Picture]]:
    """How far other optimizers are trusted."""
    if sources.of_icons:
        file = RESULTS / "ablations" / "trust.csv"
        rows = pd.read_csv(file) if file.exists() else None
        lacking = [command for setting, command in TRUSTED.items() if rows is None or setting not in set(rows.setting)]
        yield "Ablations", trust("Trust", rows, tuple(lacking))


FIGURES: tuple[Callable[[Sources], Iterator[tuple[str, Picture]]], ...] = (
    summary,
    comparisons,
    beyond,
    decided,
    curves,
    differences,
    trusted,
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of them, such as 'Figure 3A'")
    args = parser.parse_args()
    pictures = [item for _, items in collect(Sources.of(args), FIGURES) for item in items]
    unknown = sorted(set(args.only or ()) - {picture.name for picture in pictures})
    if unknown:
        parser.error(f"--only names {unknown[0]!r}; there are {', '.join(picture.name for picture in pictures)}")
    pictures = [picture for picture in pictures if not args.only or picture.name in args.only]
    written = save_pictures(pictures, args.out)
    for picture in pictures:
        if picture.figure is None:
            print(f"{picture.name} has no rows yet: " + "; ".join(picture.commands))
    print(
        f"Wrote {len(written)} figures to {args.out}, the largest of {max((f.stat().st_size for f in written), default=0) / 1024:.0f} KiB."
    )


if __name__ == "__main__":
    main()
