"""Pictures that several rooms draw."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from l3rs import plots


@pytest.mark.parametrize("recorded", [True, False])
def test_runs_without_a_curve_are_said_to_have_none(recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where longer ones were made before, in the same folder, the longest of now have none."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    ends = {"accuracy": 0.8, "low": 0.7, "high": 0.9, "loss": 0.5, "lr": 1.0}
    table = pd.DataFrame([{"steps": steps, "optimizer": name, **ends} for steps in (10, 25) for name in ("l3rs", "adam")])
    along = [{"optimizer": name, "lr": 1.0, "horizon": 25, "steps": 25, "task_seed": 0, "accuracy": 0.8} for name in ("l3rs", "adam")]
    curves = pd.DataFrame(along if recorded else [], columns=list(along[0]))
    plots.plot_finetune(curves, table, tmp_path / "finetune.png")
    left, right = drawn[0].axes
    assert [text.get_text().startswith("not recorded") for text in left.texts] == ([] if recorded else [True])
    assert not list(right.texts)
