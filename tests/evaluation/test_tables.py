"""Tables from rows that were made up, so that every number in them is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from l3rs.evaluation.cell_tables import differences, means, missing_arms, outcomes, over_seeds, summarize
from l3rs.evaluation.cells import EvaluationConfig
from l3rs.evaluation.pages import table_markdown
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import CELL_FIELDS

FAST, SLOW, SEEDS = Arm("fast", "adam", 0.1), Arm("slow", "adam", 0.01, horizons=(10,)), Arm("L3RS", "l3rs", learned="a.safetensors")
CONFIG = EvaluationConfig("cell", (SEEDS, Arm("L3RS", "l3rs", learned="b.safetensors", meta_seed=1), FAST, SLOW), {10: 3, 25: 3})


def rows(*entries: tuple[str, int, int, float], **changes: Any) -> list[dict[str, Any]]:
    """From (arm, horizon, task, accuracy)."""
    rates = {"fast": 0.1, "slow": 0.01, "L3RS": 1.0}
    return [
        {
            "cell": "cell",
            "arm": arm,
            "lr": rates[arm],
            "horizon": h,
            "steps": h,
            "task_seed": t,
            "accuracy": a,
            "loss": 1 - a,
            "meta_seed": 0,
            "learned": "",
            "head": "random",
        }
        | changes
        for arm, h, t, a in entries
    ]


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part], columns=list(CELL_FIELDS))


def test_an_entry_is_mean_and_standard_deviation_over_tasks() -> None:
    found = summarize(outcomes(table(rows(("fast", 10, 0, 0.2), ("fast", 10, 1, 0.4), ("fast", 10, 2, 0.6))), CONFIG, "accuracy"))
    assert set(found) == {("fast", 10)}
    entry = found["fast", 10]
    assert (entry.mean, entry.std, entry.tasks) == (pytest.approx(0.4), pytest.approx(0.2), 3)


def test_a_run_that_diverged_counts_as_a_loss_and_one_that_failed_as_missing() -> None:
    there = table(rows(("fast", 10, 0, 0.5), ("fast", 10, 1, math.nan)), rows(("fast", 10, 2, math.nan), error="RuntimeError: no"))
    accuracy, loss = (summarize(outcomes(there, CONFIG, measure))["fast", 10] for measure in ("accuracy", "loss"))
    assert (accuracy.mean, accuracy.tasks) == (0.25, 2)
    assert (loss.mean, loss.tasks) == (math.inf, 2)
    assert math.isnan(loss.std)


def test_meta_training_seeds_are_averaged_task_by_task() -> None:
    there = table(rows(("L3RS", 10, 0, 0.4)), rows(("L3RS", 10, 0, 0.6), meta_seed=1))
    assert outcomes(there, CONFIG, "accuracy")["L3RS", 10].to_list() == [pytest.approx(0.5)]


def test_the_spread_between_seeds_and_how_far_their_mean_is_ahead() -> None:
    arms = (Arm("L3RS", "l3rs", learned="a"), Arm("L3RS, seed 1", "l3rs", learned="b", horizons=(10, 25)), FAST)
    config = EvaluationConfig("cell", arms, {10: 2, 25: 2, 50: 2})
    runs = [(arm, 10, t, a) for arm, values in (("L3RS", (0.5, 0.7)), ("fast", (0.4, 0.5))) for t, a in enumerate(values)]
    other = [{**row, "arm": "L3RS, seed 1"} for row in rows(("L3RS", 10, 0, 0.6), ("L3RS", 10, 1, 0.8))]
    found = over_seeds(config, outcomes(table(rows(*runs), other), config, "accuracy"), ["L3RS", "L3RS, seed 1"])
    assert found["10 steps"].to_list() == ["0.600", "0.700", "0.650", "7.1", "+20.0 (-43.5 to 83.5), n=2", "fast"]
    assert set(found["25 steps"]) == {"missing"}
    assert list(found) == ["10 steps", "25 steps"]  # seed 1 is not planned at 50


def test_rows_of_other_cells_evaluations_on_the_way_and_other_rates_are_left_out() -> None:
    other = [rows(("fast", 10, 0, 0.9), **changes) for changes in ({"cell": "B"}, {"steps": 5}, {"lr": 0.3})]
    assert outcomes(table(*other, rows(("fast", 10, 0, 0.1))), CONFIG, "accuracy")["fast", 10].to_list() == [0.1]


def test_of_weights_that_are_not_there_the_newest_rows_are_shown_and_not_a_mixture() -> None:
    old = rows(*(("L3RS", 10, t, 0.1) for t in range(3)), learned="a 1", date="2026-01-02")
    new = rows(("L3RS", 10, 1, 0.9), learned="a 2", date="2026-01-03")
    seed = rows(("L3RS", 10, 1, 0.5), learned="b 1", meta_seed=1, date="2026-01-01")
    for there in (table(old, new, seed), table(seed, new, old)):
        assert outcomes(there, CONFIG, "accuracy")["L3RS", 10].to_dict() == {1: pytest.approx(0.7)}


def test_differences_are_paired_and_positive_where_the_reference_is_better() -> None:
    there = table(
        rows(*(("L3RS", 10, t, a) for t, a in enumerate((0.5, 0.7, 0.9))), *(("fast", 10, t, a) for t, a in ((0, 0.4), (1, 0.7))))
    )
    for measure in ("accuracy", "loss"):
        d = differences(outcomes(there, CONFIG, measure), measure, "L3RS")
        assert set(d) == {("fast", 10)}
        assert d["fast", 10].mean == pytest.approx(0.05)
        assert d["fast", 10].probability == 0.75
        assert d["fast", 10].tasks == 2
        assert d["fast", 10].low <= d["fast", 10].mean <= d["fast", 10].high


def test_the_table_shows_what_is_missing() -> None:
    there = table(rows(*(("fast", 10, t, 0.5) for t in range(3)), ("slow", 10, 0, 0.25)))
    found = outcomes(there, CONFIG, "accuracy")
    assert table_markdown(means(CONFIG, found)).splitlines() == [
        "| optimizer | 10 steps | 25 steps |",
        "| --- | --- | --- |",
        "| L3RS | missing | missing |",
        "| fast | 0.500 ± 0.000 | missing |",
        "| slow | 0.250 (n=1) |  |",
    ]
    assert missing_arms(CONFIG, found) == ["L3RS", "fast", "slow"]
    named = replace(CONFIG, arms=tuple(Arm("one name", "adam-cosine", 0.1, horizons=(h,)) for h in (10, 20)), horizons={10: 1, 20: 1})
    made = pd.DataFrame({("one name", 10): [float("nan")], ("one name", 20): [0.5]})
    assert missing_arms(named, made) == ["one name"]  # the last of them has its row


def test_tuned_learning_rates_are_shown() -> None:
    config = EvaluationConfig("cell", (Arm("tuned", "adam-cosine"),), {100: 1})
    there = table([{**rows(("fast", 100, 0, 0.5))[0], "arm": "tuned", "lr": 0.003}])
    assert means(config, outcomes(there, config, "accuracy")).loc["tuned"].to_list() == ["0.500 (lr 0.003)"]
