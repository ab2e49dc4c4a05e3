"""The tables of the evaluation: the paper's Tables 1 to 16 and what goes beyond them, from rows; nothing is run here.

A table says `missing` for a number without rows, and its section ends with the command that makes them. A run that diverged counts as
accuracy 0, and as an infinite loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from l3rs.controller.config import L3RSConfig
from l3rs.evaluation.ablation_tables import START, ablation, contrast_table, contrasts, with_start
from l3rs.evaluation.calibration import calibration_table, multiplied
from l3rs.evaluation.cell_tables import (
    MEASURES,
    Cell,
    against_best,
    interquartile_means,
    means,
    of_a_seed,
    over_seeds,
    paired,
    unique,
)
from l3rs.evaluation.cost_tables import costs
from l3rs.evaluation.headlines import KINDS, by_arm, by_cell, headline, pooled, without_empty
from l3rs.evaluation.pages import MISSING, Table
from l3rs.evaluation.protocol import LONG, SHORT, protocol
from l3rs.evaluation.sources import AWAY, BEYOND, HEAD_ALONE, NETWORKS, PAPER, SCRATCH, STATISTICS, Sources
from l3rs.evaluation.speedups import steps_to_match
from l3rs.evaluation.study import Study
from l3rs.evaluation.tuning import TRIED
from l3rs.evaluation.winners import winner_table
from l3rs.finetuning.arms import Arm
from l3rs.schedules.find import GENERALIST, SPECIALISTS
from l3rs.schedules.variants import NAMES, TABLE_2, TABLE_3, TABLE_4

PAPERS_HORIZONS = (10, 25, 50, 100, 250, 500, 1000, 2500)
ABLATIONS = {
    "Table 2": ("controllers and base directions", TABLE_2),
    "Table 3": ("adaptive features", TABLE_3),
    "Table 4": ("sets of base directions", TABLE_4),
}
ABLATED_FROM = NAMES[L3RSConfig()]  # the reference of ablations
STUDY, STUDIED_FROM = "What matters in meta-training", "base"
STUDIES = {"meta_study": "Settings", "search_study": "Searches"}  # their titles
INTERVALS = (
    "Brackets: the 95% interval, for the noise of tasks and of meta-training seeds; the variance between seeds is pooled over the settings "
    "with several, in the same use. A difference whose interval holds 0 is called noise. One in twenty pure-noise differences will look "
    "real."
)
REFRESHED = f"Refreshed arms are evaluated like schedule-free: {STATISTICS}."
HEAD_START = "With head start: runs begin with a head in closed form, and are evaluated like refreshed ones."
WINNERS = (
    "The best optimizer of each cell and length of a run, and the points by which it is ahead of the best of the other kind, L3RS or not, "
    "with the 95% interval over tasks. Level: the interval holds 0. Both are chosen on these same tasks."
)
MATCHED = (
    "how many times as many steps each optimizer needs to reach what L3RS has after a run of the length above, with bootstrap 95% "
    "intervals over tasks; interpolated in log steps between its own runs. Never: not within its longest runs on half of the tasks or more."
)
COSTS = "Runs it takes: to have a run of 25 steps, tuning included: every learning rate that was tried is one, and a finder's steps count."
UNMET = "Networks that no schedule met"
AGAINST = ("best tuned", "best without tuning", "unlearned")  # what L3RS is compared with on networks
HEADLINES = {  # what L3RS is compared with
    "recipes": ("best tuned", "best without tuning"),
    "equal": ("best tuned", "best without tuning", "unlearned"),
}
RUNS = 25  # steps of the runs that the cost of having an optimizer is counted in


def heading(name: str, cell: Cell) -> str:
    """The heading of a cell's section."""
    return f"{name}: {cell.about}"


def on_refreshed(cell: Cell) -> str:
    """The notes on a cell with refreshed arms, and with head starts; empty for another."""
    arms = cell.config.arms
    refreshed, started = (any(arm.refresh for arm in arms), any(arm.head == "start" for arm in arms))
    return (f" {REFRESHED}" if refreshed else "") + (f" {HEAD_START}" if started else "")


