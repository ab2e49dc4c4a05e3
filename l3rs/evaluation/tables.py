"""From rows to tables: the paper's Tables 1 to 16 and what goes beyond them; nothing is run here.

    python evaluate/tables.py                     # all of them, to evaluate/results/tables.md
    python evaluate/tables.py --cells A D         # of the cells, only these
    python evaluate/tables.py --configs configs/evaluate/imagenet --out imagenet.md    # of the cells in another folder

Rows are those of `evaluate/results`, and of `--rows` beside them. Where there is no row a table says `missing`, and its section ends
with the command that makes it. A run that diverged counts as 0 accuracy, and as an infinite loss.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import pandas as pd
import yaml
from run import RESULTS, read_config

import l3rs
from l3rs.controller.config import L3RSConfig
from l3rs.evaluation.ablation_tables import START, ablation, contrast_table, contrasts, with_start
from l3rs.evaluation.cells import Arm, Rows
from l3rs.evaluation.cost_tables import break_even, step_tables
from l3rs.evaluation.figures import speedup_of
from l3rs.evaluation.pages import MISSING, Section, Table, as_markdown
from l3rs.evaluation.study import COLUMNS
from l3rs.evaluation.tables import MEASURES, Cell, against_best, interquartile_means, means, over_seeds, paired
from l3rs.finetuning.baselines import BASELINES
from l3rs.schedules.variants import NAMES, TABLE_2, TABLE_3, TABLE_4

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "evaluate"
SPECIALIST = "icons-resnet34"
PAPER = {"A": 5, "A-head": 7, "B": 9, "C": 11, "D": 13, "E": 15}  # cell: the first of the paper's two tables of it
PAPERS_HORIZONS = (10, 25, 50, 100, 250, 500, 1000, 2500)
ABLATIONS = {
    "Table 2": ("controllers and base directions", TABLE_2),
    "Table 3": ("adaptive features", TABLE_3),
    "Table 4": ("sets of base directions", TABLE_4),
}
TRUSTED = {  # variants of evaluate/trust.py, and what makes them
    f"SGD, Adam, {name}": f"python evaluate/trust.py --only {name}" for name in ("Muon", "Celo2-base")
}
ABLATED_FROM = NAMES[L3RSConfig()]  # what ablations are compared with
STUDY, STUDIED_FROM = "What matters in meta-training", "base"
INTERVALS = (
    "In brackets the 95% interval, for the noise of tasks and for that between meta-training seeds, whose variance is pooled over the "
    "settings that have several; a difference whose interval holds 0 is called noise. One in twenty that is noise is not called so."
)
STATISTICS = "before evaluation BatchNorm gets the mean statistics of the last 20 training batches, for the running ones"
REFRESHED = f"What is called refreshed is evaluated as schedule-free is: {STATISTICS}."
BEYOND = {  # cell: the section that it is in, and what it is
    "averaged": (
        "What adaptivity adds",
        "What adaptivity adds: L3RS against a schedule with its learned lambda and mu averaged over time and layers.",
    ),
    "refreshed": (
        "BatchNorm refreshed",
        f"All with what schedule-free has: {STATISTICS}. Accuracy, as in Table 5.",
    ),
}


class Sources:
    """All rows that tables and figures are made of.

    Args:
        rows: folder of rows that are not committed, beside `evaluate/results`.
        only: cells of the paper to show; the others, and what goes beyond the paper, are left out where it is given.
        configs: folder of the cells' configs. What is not of cells is of Icons alone, and is left out for another one.
    """

    def __init__(self, rows: Path, only: list[str] | None = None, configs: Path = CONFIGS) -> None:
        self.rows, self.only, self.configs = rows, only, configs.resolve()

    @property
    def of_icons(self) -> bool:
        """Whether the cells are those of the shipped images."""
        return self.configs == CONFIGS

    @classmethod
    def of(cls, args: argparse.Namespace) -> Sources:
        """Those of the options of `arguments`. Exits where there is no such cell."""
        there = [name for name in PAPER if (args.configs / f"{name}.yaml").exists()]
        unknown = [name for name in args.cells or () if name not in there]
        if unknown or not there:
            sys.exit(f"{args.configs} has {', '.join(there) or 'no cells'}" + (f", and --cells names {unknown[0]}" if unknown else ""))
        return cls(args.rows, args.cells, args.configs)

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """Those that have a config, by name."""
        found = {}
        stress = sorted(file.stem for file in self.configs.glob("stress-*.yaml"))
        for name in self.only or (*PAPER, *stress, *BEYOND):
            file = self.configs / f"{name}.yaml"
            if file.exists():
                config = read_config(file)
                there = Rows(self.rows / config.cell, RESULTS / config.cell).read()
                found[name] = Cell(config, os.path.relpath(file, ROOT), there, about(file))
        return found

    def csv(self, *names: str) -> pd.DataFrame:
        """Committed rows of one or more measurements."""
        return pd.concat([pd.read_csv(RESULTS / f"{name}.csv") for name in names], ignore_index=True)

    def decisions(self, schedule: str = SPECIALIST) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        """What a schedule decided, and its time features."""
        files = [RESULTS / "decisions" / f"{schedule}{suffix}.parquet" for suffix in ("", "-time")]
        decided, times = (pd.read_parquet(file) if file.exists() else None for file in files)
        return decided, times


def about(file: Path) -> str:
    """What a config says in the brackets of its first comment that it is."""
    comment = " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), file.read_text().splitlines()))
    text = comment[comment.index("(") + 1 : comment.rindex(")")].split(": ", 1)[-1]
    return f"{text[0].upper()}{text[1:]}"


def of_a_seed(arm: str) -> bool:
    """Whether an arm is there to show the spread between meta-training seeds; a table of its own does."""
    return ", seed " in arm


def part(cell: Cell, arms: Sequence[Arm], horizons: Sequence[int] = ()) -> Cell:
    """Some arms of a cell, and those of some lengths that it has, or all. An arm that has none of these is left out."""
    return cell._replace(config=cell.config.part(arms, [h for h in horizons if h in cell.config.horizons]))


def without_seeds(cell: Cell) -> Cell:
    """A cell without the arms that are there to show the spread between seeds."""
    return part(cell, [arm for arm in cell.config.arms if not of_a_seed(arm.name)])


def heading(name: str, cell: Cell) -> str:
    """Of a cell's section."""
    return f"{name}: {cell.about}"


