"""The short tables of README and the findings: L3RS against the best of the tuned optimizers, and of those that need no tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from l3rs.evaluation.cell_tables import Cell, least_behind, nothing, number, planned_by, points, signed, tasks_note, unique
from l3rs.evaluation.pages import MISSING
from l3rs.evaluation.speedups import often_run, speedup_of
from l3rs.finetuning.arms import Arm
from l3rs.schedules.find import OLDER_GENERALIST, START
from l3rs.stats import mean_interval

KINDS: Mapping[str, Callable[[Arm], bool]] = {
    "best other": lambda arm: not arm.ours,
    "best tuned": lambda arm: arm.tuned,
    "best without tuning": lambda arm: not arm.ours and not arm.tuned,
    "unlearned": lambda arm: arm.ours and arm.learned == START and arm.lr is None,
    "older generalist": lambda arm: arm.ours and arm.learned == OLDER_GENERALIST,
}  # of what L3RS is compared with; the `unlearned` one is where its meta-training begins


def arms_of(cell: Cell, kind: str) -> list[str]:
    """Names the arms of one of `KINDS`."""
    return [arm.name for arm in unique(cell.config.arms) if KINDS[kind](arm)]


def ahead_of(cell: Cell, table: pd.DataFrame, kind: str, horizon: int) -> tuple[str, pd.Series[float]] | None:
    """Finds the arm of a kind that is `least_behind` L3RS at a horizon, and the lead of L3RS over it by task; None without rows."""
    ours = (cell.reference, horizon)
    return least_behind(table[ours], table, arms_of(cell, kind), horizon) if ours in table.columns else None


def headline(cell: Cell, kinds: Sequence[str]) -> pd.DataFrame:
    """Makes a table with a line a length of a run: the accuracy of L3RS; for each kind the best of it, and L3RS's lead in points.

    For the first kind it also has how many times as many steps the best needs to have what L3RS has.
    """
    table, ours = cell.outcomes("accuracy"), cell.reference or ""
    lines = {}
    for horizon in sorted(cell.config.horizons):
        mine = table[ours, horizon].dropna()
        line = lines[f"{horizon:,}"] = [number(float(mine.mean())) if len(mine) else MISSING]
        for kind in kinds:
            texts = [MISSING, MISSING, MISSING]
            if found := ahead_of(cell, table, kind, horizon):
                best, gaps = found
                times = speedup_of(table, "accuracy", ours, best).get(horizon)
                longest = max(often_run(table, best, mine.index), default=horizon)
                of_best = number(float(table[best, horizon].loc[gaps.index].mean()))
                lead = points(gaps) + tasks_note(cell.config, horizon, len(gaps))
                texts = [of_best + named(cell, kind, best), lead, needed(times, longest / horizon) if times else MISSING]
            line += texts if kind == kinds[0] else texts[:2]
    heads = ["L3RS", *(head for kind in kinds for head in (kind, "L3RS minus it"))]
    heads.insert(3, "steps it needs")
    return pd.DataFrame.from_dict(lines, orient="index", columns=heads, dtype=object).rename_axis("steps")


def needed(times: tuple[float, float, float], ran: float) -> str:
    """A speedup with its interval: `1.5 times (1.3 to 1.8)`.

    What is beyond the longest runs, of `ran` times as many steps, is `over 4 times`; `more` where they have no more steps than L3RS.
    """
    middle, low, high = (f"{x:.1f}" if math.isfinite(x) else f"over {ran:g}" for x in times)
    if not math.isfinite(times[0]):
        return ("more" if ran == 1 else f"{middle} times") + (f" ({low} at least)" if math.isfinite(times[1]) else "")
    return f"{middle} times" + ("" if math.isnan(times[1]) else f" ({low} to {high})")


def pooled(cells: Mapping[str, Cell], kinds: Sequence[str]) -> pd.DataFrame:
    """Makes a table with a line a length of a run: the mean lead of L3RS over the best of each kind, chosen for each cell.

    Cells count alike, and intervals are over cells. Lines and columns without rows are left out. A lead says on how many tasks it is where
    another one of its line is on more.
    """
    tables = {name: cell.outcomes("accuracy") for name, cell in cells.items()}
    horizons = sorted({horizon for cell in cells.values() for horizon in cell.config.horizons})
    frame = nothing([f"{horizon:,}" for horizon in horizons], [*(f"L3RS minus {kind}" for kind in kinds), "networks", "tasks"], "steps")
    for horizon in horizons:
        leads = {
            kind: [found[1] for name, cell in cells.items() if (found := ahead_of(cell, tables[name], kind, horizon))] for kind in kinds
        }
        most = max(leads.values(), key=lambda gaps: sum(map(len, gaps)))
        every = sum(map(len, most))
        for kind, gaps in leads.items():
            if gaps:
                tasks = sum(map(len, gaps))
                note = f", n={tasks}" if tasks < every else ""
                frame.loc[f"{horizon:,}", f"L3RS minus {kind}"] = over_cells(gaps) + note
                frame.loc[f"{horizon:,}", ["networks", "tasks"]] = f"{len(most)}", f"{every}"
    return without_empty(frame)


def by_cell(cells: Mapping[str, Cell], kind: str) -> pd.DataFrame:
    """Makes a table of L3RS's lead over the best of a kind, in points: a line a cell, a column a length of a run; without empty ones."""
    horizons = sorted({horizon for cell in cells.values() for horizon in cell.config.horizons})
    frame = nothing(list(cells), [f"{horizon:,} steps" for horizon in horizons], "network")
    for name, cell in cells.items():
        table = cell.outcomes("accuracy")
        for horizon in cell.config.horizons:
            if found := ahead_of(cell, table, kind, horizon):
                lead = points(found[1]) + tasks_note(cell.config, horizon, len(found[1]))
                frame.loc[name, f"{horizon:,} steps"] = lead + named(cell, kind, found[0])
    return without_empty(frame)


