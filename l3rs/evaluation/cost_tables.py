"""Tables of costs: memory and time of a step, and the break-even of meta-training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from l3rs.evaluation.cell_tables import nothing, shown_rows
from l3rs.evaluation.cells import CONSTANT
from l3rs.evaluation.pages import MISSING, Table
from l3rs.evaluation.sources import Sources
from l3rs.evaluation.speedups import speedup_of
from l3rs.finetuning.arms import OURS
from l3rs.finetuning.baselines import BASELINES
from l3rs.schedules.find import PAPER_SPECIALIST, load
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.stats import runs_to_break_even

STEP_ARMS = {  # names in the rows of evaluate/step_cost.py, and in tables
    "sgd-fused": "SGD, fused",
    "adam-fused": "Adam, fused",
    "adam-default": "Adam, as it comes",
    OURS: "L3RS",
    "l3rs-foreach": "L3RS in torch operations",
    "velo": "VeLO",
    "celo": "Celo",
    "celo2": "Celo2",
}
NETWORKS = {"resnet34-w64": "full ResNet-34", "resnet34-w16": "ResNet-34 at width 16"}
PAID_WITH = 100  # steps of the runs that pay for meta-training
COMMANDS = ("python evaluate/step_cost.py", "python evaluate/step_cost.py --learned")


def step_tables(rows: pd.DataFrame, share: pd.DataFrame) -> Iterator[Table]:
    """Table 1, measured: state and time of a step, for both networks; and its share of a training step.

    Args:
        rows: of `step_cost.csv` and `learned_cost.csv`; the newest measurement of an arm at the most threads counts, on the device of the
            newest row.
        share: of `step_share.csv`.
    """
    columns = ["state (words a parameter)", "beside it, at most", "a step (ms)", "quartiles (ms)", "times fused Adam"]
    rows = rows.sort_values("date", kind="stable")
    rows = rows[rows.device == rows.device.iloc[-1]] if len(rows) else rows
    for network, called in NETWORKS.items():
        mine = rows[rows.network == network]
        mine = mine[mine.threads == mine.threads.max()].drop_duplicates("arm", keep="last").set_index("arm")
        lines = []
        for arm in STEP_ARMS:
            if arm not in mine.index:
                lines.append([MISSING] * len(columns))
                continue
            r = mine.loc[arm]
            beside = "" if pd.isna(r.get("peak_words")) else f"{r.peak_words:.2f}"
            quartiles = f"{r.q25_ms:.1f} to {r.q75_ms:.1f}"
            lines.append([f"{r.state_words:.4f}", beside, f"{r.median_ms:.1f}", quartiles, f"{r.ratio_to_fused_adam:.2f}"])
        frame = pd.DataFrame(lines, pd.Index(STEP_ARMS.values(), name="optimizer"), columns, dtype=object)
        about = ""
        if len(mine):
            first = mine.iloc[0]
            about = f", {first.parameters / 1e6:.1f} M parameters, on {first.device}, {first.threads} threads"
        caption = (
            f"Memory and compute overhead on the {called}{about}: float32 words of state per parameter, the most that a step needs beside "
            "it if that was measured, and the median time of a step alone. The paper promises Adam's two moments and a few numbers more."
        )
        yield Table(f"Table 1, {called}", caption, frame, COMMANDS if MISSING in frame.to_numpy() else ())
    caption = "The optimizer's share of a whole training step, forward and backward pass included, at batches of 64."
    heads = [f"{STEP_ARMS.get(a, a)}: {n}, {p} px" for a, n, p in zip(share.arm, share.network, share.pixels, strict=True)]
    frame = pd.DataFrame(
        {
            "training step (ms)": share.training_step_ms.map("{:,.1f}".format),
            "optimizer (ms)": share.optimizer_ms.map("{:.2f}".format),
            "share": share["share"].map("{:.2%}".format),
        }
    ).set_axis(pd.Index(heads, name="optimizer"))
    yield Table("Table 1, in training", caption, frame, () if len(frame) else ("python evaluate/step_cost.py --share",))


def meta_training_seconds(learned: LearnedSchedule) -> float:
    """The core-seconds of its meta-training, wall time times processes; NaN if the checkpoint does not say."""
    about: dict[str, Any] = {**learned.training.get("config", {}), **learned.training}
    return float(about.get("seconds", math.nan)) * float(about.get("workers") or math.nan)


class Tuning(NamedTuple):
    """The cost of tuning a baseline: core-seconds, and the number of learning rates at a horizon."""

    seconds: float
    rates: int


def tuning_cost(rows: pd.DataFrame, optimizer: str, horizon: int) -> Tuning:
    """Sums the rows of `tuning.csv`, of random heads. Evaluations along one run share its seconds, which count once."""
    mine = rows[rows.optimizer == optimizer]
    runs = mine.drop_duplicates(["lr", "task_seed"]) if optimizer in CONSTANT else mine  # one run for all horizons
    return Tuning(float(runs.seconds.sum()), mine[mine.steps == horizon].lr.nunique())


BREAK_EVEN = (
    "A baseline costs T once and c for a fine-tuning run of {horizon} steps, with m runs for each fine-tuning. The schedule costs M once "
    "and c0 for its one run. Meta-training pays off after N = (M - T) / (m c - c0) fine-tunings, rounded up: at once if M is at most T, "
    "never if m c is at most c0. Tuned each time, T is 0 and m the number of learning rates tried. Tuned once, T is as measured and m is "
    "the speedup at equal accuracy of Figure 3F, infinite if the baseline never gets there. M is {hours:.2f} core-hours, wall time times "
    "processes; c are medians of the rows of cell A, which were made on several days and machines: N is an order of magnitude."
)


def break_even(
    learned: LearnedSchedule,
    tuning: pd.DataFrame,
    seconds: Mapping[str, float],
    speedups: Mapping[str, float],
    names: Mapping[str, str],
    horizon: int,
    commands: tuple[str, ...] = (),
) -> Table:
    """Makes the table of fine-tunings after which meta-training pays off.

    Args:
        tuning: rows of `evaluate/tune.py`.
        seconds: median of a run of `horizon` steps, by optimizer; `l3rs` is the schedule.
        speedups: steps that a baseline needs for the schedule's accuracy, in units of `horizon`, by optimizer.
        names: of the baselines, by optimizer.
        commands: make missing rows.
    """
    invested = meta_training_seconds(learned)
    columns = ["tuning (core-hours)", "learning rates tried", "a run (core-seconds)", "speedup m", "N, tuned each time", "N, tuned once"]
    caption = f"Break-even of {learned.name}. " + BREAK_EVEN.format(horizon=horizon, hours=invested / 3600)
    lines = nothing(list(names.values()), columns, "baseline")
    for optimizer, name in names.items():
        spent = tuning_cost(tuning, optimizer, horizon)
        if not spent.rates:
            continue
        lines.loc[name, columns[:2]] = [f"{spent.seconds / 3600:.2f}", str(spent.rates)]
        if optimizer not in seconds or OURS not in seconds or math.isnan(invested):
            continue
        c, c0 = seconds[optimizer], seconds[OURS]
        lines.loc[name, columns[2]] = f"{c:.2f} (L3RS {c0:.2f})"
        lines.loc[name, columns[4]] = runs(runs_to_break_even(invested, spent.rates * c - c0))
        if optimizer in speedups:
            m = speedups[optimizer]
            lines.loc[name, columns[3]] = f"{m:.2f}" if math.isfinite(m) else "never there"
            lines.loc[name, columns[5]] = runs(runs_to_break_even(invested - spent.seconds, m * c - c0))
    return Table("Break-even", caption, lines, commands if MISSING in lines.to_numpy() else ())


def runs(n: float) -> str:
    """Formats a number of runs."""
    return f"{n:,.0f}" if math.isfinite(n) else "never"


def costs(sources: Sources) -> Iterator[tuple[str, Table]]:
    """Table 1, and the break-even page."""
    for table in step_tables(sources.csv("step_cost", "learned_cost"), sources.csv("step_share")):
        yield "Cost of a step", table
    cell = sources.cells.get("A")
    seconds: dict[str, float] = {}
    faster: dict[str, float] = {}
    tuned: dict[str, str] = {}
    if cell and cell.reference:
        tuned = {arm.optimizer: arm.name for arm in cell.config.arms if arm.tuned and arm.optimizer in BASELINES}
        outcomes = cell.outcomes("accuracy")
        ran = shown_rows(cell.rows, cell.config)
        ran = ran[ran.horizon == PAID_WITH].dropna(subset=["seconds"])
        for optimizer, arm in {OURS: cell.reference, **tuned}.items():
            if len(mine := ran[ran.arm == arm]):
                seconds[optimizer] = float(mine.seconds.median())
        for optimizer, arm in tuned.items():
            if found := speedup_of(outcomes, "accuracy", cell.reference, arm).get(PAID_WITH):
                faster[optimizer] = found[0]
    commands = cell.commands() if cell else ()
    table = break_even(load(PAPER_SPECIALIST), sources.csv("tuning"), seconds, faster, tuned, PAID_WITH, commands)
    yield "Cost of meta-training", table