def on_refreshed(cell: Cell) -> str:
    """What is said of a cell that has arms with BatchNorm refreshed; nothing of another."""
    return f" {REFRESHED}" if any(arm.refresh for arm in cell.config.arms) else ""


def every_command(cells: Mapping[str, Cell]) -> tuple[str, ...]:
    """What makes all that is missing of some cells, each command once."""
    return tuple(dict.fromkeys(command for cell in cells.values() for command in cell.commands()))


def compared_cells(sources: Sources) -> dict[str, Cell]:
    """The paper's cells in which L3RS is compared with others, without what shows the spread between seeds."""
    return {name: without_seeds(cell) for name, cell in sources.cells.items() if name in PAPER and cell.reference}


def summary(sources: Sources) -> Iterator[tuple[str, Table]]:
    """L3RS against the best other optimizer, cell by cell."""
    cells = compared_cells(sources)
    frame = against_best(cells).rename_axis("cell")
    caption = (
        "Accuracy of L3RS, of the best other optimizer (the one least behind L3RS on the same tasks, tuned baselines included), the paired "
        "difference in points with its bootstrap 95% interval over tasks, and the share of tasks on which L3RS is better, ties counting "
        "half. Accuracies are over the tasks that each has, differences over those that both have. L3RS is one meta-training seed. "
        + REFRESHED
    )
    yield "In short", Table("Summary", caption, frame, every_command(cells))


