"""What a comparison prints."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from l3rs.files import append_rows
from l3rs.finetuning import compare
from l3rs.finetuning.baselines import tuned_learning_rate
from l3rs.finetuning.compare import FinetuneConfig, Results, baseline_steps, finetune
from l3rs.finetuning.runs import FIELDS
from l3rs.run_folder import FolderError
from l3rs.schedules.find import Chosen, load


def test_only_what_baselines_ran_is_said_of_them(tmp_path: Path) -> None:
    config = FinetuneConfig(tasks=1, steps=(10, 100), out=tmp_path)
    rate = tuned_learning_rate("adam-cosine", 10, head=config.head)
    with Results(tmp_path, {}) as results:
        for optimizer, steps, lr, accuracy in (("adam-cosine", 10, rate, 0.5), ("l3rs", 10, 1.0, 0.8), ("l3rs", 100, 1.0, 0.9)):
            row = dict.fromkeys(FIELDS, 0) | {
                "optimizer": optimizer,
                "steps": steps,
                "lr": lr,
                "accuracy": accuracy,
                "task_seed": config.seed,
            }
            append_rows(results.runs_file, [row], FIELDS)
        assert baseline_steps(results, config, 0.8) == (math.inf, 10)


def test_no_interval_of_an_accuracy_goes_past_0_or_1(tmp_path: Path) -> None:
    config = FinetuneConfig(tasks=2, steps=(10,), optimizers=("l3rs",), out=tmp_path)
    for accuracies, interval in (((0.7, 0.95), (0.0, 1.0)), ((0.82, 0.83), (0.761, 0.889)), ((0.825, 0.825), (0.825, 0.825))):
        with Results(tmp_path / str(accuracies[0]), {}) as results:
            for seed, accuracy in enumerate(accuracies):
                given = {"optimizer": "l3rs", "steps": 10, "lr": 1.0, "accuracy": accuracy, "task_seed": config.seed + seed}
                append_rows(results.runs_file, [dict.fromkeys(FIELDS, 0) | given], FIELDS)
            (line,) = compare.summary(results, config).to_dict("records")
            assert (line["low"], line["high"]) == pytest.approx(interval, abs=1e-3)


def test_a_schedules_name_controls_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nothing_more(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "execute_all", nothing_more)
    named = Chosen(replace(load("icons-generalist"), name="mine\x1b[31m"))
    with Results(tmp_path, {}) as results, pytest.raises(KeyboardInterrupt):
        finetune(FinetuneConfig(tasks=1, steps=(1,), out=tmp_path), named, results)
    assert r"the schedule mine\x1b[31m (" in capsys.readouterr().out


def test_a_comparison_that_was_begun_without_l3rs_is_extended_by_it(tmp_path: Path) -> None:
    about = {"network": "0123456789ab", "head": "start", "statistics": "recent"}
    for schedule in ({}, {"schedule": "one 0123456789ab"}, {}):
        with Results(tmp_path, about | schedule):
            pass
    assert json.loads((tmp_path / "about.json").read_text()) == about | {"schedule": "one 0123456789ab"}
    with pytest.raises(FolderError, match="another schedule"):
        Results(tmp_path, about | {"schedule": "other 0123456789ab"})
