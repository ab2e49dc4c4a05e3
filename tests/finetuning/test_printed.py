"""What a comparison prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from l3rs.finetuning import compare
from l3rs.finetuning.compare import FinetuneConfig, Results, finetune
from l3rs.schedules.find import Chosen, load


def test_a_schedules_name_controls_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nothing_more(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "execute_all", nothing_more)
    named = Chosen(replace(load("icons-generalist"), name="mine\x1b[31m"))
    with Results(tmp_path, {}) as results, pytest.raises(KeyboardInterrupt):
        finetune(FinetuneConfig(tasks=1, steps=(1,), out=tmp_path), named, results)
    assert r"the schedule mine\x1b[31m (" in capsys.readouterr().out
