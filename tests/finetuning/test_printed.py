"""What a comparison prints."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from l3rs.files import append_rows
from l3rs.finetuning import compare
from l3rs.finetuning.baselines import tuned_learning_rate
from l3rs.finetuning.compare import FinetuneConfig, Results, baseline_steps, finetune
from l3rs.finetuning.runs import FIELDS
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


def test_a_schedules_name_controls_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nothing_more(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "execute_all", nothing_more)
    named = Chosen(replace(load("icons-generalist"), name="mine\x1b[31m"))
    with Results(tmp_path, {}) as results, pytest.raises(KeyboardInterrupt):
        finetune(FinetuneConfig(tasks=1, steps=(1,), out=tmp_path), named, results)
    assert r"the schedule mine\x1b[31m (" in capsys.readouterr().out
