"""The tables of the page on the paper's protocol: L3RS with a random head and running statistics, beside each other optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from l3rs.evaluation.cell_tables import (
    Cell,
    by_horizon,
    differences,
    number,
    of_a_seed,
    signed,
    standings,
    summarize,
    tasks_note,
)  # fmt: skip
from l3rs.evaluation.headlines import without_empty
from l3rs.evaluation.pages import MISSING, Table
from l3rs.evaluation.sources import AWAY, ELSEWHERE, Sources
from l3rs.evaluation.speedups import steps_to_match
from l3rs.finetuning.arms import Arm
from l3rs.learners import LEARNERS

PROTOCOL = "By the paper's protocol"
SHORT, LONG = (10, 25, 50, 100), (250, 500, 1000, 2500)  # steps; the long ones were run on few tasks
LEADS = "In brackets L3RS's lead over it in points, paired by task, with its 95% interval."
BEST = "The best other is the one least behind on the tasks that all ran. In brackets the lead over it, in points, with its 95% interval."


def usual(arm: Arm) -> bool:
    """Whether an arm is of the page: L3RS with a random head, or an optimizer that was tuned and not learned."""
    return arm.head == "random" and not of_a_seed(arm) and (arm.ours or (arm.tuned and not learned_by_others(arm)))


def learned_by_others(arm: Arm) -> bool:
    """Whether an arm is another learned optimizer."""
    return not arm.ours and arm.optimizer in LEARNERS


def with_leads(cell: Cell, horizons: Sequence[int] = ()) -> pd.DataFrame:
    """Makes a table of accuracies, and of the lead of the first arm over each other one: `0.808 (+1.5: 1.0 to 2.0)`.

    Arms without rows are left out, and lengths without any.

    Args:
        horizons: the lengths of runs to show; all if empty.
    """
    table, reference = cell.outcomes("accuracy"), cell.reference or ""
    entries, leads = summarize(table), differences(table, "accuracy", reference)

    def text(arm: Arm, horizon: int) -> str | None:
        entry, lead = entries.get((arm.name, horizon)), leads.get((arm.name, horizon))
        if entry is None:
            return None
        ahead = f" ({in_brackets(lead.mean, lead.low, lead.high)})" if lead else ""
        return f"{number(entry.mean)}{ahead}{tasks_note(cell.config, horizon, entry.tasks)}"

    frame = by_horizon(cell.config, text)
    frame = without_empty((frame.filter([f"{horizon} steps" for horizon in horizons]) if horizons else frame).replace("", MISSING))
    return frame.replace(MISSING, "").rename(index=lambda name: name.removesuffix(" tuned"))


def in_brackets(mean: float, low: float, high: float) -> str:
    """A lead with its interval, to stand in brackets itself: `+1.5: 1.0 to 2.0`."""
    return signed(mean, low, high).replace(" (", ": ").removesuffix(")")


def beside_the_best(cells: Mapping[str, Cell], horizons: Sequence[int] = ()) -> pd.DataFrame:
    """Makes a table with a line a cell and length: the best other optimizer, and each arm of L3RS with its lead over it.

    An arm that has another best one, as it ran other tasks, says which. Lines and columns without rows are left out.

    Args:
        horizons: the lengths of runs to show; all if empty.
    """
    ours = list(dict.fromkeys(arm.name for cell in cells.values() for arm in cell.config.arms if arm.ours))
    lines: dict[str, dict[str, str]] = {}
    for name, cell in cells.items():
        for s in standings(cell):
            if (horizons and s.horizon not in horizons) or s.mean is None or s.ahead is None or s.best is None or s.of_best is None:
                continue
            best = s.best.removesuffix(" tuned")
            line = lines.setdefault(f"{name}, {s.horizon} steps", {"best other": f"{number(s.of_best)}, {best}"})
            over = "" if line["best other"].endswith(f", {best}") else f" over {best}"
            line[s.arm] = f"{number(s.mean)} ({in_brackets(s.ahead.mean, s.ahead.low, s.ahead.high)}{over})"
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=["best other", *ours], dtype=object)
    return frame.dropna(axis=1, how="all").fillna("").rename_axis("cell")


def part(cell: Cell, belongs: Callable[[Arm], bool]) -> Cell:
    """Picks the arms of a cell that belong."""
    return cell.part([arm for arm in cell.config.arms if belongs(arm)])


def at_home(cell: Cell) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yields the name, caption and lines of each table of the cell that has the network and the images of meta-training."""
    mine = part(cell, usual)
    others = part(cell, lambda arm: arm.name == cell.reference or learned_by_others(arm))
    for what, shown, horizons in (("", mine, SHORT), (", longer runs", mine, LONG), (", other learned optimizers", others, SHORT)):
        yield what, f"{cell.about}: accuracy. {LEADS}", with_leads(shown, horizons)
    matched = steps_to_match(part(mine, lambda arm: arm.name == cell.reference or arm.tuned), "accuracy")
    caption = f"{cell.about}: how many times as many steps each needs to have what L3RS has after a run of this length."
    yield ", steps to match", caption, matched.filter([f"{horizon} steps" for horizon in SHORT[:2]])


def elsewhere(cells: Mapping[str, Cell]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yields the name, caption and lines of each table of cells that differ from that one."""
    random = {name: part(cells[name], lambda arm: arm.head == "random") for name in (*AWAY, *ELSEWHERE) if name in cells}
    stress = {name: part(cell, lambda arm: arm.total_steps == 1) for name, cell in cells.items() if name.startswith("stress-")}
    for what, about, shown, horizons in (
        ("elsewhere", "Other images, weights, or both", {name: random[name] for name in AWAY if name in random}, SHORT),
        ("stress", "One condition of meta-training changed in each", {n.removeprefix("stress-"): c for n, c in stress.items()}, ()),
        ("other networks", "Networks that these schedules did not meet", {name: random[name] for name in ELSEWHERE if name in random}, ()),
    ):
        yield f", {what}", f"{about}: accuracy. {BEST}", beside_the_best(shown, horizons)
    for name in ("refreshed", "averaged", "stress-total-steps"):
        if cell := cells.get(name):
            yield f", {name}", f"{cell.about}: accuracy. {LEADS}", with_leads(cell)


def protocol(sources: Sources) -> Iterator[tuple[str, Table]]:
    """The tables of the page, those that have rows."""
    home = sources.cells.get("A")
    for what, caption, frame in (*(at_home(home) if home else ()), *elsewhere(sources.cells)):
        if frame.size:
            yield PROTOCOL, Table(f"{PROTOCOL}{what}", caption, frame)
