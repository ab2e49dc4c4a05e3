"""From the rows of a meta-evaluation to tables; nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from l3rs import stats
from l3rs.evaluation import Arm, EvaluationConfig

MEASURES = ("accuracy", "loss")
WORST = {"accuracy": 0.0, "loss": math.inf}  # what a run that diverged counts as; in the rows it stays NaN


def outcomes(rows: pd.DataFrame, config: EvaluationConfig, measure: str) -> pd.DataFrame:
    """What came out at the end of each run of a cell: tasks by (arm, horizon); NaN where there is no row, or the run failed.

    The meta-training seeds of an arm are averaged, task by task.

    Args:
        measure: `accuracy` or `loss`.
    """
    r = rows[(rows.cell == config.cell) & (rows.steps == rows.horizon) & rows.error.isna()]
    wanted = pd.MultiIndex.from_tuples(
        [(a.name, h) for a in unique(config.arms) for h in a.horizons or config.horizons], names=["arm", "horizon"]
    )
    rates = {(arm.name, horizon, arm.rate(horizon)) for arm in config.arms for horizon in arm.horizons or config.horizons}
    r = r[[(name, h, lr) in rates for name, h, lr in zip(r.arm, r.horizon, r.lr, strict=True)]]
    values = r.assign(value=r[measure].fillna(WORST[measure]))
    table = values.pivot_table(index="task_seed", columns=["arm", "horizon"], values="value", aggfunc="mean")
    return table.reindex(columns=wanted)


def unique(arms: Sequence[Arm]) -> list[Arm]:
    """One arm of each name."""
    return list({arm.name: arm for arm in arms}.values())


def columns(table: pd.DataFrame) -> list[tuple[str, int]]:
    """Its (arm, horizon)s."""
    return [(str(key[0]), int(key[1])) for key in table.columns.to_flat_index()]


class Entry(NamedTuple):
    """One cell of a table: mean, standard deviation and interquartile mean over so many tasks."""

    mean: float
    std: float
    iqm: float
    tasks: int


def summarize(table: pd.DataFrame) -> dict[tuple[str, int], Entry]:
    """An entry for each arm and horizon that has a run."""
    found: dict[tuple[str, int], Entry] = {}
    for key in columns(table):
        x = table[key].dropna().to_numpy(dtype=float)
        if len(x):
            spread = float(x.std(ddof=1)) if len(x) > 1 and math.isfinite(x.max()) else math.nan
            found[key] = Entry(float(x.mean()), spread, stats.interquartile_mean(x), len(x))
    return found


class Difference(NamedTuple):
    """How much better an arm is than another on the tasks that both ran: mean, bootstrap 95% interval, probability of improvement."""

    mean: float
    low: float
    high: float
    probability: float
    tasks: int


def differences(table: pd.DataFrame, measure: str, reference: str) -> dict[tuple[str, int], Difference]:
    """`reference` minus every other arm, task by task, at each horizon; for losses the other way round: above 0 the reference is better."""
    found: dict[tuple[str, int], Difference] = {}
    for arm, horizon in columns(table):
        if arm == reference or (reference, horizon) not in table.columns:
            continue
        pair = table[[(reference, horizon), (arm, horizon)]].dropna().to_numpy(dtype=float)
        if len(pair):
            gain = pair[:, 0] - pair[:, 1] if measure == "accuracy" else pair[:, 1] - pair[:, 0]
            found[arm, horizon] = Difference(
                float(gain.mean()), *stats.bootstrap_interval(gain), stats.probability_of_improvement(gain), len(gain)
            )
    return found


def as_markdown(config: EvaluationConfig, measure: str, entries: dict[tuple[str, int], Entry]) -> str:
    """The table as the paper has it: mean and standard deviation, an arm a line, a horizon a column; a dash where runs are missing, and a
    star where there are fewer tasks than the config asks for."""
    horizons = sorted(config.horizons)
    lines = ["| | " + " | ".join(f"{h} steps" for h in horizons) + " |", "|---" * (len(horizons) + 1) + "|"]
    for arm in unique(config.arms):
        cells = []
        for h in horizons:
            entry = entries.get((arm.name, h))
            if entry is None:
                cells.append("" if arm.horizons and h not in arm.horizons else "-")
                continue
            spread = "" if math.isnan(entry.std) else f" ± {entry.std:.3f}"
            rate = f" ({arm.rate(h):g})" if arm.lr is None and arm.rate(h) != 1.0 else ""
            cells.append(f"{entry.mean:.3f}{spread}{rate}" + ("*" if entry.tasks < config.horizons[h] else ""))
        lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def missing_arms(config: EvaluationConfig, table: pd.DataFrame) -> list[str]:
    """Names of arms that lack runs."""
    return [
        arm.name
        for arm in unique(config.arms)
        if any(table[arm.name, h].notna().sum() < config.horizons[h] for h in arm.horizons or config.horizons)
    ]