def seeds(sources: Sources) -> Iterator[tuple[str, Table]]:
    """The spread between meta-trainings that differ in their seed alone."""
    for cell in (cell for name, cell in sources.cells.items() if name in PAPER):
        arms = [name for arm in cell.config.arms if (name := arm.name) == cell.reference or of_a_seed(name)]
        if len(arms) > 1:
            caption = f"{cell.about}: accuracy of {cell.reference}, which is shipped, and of schedules of other meta-training seeds."
            yield (
                "In short",
                Table("Meta-training seeds", caption, over_seeds(cell.config, cell.outcomes("accuracy"), arms), cell.commands()),
            )


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
                f"{about}: by how much L3RS is better, in {unit}, paired over the n tasks that both have, with the bootstrap 95% interval "
                "of the mean; after the semicolon the probability of improvement. A diverged run counts as a loss."
            )
            name_ = f"Table {first if measure == 'accuracy' else first + 1}, paired"
            yield heading(name, cell), Table(name_, caption, paired(config, cell.outcomes(measure), measure, cell.reference))
        caption = f"{about}: interquartile mean of evaluation accuracy, the mean of the middle half of the tasks."
        yield heading(name, cell), Table(f"Table {first}, interquartile", caption, interquartile_means(config, cell.outcomes("accuracy")))


