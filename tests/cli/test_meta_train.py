"""`l3rs meta-train`: settings from a file and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import fails

from l3rs.cli import main
from l3rs.schedules.find import load


def test_meta_train_names_bad_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "population must be even and at least 2, since candidates come in pairs (got 3)" in fails(
        ["meta-train", "--nes.population", "3", "--out", str(tmp_path)], capsys
    )


def test_meta_train_takes_its_settings_from_a_file_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "name: tiny\ngenerations: 1\nspecialist: false\nsteps: [2, 3]\nvalidation_steps: [2]\nvalidation_tasks: 1\n"
        "finalists: 1\nfinal_tasks: 1\nworkers: 1\nschedule: {embedding: 0}\nnes: {population: 2}\n"
        "task: {classes: 5, batch_size: 8, evaluation_size: 20}\n"
    )
    argv = ["meta-train", "--config", str(tmp_path / "tiny.yaml"), "--nes.seed", "7", "--out", str(tmp_path / "run")]
    main(argv)
    assert "tiny.safetensors: generation" in capsys.readouterr().out
    assert load(tmp_path / "run" / "tiny.safetensors").training["config"]["nes"]["seed"] == 7
    assert "whose run has another nes" in fails([*argv[:-4], "--nes.seed", "8", "--out", str(tmp_path / "run")], capsys)
