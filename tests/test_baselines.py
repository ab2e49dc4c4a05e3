"""The baselines and their tuned learning rates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from l3rs.baselines import BASELINES, tuned_learning_rate, tuned_learning_rates
from l3rs.networks import resnet34

ROWS = Path(__file__).parent.parent / "evaluate" / "results" / "tuning.csv"


def test_the_nearest_horizon_in_log_steps_is_taken() -> None:
    chosen = tuned_learning_rates()["adam-cosine"]
    assert tuned_learning_rate("adam-cosine", 25) == chosen[25]
    assert tuned_learning_rate("adam-cosine", 1) == chosen[10]
    assert tuned_learning_rate("adam-cosine", 1000) == chosen[100]
    with pytest.raises(ValueError, match="'adamw'; there are adam, adam-cosine"):
        tuned_learning_rate("adamw", 10)


@pytest.mark.parametrize("name", list(BASELINES))
def test_chosen_values_are_the_best_of_the_rows_and_not_at_an_edge(name: str) -> None:
    rows = pd.read_csv(ROWS)
    for steps, lr in tuned_learning_rates()[name].items():
        tried = rows[(rows.optimizer == name) & (rows.steps == steps)]
        means = tried.assign(accuracy=tried.accuracy.fillna(0)).groupby("lr").accuracy.mean()
        assert means[lr] == means.max()
        assert means.index.min() < lr < means.index.max()


def test_schedules_end_where_they_should() -> None:
    network = resnet34(width=4, in_chans=1, num_classes=5)
    for name, recipe in BASELINES.items():
        optimizer, scheduler = recipe(network, 0.1, 10)
        head = [g["lr"] for g in optimizer.param_groups]
        assert sum(len(g["params"]) for g in optimizer.param_groups) == 110
        assert head == ([0.1, 1.0] if name == "adam-cosine-head10" else [0.1])
        for _ in range(10):
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        end = optimizer.param_groups[0]["lr"]
        assert end == 0.1 if name == "adam" else end == pytest.approx(0, abs=1e-9)
