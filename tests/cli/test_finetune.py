"""`l3rs finetune` without --data: wrong values in one line, and the main job at its smallest."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import fails, random_schedule, small_network

from l3rs.cli import main
from l3rs.finetuning.runs import FIELDS
from l3rs.schedules.find import save


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--steps", "0"], "--steps must be one or more whole numbers of at least 1 (got 0)"),
        (["--steps", "10", "-3"], "-3"),
        (["--steps", "ten"], "ten"),
        (["--tasks", "0"], "--tasks must be a whole number of at least 1 (got 0)"),
        (["--tasks", "1.5"], "1.5"),
        (["--optimizers", "l3rs", "adamw"], "--optimizers must be one or more of l3rs, adam, adam-cosine, adam-cosine-head10, sgd-cosine"),
        (["--learned", "nowhere.safetensors"], "nowhere.safetensors is not a file"),
        (["--seed", "-1"], "--seed must be a whole number of at least 0 (got -1)"),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_values_are_named(argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said in fails(["finetune", *argv, *(() if "--out" in argv else ("--out", str(tmp_path / "o")))], capsys)
    assert not (tmp_path / "o" / "runs.csv").exists()


def test_unwritable_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert "--out must be a folder that can be written" in fails(["finetune", "--out", str(tmp_path / "file" / "out")], capsys)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert "--out must be a folder that can be written" in fails(["finetune", "--out", str(tmp_path / "o")], capsys)


def test_truncated_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\x10\x00\x00")
    assert "may be truncated" in fails(["finetune", "--learned", str(path), "--out", str(tmp_path / "o")], capsys)


def test_checkpoint_of_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(random_schedule(small_network()), tmp_path / "other.safetensors")
    said = fails(["finetune", "--learned", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "o")], capsys)
    assert "knows 7 layers by name, but not conv1.weight, bn1.weight, bn1.bias and 107 more" in said


def test_finetune_writes_rows_and_a_picture_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["finetune", "--tasks", "2", "--steps", "2", "4", "--optimizers", "l3rs", "sgd-cosine", "--workers", "1", "--out", str(tmp_path)]
    main(argv)
    out = capsys.readouterr().out
    assert "8 runs on 1 processes" in out
    assert "Head starts: 8 fitted, from 128 to 256 images; on held-out ones 0." in out
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert tuple(rows.columns) == FIELDS
    assert len(rows) == 8
    assert rows.accuracy.between(0, 1).all()
    assert (tmp_path / "finetune.png").stat().st_size > 5000

    before = (tmp_path / "runs.csv").read_bytes()
    main([*argv, "--tasks", "1"])
    assert "4 are in" in capsys.readouterr().out
    assert (tmp_path / "runs.csv").read_bytes() == before

    other = [*argv, "--learned", "icons-generalist"]
    assert "whose run has another schedule" in fails(other, capsys)
    assert "whose run has another head" in fails([*argv, "--head", "random"], capsys)
    assert (tmp_path / "runs.csv").read_bytes() == before