def named(cell: Cell, kind: str, arm: str) -> str:
    """The name of an arm after a comma; empty if it is the only one of its kind."""
    return "" if len(arms_of(cell, kind)) == 1 else f", {arm.removesuffix(' tuned')}"


def by_arm(cells: Mapping[str, Cell]) -> pd.DataFrame:
    """Makes a table of L3RS's mean lead over each other arm, in points, over all cells: a line an arm, a column a length.

    Cells count alike, and intervals are over cells. Of L3RS it leaves out other multipliers. `n` is the number of tasks, where an arm did
    not run all of them. Where no cell plans a run, nothing stands. Empty lines and columns are left out.
    """
    tables = {name: cell.outcomes("accuracy") for name, cell in cells.items()}
    horizons = sorted({horizon for cell in cells.values() for horizon in cell.config.horizons})
    at_one = [(cell, arm) for cell in cells.values() for arm in cell.config.arms if not arm.ours or arm.rate(1) == 1]
    others = [arm for cell, arm in at_one if arm.name != cell.reference]
    frame = nothing([arm.name for arm in unique(others)], [f"{horizon:,} steps" for horizon in horizons], "other")
    planned = set[tuple[str, int]]().union(*(planned_by(cell.config) for cell in cells.values()))
    for horizon in horizons:
        frame.loc[[arm for arm in frame.index if (arm, horizon) not in planned], f"{horizon:,} steps"] = ""
        ours = {name: table[cells[name].reference, horizon].dropna() for name, table in tables.items()}
        tasks = sum(map(len, ours.values()))
        for arm in frame.index:
            ran = [(mine - tables[name][arm, horizon]).dropna() for name, mine in ours.items() if (arm, horizon) in tables[name]]
            if made := sum(map(len, ran)):
                note = "" if made == tasks else f", n={made}"
                frame.loc[arm, f"{horizon:,} steps"] = over_cells([gaps for gaps in ran if len(gaps)]) + note
    return without_empty(frame)


def over_cells(gaps: Sequence[pd.Series[float]]) -> str:
    """The mean over cells of their mean paired differences, in points, with its Student-t interval for other cells like these.

    Tasks of a cell, as of one network, are alike: they tell of that network. A lone cell has the interval of its tasks.
    """
    return points(gaps[0]) if len(gaps) == 1 else signed(*mean_interval([float(mine.mean()) for mine in gaps]))


def without_empty(frame: pd.DataFrame) -> pd.DataFrame:
    """Leaves out lines and columns in which everything is missing, or was not planned."""
    there = ~frame.isin([MISSING, ""])
    return frame.loc[there.any(axis=1), there.any()]