def every_command(cells: Mapping[str, Cell]) -> tuple[str, ...]:
    """Lists the commands that make the missing rows of cells, each once."""
    return tuple(dict.fromkeys(command for cell in cells.values() for command in cell.commands()))


def compared_cells(sources: Sources) -> dict[str, Cell]:
    """Picks the paper's cells that compare L3RS with others; of L3RS the reference, and what begins with a head start."""
    cells = {name: cell.without_seeds() for name, cell in sources.cells.items() if name in PAPER and cell.reference}

    def shown(cell: Cell, arm: Arm) -> bool:
        return not arm.ours or arm.name == cell.reference or arm.head == "start"

    return {name: cell.part([arm for arm in cell.config.arms if shown(cell, arm)]) for name, cell in cells.items()}


def contested(sources: Sources) -> dict[str, Cell]:
    """Picks the cells that compare L3RS with others, but for those from random weights.

    Of L3RS it has the arms with the head, statistics and lr of the reference, without other seeds.
    """
    found = {}
    for name, cell in sources.cells.items():
        first = cell.config.arms[0]
        if cell.reference and not name.startswith(f"{SCRATCH}-"):
            same = [arm for arm in cell.config.arms if (arm.head, arm.refresh, arm.lr) == (first.head, first.refresh, first.lr)]
            arms = [arm for arm in cell.config.arms if not arm.ours or arm in same]
            found[name] = cell.part(arms).without_seeds()
    return found


def network_cells(sources: Sources, which: str = NETWORKS) -> dict[str, Cell]:
    """Picks the cells of networks that no schedule met, by the networks' names."""
    return {name.removeprefix(f"{which}-"): cell for name, cell in sources.cells.items() if name.startswith(f"{which}-")}


def as_used(sources: Sources, names: Sequence[str], horizons: Sequence[int]) -> dict[str, Cell]:
    """Takes what begins with a head start as the L3RS of some of the paper's cells, a cell for each of the two schedules."""
    found = {}
    for name, cell in sources.cells.items():
        for called, schedule in (("specialist", SPECIALISTS[0]), ("generalist", GENERALIST)) if name in names else ():
            ours = [arm for arm in cell.config.arms if arm.head == "start" and arm.learned == schedule]
            if ours:
                others = [arm for arm in cell.config.arms if not arm.ours or KINDS["unlearned"](arm)]
                found[f"{cell.about}, {called}"] = cell.part([*ours, *others], horizons)
    return found


def headlines(sources: Sources) -> Iterator[tuple[str, Table]]:
    """The short tables, those of README and the findings."""
    how = "The best is the one least behind L3RS on the tasks that all ran. Leads are in points, paired by task, with 95% intervals."
    for name, kinds in HEADLINES.items():
        if cell := sources.cells.get(name):
            yield "In short", Table(f"{BEYOND[name][0]}, in short", f"{BEYOND[name][1]} {how}", headline(cell.without_seeds(), kinds))
    if cells := as_used(sources, ("A",), LONG):
        caption = f"Runs longer than those of meta-training, which L3RS begins with a head start, and others as the paper has them. {how}"
        if len(frame := by_cell(cells, "best other")):
            yield "In short", Table("Longer runs, in short", caption, frame.rename_axis("cell"))
    if cells := as_used(sources, (HEAD_ALONE, *AWAY), SHORT):
        caption = (
            "The paper's cells: runs of L3RS with a head start and refreshed statistics against the best other, as the paper has them or, "
            f"where it says so, with a head start too. {how}"
        )
        yield "In short", Table("Away from home, in short", caption, by_cell(cells, "best other").rename_axis("cell"))
        if len(frame := by_cell(cells, "unlearned")):
            yield "In short", Table("Away from home, unlearned", caption, frame.rename_axis("cell"))
    if cells := network_cells(sources):
        caption = f"Networks that no schedule met: `generalist` at lr = 1 against others on the same network. {how}"
        each = f"{caption} Here networks count alike, and intervals are Student's, over networks."
        yield "In short", Table("Networks, in short", each, pooled(cells, AGAINST))
        yield "In short", Table("Networks, each other", each, by_arm(cells))
        for name, cell in cells.items():
            if not cell.config.workload.embedded:
                about = f"{cell.about}: photographs, with weights that others trained. {how}"
                yield "In short", Table(f"Network {name}, in short", about, without_empty(headline(cell, AGAINST)))
        for kind in (*AGAINST, "older generalist"):
            if len(frame := by_cell(cells, kind)):
                yield "In short", Table(f"Networks, {kind}", f"{caption} Here the other is the {kind}.", frame)


