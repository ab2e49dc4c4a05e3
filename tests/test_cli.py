"""The command: its help, its errors, and the main job at its smallest."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import random_schedule, small_network

from l3rs.cli import main, parser_of
from l3rs.cli.meta_train import config_of
from l3rs.evaluation.cells import plan
from l3rs.evaluation.sources import read_cell
from l3rs.evaluation.study import Study
from l3rs.finetuning.runs import FIELDS
from l3rs.learned import weights
from l3rs.schedules.find import load, save

ROOT = Path(__file__).parent.parent


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail: exit code 2, one line, no traceback. Gives that line."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


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


def test_truncated_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\x10\x00\x00")
    assert "may be truncated" in fails(["finetune", "--learned", str(path), "--out", str(tmp_path / "o")], capsys)


def test_checkpoint_of_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(random_schedule(small_network()), tmp_path / "other.safetensors")
    said = fails(["finetune", "--learned", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "o")], capsys)
    assert "knows 7 layers by name, but not conv1.weight, bn1.weight, bn1.bias and 107 more" in said


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "no command is called 'finetun'; did you mean finetune? (there are finetune, predict, split, cache, meta-train, info, list)"
        in fails(["finetun"], capsys)
    )


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


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_config_opens_with_its_command_and_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, kind = path.read_text().splitlines()[0], path.parent.name
    settings = yaml.safe_load(path.read_text())
    monkeypatch.syspath_prepend(str(ROOT / "pretrain"))
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    if kind == "meta_train":
        assert f"# l3rs meta-train --config {path.relative_to(ROOT)} " in first
        data = ["--data", "images"] if "--data" in first else []
        config_of(parser_of("meta-train").parse_args(["--config", str(path), *data, "--out", "nowhere"]))
    elif kind == "pretrain":
        from backbone import PretrainConfig

        assert f"# python pretrain/backbone.py --config {path.relative_to(ROOT)} " in first
        assert PretrainConfig.of(**settings, data="images" if "--data" in first else None).workload.from_scratch
    elif kind in ("evaluate", "imagenet"):
        assert f"# python evaluate/run.py --config {path.relative_to(ROOT)} " in first
        config = read_cell(path)
        arms = tuple(arm for arm in config.arms if not (config.rates and arm.tuned))  # their file is made by evaluate/tune.py
        assert plan(replace(config, arms=arms))
    else:
        assert f"# python evaluate/study.py --config {path.relative_to(ROOT)} " in first
        study = Study.read(path)
        configs = [study.config(name, 0) for name in study.names]
        cost = {c.nes.population * c.meta_batch * c.generations for c in configs}
        assert len(cost) == 1
        assert len(set(map(repr, configs))) == len(configs)


FOLDERS = ("pretrain", "evaluate", "datasets")
SCRIPTS = sorted(str(p.relative_to(ROOT)) for d in FOLDERS for p in (ROOT / d).glob("*.py") if "__main__" in p.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_start_in_a_process_of_their_own(script: str) -> None:
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_start(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stop.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["finetune", "split", "cache", "meta-train", "info"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert command in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert {"info": "schedule", "cache": "--plan"}.get(command, "--out") in capsys.readouterr().out


def test_finetune_writes_rows_and_a_picture_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["finetune", "--tasks", "2", "--steps", "2", "4", "--optimizers", "l3rs", "sgd-cosine", "--workers", "1", "--out", str(tmp_path)]
    main(argv)
    out = capsys.readouterr().out
    assert "8 runs on 1 processes" in out
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
    assert (tmp_path / "runs.csv").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert "--out must be a folder that can be written" in fails(["finetune", "--out", str(tmp_path / "o")], capsys)


def test_info_counts_the_meta_parameters_of_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    from l3rs.schedules.variants import TABLE_2, TABLE_3, TABLE_4

    main(["info"])
    out = capsys.readouterr().out
    assert all(name in out for name in (*TABLE_2, *TABLE_3, *TABLE_4))
    assert f"{len(load('icons-resnet34').theta):,} meta-parameters, knows 110 layers by name" in out
    assert "kernel" in out


def test_info_describes_a_schedule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["info", "icons-resnet34"])
    out = capsys.readouterr().out
    assert "directions: ('sgd', 'adam')" in out
    assert "meta-training, generations: 40" in out
    save(random_schedule(small_network()), tmp_path / "mine.safetensors")
    main(["info", str(tmp_path / "mine.safetensors")])
    assert "layers: 7 by name, 0.weight to 6.bias" in capsys.readouterr().out
    assert "nonsense is not a file" in fails(["info", "nonsense"], capsys)


def test_what_a_schedule_says_of_itself_is_safe_on_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    schedule = replace(random_schedule(small_network()), name="\x1b[2Jmine", training={"by": "\x1b]0;owned\x07"})
    schedule.write(tmp_path / "s.safetensors")
    main(["info", str(tmp_path / "s.safetensors")])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[2Jmine: " in out
    assert r"meta-training, by: \x1b]0;owned\x07" in out


def test_info_describes_the_weights_of_another_learned_optimizer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights.starting_weights("celo2-base", 0.03, "mine", seed=0).write(tmp_path / "mine.safetensors")
    main(["info", str(tmp_path / "mine.safetensors")])
    assert capsys.readouterr().out == "mine: 347 meta-parameters\n  optimizer: celo2-base\n  lr: 0.03\n"
