"""The workshops: every config opens with its command and is valid, and every script starts."""

from __future__ import annotations

import contextlib
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from l3rs.cli import parser_of
from l3rs.cli.meta_train import config_of
from l3rs.evaluation.cells import plan
from l3rs.evaluation.sources import read_cells
from l3rs.evaluation.study import Study
from l3rs.finetuning.zoo import read_zoo
from l3rs.meta.config import MetaTrainConfig

ROOT = Path(__file__).parent.parent
FOLDERS = ("pretrain", "evaluate", "datasets")
SCRIPTS = sorted(str(p.relative_to(ROOT)) for d in FOLDERS for p in (ROOT / d).glob("*.py") if "__main__" in p.read_text())


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
    elif path.name == "zoo.yaml":
        assert f"# python pretrain/{path.stem}.py " in first
        assert any(network.held_out for network in read_zoo(path, "folder").values())
    elif kind in ("pretrain", "zoo"):
        from backbone import PretrainConfig

        assert f"# python pretrain/backbone.py --config {path.relative_to(ROOT)} " in first
        assert PretrainConfig.of(**settings, data="images" if "--data" in first else None).workload.from_scratch
    elif kind in ("evaluate", "imagenet"):
        assert f"# python evaluate/run.py --config {path.relative_to(ROOT)} " in first
        for config in read_cells(path).values():
            arms = tuple(arm for arm in config.arms if not (config.rates and arm.tuned))  # their file is made by evaluate/tune.py
            assert plan(replace(config, arms=arms))
    else:
        assert f"# python evaluate/study.py --config {path.relative_to(ROOT)} " in first
        study = Study.read(path)
        configs = [study.config(name, 0) for name in study.names]
        if {c.search for c in configs} == {"nes"}:
            assert len({c.nes.population * c.meta_batch * c.generations for c in configs}) == 1
        else:
            cost = [passes(c) for c in configs]
            assert max(cost) < 1.1 * min(cost)
        assert len(set(map(repr, configs))) == len(configs)


def passes(c: MetaTrainConfig) -> float:
    """What meta-training costs, in steps of evolution's candidates: a meta-gradient's step takes 5.6 as long, and its ends 22."""
    low, high = c.steps
    steps = (high - low) / math.log(high / low)  # the mean of log-uniform lengths
    descended = {"nes": 0, "gradient": c.generations, "both": round(c.gradient.share * c.generations)}[c.search]
    return c.meta_batch * (descended * (5.6 * steps + 22) + (c.generations - descended) * c.nes.population * steps)


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate/average.py --steps 0", "argument --steps: must be a whole number of at least 1 (got 0)"),
        ("evaluate/average.py --learned nosuch", "argument --learned: nosuch is not a file"),
        ("evaluate/ceiling.py --tasks x", "argument --tasks: must be a whole number of at least 1 (got x)"),
        ("evaluate/ceiling.py --learned start start", "schedules of different names, by which rows are told apart (got start twice)"),
        ("evaluate/guard.py --lr -1", "--lr must be finite numbers of at least 0 (got -1.0)"),
        ("evaluate/meta_plan.py --images-per-second 0", "--images-per-second must be positive and finite (got 0.0)"),
        ("evaluate/meta_plan.py --images-per-second 9 --config nowhere.yaml", "--config must be a file (got nowhere.yaml)"),
        ("evaluate/schedulers.py --tasks 0", "argument --tasks: must be a whole number of at least 1 (got 0)"),
        ("evaluate/weight_average.py --others 0", "argument --others: must be a whole number of at least 1 (got 0)"),
        ("datasets/export.py icons --out x --classes 0", "--classes must be at least 1 (got 0)"),
        (f"datasets/export.py icons --classes 1 --out {__file__}", "Not a directory"),
        (f"datasets/efficientnet_lite.py --out {__file__}", f"--out must be a folder that can be written (got {__file__}: File exists)"),
        ("datasets/imagenet.py --seed -1 --out .", "non-negative"),
        (f"datasets/imagenet.py --seed 7 --out {__file__}", "Not a directory"),
        ("datasets/places.py --categories nowhere", "nowhere is not there"),
    ],
)
def test_wrong_values_end_in_one_line(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script, *rest = words.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setattr(sys, "argv", [script, *rest])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "said"), [("icons_resnet34_paper", "a run of 39 steps"), ("icons_resnet34", "the plan is of evolution strategies")]
)
def test_the_plan_is_of_the_configs_own_runs(
    config: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of log-uniform lengths from 10 to 100 the mean is 39; and a meta-gradient has no candidates."""
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    file = str(ROOT / "configs" / "meta_train" / f"{config}.yaml")
    monkeypatch.setattr(sys, "argv", ["meta_plan.py", "--images-per-second", "2000", "--config", file])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / "evaluate" / "meta_plan.py"), run_name="__main__")
    assert said in "".join(capsys.readouterr())