def summary(sources: Sources) -> Iterator[tuple[str, Table]]:
    """L3RS against the best other optimizer, cell by cell."""
    cells = compared_cells(sources)
    if not cells:
        return
    frame = against_best(cells).rename_axis("cell")
    caption = (
        "Accuracy of L3RS and of the best other optimizer: the one least behind L3RS on the same tasks, tuned baselines included. Then "
        "L3RS's lead in points, paired by task, with its 95% interval, and the share of tasks on which L3RS is better; ties "
        "count half. Accuracies are over each arm's own tasks, differences over common ones. L3RS is one meta-training seed. " + REFRESHED
    )
    yield "In short", Table("Winners, in numbers", WINNERS, winner_table(contested(sources)))
    yield "In short", Table("Summary", caption, frame, every_command(cells))


def seeds(sources: Sources) -> Iterator[tuple[str, Table]]:
    """The spread between meta-trainings that differ only in their seed."""
    for name, cell in sources.cells.items():
        if name not in (*PAPER, "equal"):
            continue
        arms = [arm.name for arm in cell.config.arms if arm.name == cell.reference or of_a_seed(arm)]
        if len(arms) > 1:
            caption = f"{cell.about}: accuracy of the shipped {cell.reference}, and of schedules of other meta-training seeds."
            called = "Meta-training seeds" + ("" if name in PAPER else f", {name}")
            yield "In short", Table(called, caption, over_seeds(cell.config, cell.outcomes("accuracy"), arms), cell.commands())


def cell_tables(sources: Sources) -> Iterator[tuple[str, Table]]:
    """The paper's Tables 5 to 16; interquartile means, and paired differences."""
    for name, first in PAPER.items():
        if name not in sources.cells:
            continue
        cell = sources.cells[name]
        config, about = cell.config, cell.about
        beyond = [f"{h:,}" for h in PAPERS_HORIZONS if h not in config.horizons]
        tasks = ", ".join(f"{n} at {h:,}" for h, n in sorted(config.horizons.items()))
        note = f" Tasks by steps: {tasks}; n where there are fewer so far." + (
            f" The paper's {', '.join(beyond)} steps are not among `horizons` in {cell.file}." if beyond else ""
        )
        note += on_refreshed(cell)
        for number, measure in ((first, "accuracy"), (first + 1, "loss")):
            caption = f"{about}: evaluation {measure}, mean ± standard deviation over tasks; lr: tuned for the length of the run.{note}"
            yield heading(name, cell), Table(f"Table {number}", caption, means(config, cell.outcomes(measure)), cell.commands())
        for measure, unit in (("accuracy", "points of accuracy"), ("loss", "loss")):
            if not cell.reference:
                continue
            caption = (
                f"{about}: L3RS's lead in {unit}, paired over the n common tasks, with its 95% interval; after the semicolon the "
                "probability of improvement. A diverged run counts as a loss."
            )
            name_ = f"Table {first if measure == 'accuracy' else first + 1}, paired"
            yield heading(name, cell), Table(name_, caption, paired(config, cell.outcomes(measure), measure, cell.reference))
            matched = Table(name_.replace("paired", "steps to match"), f"{about}, {measure}: {MATCHED}", steps_to_match(cell, measure))
            yield heading(name, cell), matched
        caption = f"{about}: interquartile mean of evaluation accuracy, the mean of the middle half of the tasks."
        yield heading(name, cell), Table(f"Table {first}, interquartile", caption, interquartile_means(config, cell.outcomes("accuracy")))


