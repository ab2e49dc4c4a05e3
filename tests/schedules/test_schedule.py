"""Schedules on disk: what is written is read back, and everything else is refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import random_schedule, small_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from l3rs.cli import main
from l3rs.controller.config import ANY_NETWORK
from l3rs.controller.initial import initial_theta
from l3rs.schedules.find import CHECKPOINTS, GENERALIST, PAPER_SPECIALIST, SHIPPED, SHIPPED_WEIGHTS, START, load, save
from l3rs.schedules.learned import identity, wrong_tool
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError, sealed, sealed_text

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schedule.safetensors"
    save(random_schedule(small_network()), path)
    return path


def rewrite(path: Path, **changes: object) -> None:
    with safe_open(path, framework="pt") as f:
        about = json.loads(f.metadata()["l3rs"])
    tensors = load_file(path)
    save_file(tensors, path, metadata=sealed(about | changes, tensors))


def test_a_file_without_a_checksum_is_refused(file: Path) -> None:
    with safe_open(file, framework="pt") as f:
        about = f.metadata()["l3rs"]
    save_file(load_file(file), file, metadata={"l3rs": about})
    with pytest.raises(CheckpointError, match="is damaged"):
        load(file)


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


def claiming(path: Path, shape: list[int], about: dict[str, object]) -> Path:
    """A file of one tensor, which is a hole: it takes no room on the disk."""
    size = 4 * math.prod(shape)
    header = {"__metadata__": {"l3rs": json.dumps(about)}, "w1": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + size)
    return path


def test_a_file_that_claims_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    about = {"schema": 1, "name": "huge", "config": {"hidden": [4096, 4096]}, "features": [], "layers": []}
    huge = claiming(tmp_path / "huge.safetensors", [2**33], about)  # 32 GiB
    with pytest.raises(CheckpointError, match=r"has 34,359,738,[0-9]+ bytes, and a learned schedule at most 1,073,741,824: it is"):
        load(huge)
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    (tmp_path / "short.safetensors").write_bytes(claiming(tmp_path / "x", [2**10], about).read_bytes()[:-1])
    for name in ("header", "short"):
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            load(tmp_path / f"{name}.safetensors")


def test_a_config_that_names_huge_sizes_is_refused_before_they_are_made(file: Path) -> None:
    with safe_open(file, framework="pt") as f:
        config = json.loads(f.metadata()["l3rs"])["config"]
    for change in ({"hidden": [10**9, 10**9]}, {"embedding": 10**12}, {"time_points": 10**15}):
        rewrite(file, config=config | change)
        with pytest.raises(CheckpointError, match="at most 4096"):
            load(file)


@pytest.mark.parametrize("depth", [60, 900, 100_000])
def test_metadata_that_are_nested_deep_are_one_line(depth: int, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with safe_open(file, framework="pt") as f:
        about = f.metadata()["l3rs"]
    for nested in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        lie = about.replace('"training": {}', f'"training": {{"x": {nested}}}')
        assert lie != about
        tensors = load_file(file)
        save_file(tensors, file, metadata=sealed_text(lie, tensors))
        with pytest.raises(SystemExit) as stop:
            main(["info", str(file)])
        assert stop.value.code == 2
        assert "has l3rs metadata that this version cannot read" in capsys.readouterr().err.splitlines()[-1]


def test_no_such_file() -> None:
    with pytest.raises(CheckpointError, match=f"one of icons-resnet34, {GENERALIST}"):
        load("icons-resnet50")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_schedules_say_how_they_were_made(name: str) -> None:
    schedule = load(name)
    assert schedule.name == name
    assert len(schedule.layers) == (110 if schedule.config.by_layer else 0)
    if name == START:
        assert schedule.training == {"generation": 0}
    else:
        assert schedule.training["config"]["name"] == name
        assert 1 <= schedule.training["config"]["steps"][0] < schedule.training["config"]["steps"][1]
        assert schedule.training["seconds"] > 0
        assert (CHECKPOINTS / f"{name}.csv").is_file()
        assert json.loads((CHECKPOINTS / f"{name}.json").read_text()) == schedule.training["config"]


def test_what_is_shipped_by_name_is_there_and_nothing_else() -> None:
    assert {file.stem for file in CHECKPOINTS.glob("*.safetensors")} == {*SHIPPED, *SHIPPED_WEIGHTS}


def test_the_start_is_where_meta_training_starts_from() -> None:
    start = load(START)
    assert start.config == ANY_NETWORK
    assert torch.equal(start.theta, initial_theta(ANY_NETWORK, (), seed=0))


def test_the_papers_specialists_are_the_very_ones_that_the_committed_rows_are_of() -> None:
    """Their name changed; their meta-parameters did not."""
    rows = pd.read_parquet(ROOT / "evaluate" / "results" / "A" / "rows.parquet")
    for name in (PAPER_SPECIALIST, f"{PAPER_SPECIALIST}-seed1", f"{PAPER_SPECIALIST}-seed2"):
        assert identity(load(name)) in set(rows.learned)
    todays = rows.learned.str.match(r"icons-resnet34(-seed\d)? ")
    assert todays.any()
    assert set(rows[todays]["head"]) == {"start"}


def test_only_what_was_meta_trained_on_pretrained_networks_is_the_wrong_tool_for_random_weights() -> None:
    schedule = load(GENERALIST)
    assert wrong_tool(schedule).startswith(f"{GENERALIST} was meta-trained to fine-tune pretrained networks: from random weights it is")
    assert wrong_tool(replace(schedule, training={"config": {"from_scratch": True}})) == ""
    assert wrong_tool(replace(schedule, training={})) == ""  # nobody knows
