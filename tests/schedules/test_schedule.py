"""Schedules on disk: what is written is read back, and everything else is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import random_schedule, small_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from l3rs.controller.features import feature_names
from l3rs.schedules.find import GENERALIST, SHIPPED, load, save
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schedule.safetensors"
    save(random_schedule(small_network()), path)
    return path


def rewrite(path: Path, **changes: object) -> None:
    with safe_open(path, framework="pt") as f:
        about = json.loads(f.metadata()["l3rs"])
    save_file(load_file(path), path, metadata={"l3rs": json.dumps(about | changes)})


def test_round_trip(file: Path) -> None:
    before, after = random_schedule(small_network()), LearnedSchedule.read(file)
    assert torch.equal(before.theta, after.theta)
    assert (before.config, before.layers, before.name) == (after.config, after.layers, after.name)


def test_truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="may be truncated"):
        LearnedSchedule.read(file)


def test_another_schema(file: Path) -> None:
    rewrite(file, schema=99)
    with pytest.raises(CheckpointError, match="schema version 99; this version of l3rs reads 1"):
        LearnedSchedule.read(file)


def test_other_features(file: Path) -> None:
    rewrite(file, features=["ema/log_grad_norm/0.5"])
    with pytest.raises(CheckpointError, match="other features"):
        LearnedSchedule.read(file)


def test_another_config(file: Path) -> None:
    with safe_open(file, framework="pt") as f:
        config = json.loads(f.metadata()["l3rs"])["config"]
    rewrite(file, config=config | {"hidden": [8, 8]})
    with pytest.raises(CheckpointError, match=r"holds .* of shape"):
        LearnedSchedule.read(file)


def test_some_other_safetensors(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no l3rs metadata"):
        LearnedSchedule.read(tmp_path / "x.safetensors")


def test_no_such_file() -> None:
    with pytest.raises(CheckpointError, match="one of icons-resnet34, icons-generalist"):
        load("icons-resnet50")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_schedules_say_how_they_were_made(name: str) -> None:
    schedule = load(name)
    assert schedule.name == name
    assert len(schedule.layers) == (0 if name == GENERALIST else 110)
    assert "loss" in {f.split("/")[1] for f in feature_names(schedule.config) if f.startswith("ema/")}
    assert schedule.training["config"]["steps"] == [10, 100]
    assert schedule.training["seconds"] > 0