def costs(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Table 1, and the break-even page."""
    for table in step_tables(sources.csv("step_cost", "learned_cost"), sources.csv("step_share")):
        yield "Cost of a step", table
    horizon, names, seconds, faster, commands = 100, {}, {}, {}, ()
    if cell := sources.cells.get("A"):
        tuned = {arm.optimizer: arm.name for arm in cell.config.arms if arm.lr is None and arm.optimizer in BASELINES}
        table, names, commands = cell.outcomes("accuracy"), tuned, cell.commands()
        ran = cell.rows[(cell.rows.horizon == horizon) & (cell.rows.steps == horizon)].dropna(subset=["seconds"])
        for optimizer, name in {"l3rs": cell.reference, **tuned}.items():
            if len(mine := ran[ran.arm == name]):
                seconds[optimizer] = float(mine.seconds.median())
            if optimizer != "l3rs" and (found := speedup_of(table, "accuracy", cell.reference, name)).get(horizon):
                faster[optimizer] = found[horizon][0]
    yield "Cost of meta-training", break_even(l3rs.load(SPECIALIST), sources.csv("tuning"), seconds, faster, names, horizon, commands)


def settings_rows(name: str) -> pd.DataFrame:
    """Committed rows of `l3rs.evaluation.study`, none if there is no such file yet."""
    file = RESULTS / f"{name}.csv"
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=list(COLUMNS))


def ablated() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Title of each table of ablations, what it compares, and what the rows call its variants; what two tables share has one name."""
    for title, (what, variants) in ABLATIONS.items():
        yield title, what, {name: NAMES[config] for name, config in variants.items()}
    yield "Table 4, beyond the paper", "other optimizers as base directions", {name: name for name in (ABLATED_FROM, *TRUSTED)}


def ablations(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Tables 2 to 4."""
    rows = settings_rows("ablations/rows")
    for title, what, called in ablated():
        for measure in MEASURES:
            caption = (
                f"Ablation, {what}: evaluation {measure}, mean ± standard deviation over tasks, after few generations of meta-training."
            )
            frame = ablation(rows, called, sorted(rows.steps.unique()) or [20], measure)
            lacking = [name for name, line in zip(called.values(), (frame == MISSING).any(axis=1), strict=True) if line]
            paper = [name for name in lacking if name not in TRUSTED]
            only = "" if len(paper) == len(called) else f" --only {' '.join(map(shlex.quote, paper))}"
            commands = ((f"python evaluate/ablations.py{only}",) if paper else ()) + tuple(
                command for name, command in TRUSTED.items() if name in lacking
            )
            yield "Ablations", Table(title if measure == "accuracy" else f"{title}, loss", caption, frame, commands)
        yield from compared("Ablations", title, rows, ABLATED_FROM, called)


def study(sources: Sources) -> Iterator[tuple[str, Table]]:
    """What matters most in meta-training."""
    rows, called = studied()
    for measure in MEASURES:
        caption = (
            f"Settings of meta-training at equal cost, each differing from the base in what its name says: evaluation {measure} on "
            "meta-validation tasks, mean ± standard deviation over tasks, seeds averaged."
        )
        frame = ablation(rows, called, sorted(rows.steps.unique()) or [10, 25, 50], measure)
        lacking = [name for name, line in zip(called, (frame == MISSING).any(axis=1), strict=True) if line and name != START]
        only = "" if len(lacking) == len(called) - 1 else f" --only {' '.join(map(shlex.quote, lacking))}"
        yield STUDY, Table(f"Settings, {measure}", caption, frame, (f"python evaluate/meta_study.py{only}",) if lacking else ())
    yield from compared(STUDY, "Settings", rows, STUDIED_FROM, called)


def studied() -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows of the study, and its settings."""
    names = (START, *yaml.safe_load((ROOT / "configs" / "meta_study.yaml").read_text())["settings"])
    return with_start(settings_rows("meta_study"), STUDIED_FROM), {name: name for name in names}


def compared(section: str, title: str, rows: pd.DataFrame, reference: str, called: Mapping[str, str]) -> Iterator[tuple[str, Table]]:
    """Differences to a reference and what they are worth, where there are rows of both."""
    others = {name: setting for name, setting in called.items() if setting != reference}
    for measure, unit in (("accuracy", "points of accuracy"), ("loss", "loss")):
        found = {key: c for key, c in contrasts(rows, reference, measure).items() if key[0] in others.values()}
        if found:
            caption = f"By how much each is better than {reference!r}, in {unit}. {INTERVALS}"
            name = f"{title}, paired{'' if measure == 'accuracy' else ', loss'}"
            yield section, Table(name, caption, contrast_table(found, others, measure))


def stress(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Off the conditions of meta-training."""
    cells = {name.removeprefix("stress-"): cell for name, cell in sources.cells.items() if name.startswith("stress-")}
    if cells:
        caption = "L3RS off the conditions of its meta-training, against the best other optimizer, as in the summary."
        yield "Stress", Table("Stress", caption, against_best(cells).rename_axis("condition"), every_command(cells))
    for name, cell in cells.items():
        caption = f"{cell.about}: evaluation accuracy, mean ± standard deviation over tasks; lr: tuned for the length of the run."
        yield "Stress", Table(f"Stress, {name}", caption, means(cell.config, cell.outcomes("accuracy")))


def beyond(sources: Sources) -> Iterator[tuple[str, Table]]:
    """What the paper has no table for."""
    for name, (section, caption) in BEYOND.items():
        if cell := sources.cells.get(name):
            yield section, Table(name.capitalize(), caption, means(cell.config, cell.outcomes("accuracy")), cell.commands())
            difference = paired(cell.config, cell.outcomes("accuracy"), "accuracy", cell.reference or "")
            yield section, Table(f"{name.capitalize()}, paired", "L3RS minus each, in points, as for Table 5.", difference)


def of_icons(sources: Sources) -> Iterator[tuple[str, Table]]:
    """What there is no config of a cell for."""
    if sources.of_icons:
        yield from costs(sources)
        yield from study(sources)
        yield from ablations(sources)


TABLES: tuple[Callable[[Sources], Iterator[tuple[str, Table]]], ...] = (summary, seeds, cell_tables, of_icons, stress, beyond)


def collect(sources: Sources, makers: tuple[Callable[[Sources], Iterator[tuple[str, object]]], ...]) -> list[Section]:
    """What they make, section by section, in the order in which sections first come."""
    found: dict[str, list] = {}
    for maker in makers:
        for section, item in maker(sources):
            found.setdefault(section, []).append(item)
    return list(found.items())


def arguments(doc: str) -> argparse.ArgumentParser:
    """Options that all three scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of the cells' configs (default: configs/evaluate)")
    parser.add_argument("--cells", nargs="+", help="some of them, such as A E (default: all)")
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/evaluation"), help="folder of rows, beside evaluate/results (default: %(default)s)"
    )
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "tables.md", help="file to write (default: %(default)s)")
    args = parser.parse_args()
    lead = "Made by `python evaluate/tables.py` from the rows in `evaluate/results`."
    args.out.write_text(as_markdown("Tables", lead, collect(Sources.of(args), TABLES)))
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