def ablated(study: Study) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yields each table of ablations: its title, its subject, and its variants' names in the rows, one for all tables."""
    for title, (what, variants) in ABLATIONS.items():
        yield title, what, {name: NAMES[config] for name, config in variants.items()}
    yield "Table 4, beyond the paper", "other optimizers as base directions", {name: name for name in (ABLATED_FROM, *study.settings)}


def lacking(frame: pd.DataFrame, called: Mapping[str, str], study: Study, rows: pd.DataFrame) -> tuple[str, ...]:
    """Finds the command that makes a table's missing rows; empty if none are."""
    names = [
        name for name, line in zip(called.values(), (frame == MISSING).any(axis=1), strict=True) if line and not name.startswith(START)
    ]
    return (study.command(study.judged if rows.empty else names),) if names else ()


def ablations(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Tables 2 to 4."""
    made = sources.study("ablations")
    rows = made.measured(sources.root)
    for title, what, called in ablated(made):
        for measure in MEASURES:
            caption = (
                f"Ablation, {what}: evaluation {measure}, mean ± standard deviation over tasks, after few generations of meta-training."
            )
            frame = ablation(rows, called, sorted(rows.steps.unique()) or [20], measure)
            name = title if measure == "accuracy" else f"{title}, loss"
            yield "Ablations", Table(name, caption, frame, lacking(frame, called, made, rows))
        yield from compared("Ablations", title, made, rows, ABLATED_FROM, called)


def study(sources: Sources) -> Iterator[tuple[str, Table]]:
    """The settings that matter most in meta-training."""
    for name, title in STUDIES.items():
        made, rows, called = studied(sources, name)
        for measure in MEASURES:
            caption = (
                f"Settings of meta-training at equal cost; each is named after its difference from the base. Evaluation {measure} on "
                "meta-validation tasks, mean ± standard deviation over tasks, seeds averaged."
            )
            frame = ablation(rows, called, sorted(rows.steps.unique()) or [10, 25, 50], measure)
            yield STUDY, Table(f"{title}, {measure}", caption, frame, lacking(frame, called, made, rows))
        yield from compared(STUDY, title, made, rows, STUDIED_FROM, called)


def studied(sources: Sources, name: str = "meta_study") -> tuple[Study, pd.DataFrame, dict[str, str]]:
    """Returns the study, its rows, and its settings with the start."""
    made = sources.study(name)
    rows, starts = made.measured(sources.root), {STUDIED_FROM + added: START + added for added in made.uses}
    for setting, start in starts.items():
        rows = with_start(rows, setting, start)
    return made, rows, {name: name for name in (*starts.values(), *made.judged)}


def compared(
    section: str, title: str, made: Study, rows: pd.DataFrame, reference: str, called: Mapping[str, str]
) -> Iterator[tuple[str, Table]]:
    """The differences to a reference and their intervals, if both have rows."""
    others = {name: setting for name, setting in called.items() if setting != reference}
    for measure, unit in (("accuracy", "points of accuracy"), ("loss", "loss")):
        found = {key: c for key, c in contrasts(rows, reference, measure, made.uses).items() if key[0] in others.values()}
        if found:
            used = f", both used alike; of {reference!r} used otherwise, over itself" if len(made.uses) > 1 else ""
            caption = f"Each one's lead over {reference!r}{used}, in {unit}. {INTERVALS}"
            name = f"{title}, paired{'' if measure == 'accuracy' else ', loss'}"
            yield section, Table(name, caption, contrast_table(found, others, measure))


def others(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Cells off the conditions of meta-training, and other cells that `--cells` names."""
    stress = {name.removeprefix("stress-"): cell for name, cell in sources.cells.items() if name.startswith("stress-")}
    elsewhere = ("stress-", f"{NETWORKS}-", f"{SCRATCH}-")
    rest = {name: cell for name, cell in sources.cells.items() if name not in (*PAPER, *BEYOND) and not name.startswith(elsewhere)}
    for section, heads, about, cells in (
        ("Stress", "condition", "L3RS off the conditions of its meta-training,", stress),
        ("Other cells", "cell", "L3RS", rest),
    ):
        if cells:
            caption = f"{about} against the best other optimizer, as in the summary."
            yield section, Table(section, caption, against_best(cells).rename_axis(heads), every_command(cells))
        for name, cell in cells.items():
            caption = f"{cell.about}: evaluation accuracy, mean ± standard deviation over tasks; lr: tuned for the length of the run."
            yield section, Table(f"{section}, {name}", caption, means(cell.config, cell.outcomes("accuracy")))


def beyond(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Tables that the paper does not have."""
    for name, (section, caption) in BEYOND.items():
        if cell := sources.cells.get(name):
            frame = means(cell.config, cell.outcomes("accuracy"))
            if name in ("equal", "recipes"):
                caption += f" {COSTS}"
                frame.insert(0, "runs it takes", costs_of(cell, sources))
            yield section, Table(name.capitalize(), caption, frame, cell.commands())
            difference = paired(cell.config, cell.outcomes("accuracy"), "accuracy", cell.reference or "")
            yield section, Table(f"{name.capitalize()}, paired", "L3RS minus each, in points, as for Table 5.", difference)


def costs_of(cell: Cell, sources: Sources) -> list[str]:
    """The runs that each optimizer of a cell takes, tuning included, a text an arm."""

    @cache
    def tried(file: Path) -> pd.Series[int]:
        return pd.read_csv(file).groupby(["optimizer", "steps"]).lr.nunique() if file.exists() else pd.Series(dtype=int)

    def runs(arm: Arm) -> float:
        given = cell.config.rates
        rows = tried((sources.root / given).with_suffix(".csv") if given else sources.results / TRIED[arm.head])
        return arm.cost(RUNS, int(rows.get((arm.optimizer, RUNS), 3)))

    return [f"{runs(arm):g}" for arm in unique(cell.config.arms)]


def networks(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Networks that no schedule was meta-trained on."""
    cells = network_cells(sources)
    if not cells:
        return
    caption = "L3RS at lr = 1, nothing tuned, against the best other optimizer, as in the summary; others were tuned on the network itself."
    compared = {name: cell.part([arm for arm in cell.config.arms if not arm.ours or arm.rate(1) == 1]) for name, cell in cells.items()}
    yield UNMET, Table("Networks", caption, against_best(compared).rename_axis("network"), every_command(cells))
    caption = "The points of accuracy by which lr = 1 is ahead of other multipliers of the schedule's steps, with 95% intervals."
    several = {name: cell for name, cell in cells.items() if multiplied(cell)}
    if several:
        yield UNMET, Table("Calibration, in numbers", caption, calibration_table(several))
    for name, cell in cells.items():
        caption = f"{cell.about}: evaluation accuracy, mean ± standard deviation over tasks. {COSTS}"
        frame = means(cell.config, cell.outcomes("accuracy"))
        frame.insert(0, "runs it takes", costs_of(cell, sources))
        yield UNMET, Table(f"Network {name}", caption, frame)


def from_scratch(sources: Sources) -> Iterator[tuple[str, Table]]:
    """The same networks from random weights, for which L3RS is not made."""
    if cells := network_cells(sources, SCRATCH):
        caption = "The same networks from random weights, for which L3RS is not made, against the best other optimizer, as in the summary."
        yield UNMET, Table("From random weights", caption, against_best(cells).rename_axis("network"), every_command(cells))


def of_icons(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Tables without a cell."""
    if sources.of_icons:
        yield from costs(sources)
        yield from study(sources)
        yield from ablations(sources)


TABLES: tuple[Callable[[Sources], Iterator[tuple[str, Table]]], ...] = (
    headlines,
    summary,
    seeds,
    beyond,
    networks,
    from_scratch,
    protocol,
    cell_tables,
    others,
    of_icons,
)
