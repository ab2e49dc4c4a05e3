"""The workshop that puts a run's schedule among those that are shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import random_schedule, small_network

from l3rs.schedules.find import START, load
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError

ROOT = Path(__file__).parent.parent


def made() -> LearnedSchedule:
    """A schedule that knows its network by its sizes, as meta-training writes it."""
    learned = random_schedule(small_network())
    return replace(learned, sizes=(0.0,) * len(learned.layers))


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pretrain/ship.py, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "pretrain"))
    import ship

    return ship


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a run that is finished, but for its schedule: a validated one of generation 30."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"name": "mine", "data": "/home/me", "zoo": {"file": "/home/me/zoo.yaml"}, "generations": 40}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "curve.csv").write_text("generation,seconds\n0,0\n29,1.5\n30,2.5\n31,8\n")
    (folder / "curve.png").write_bytes(b"a picture")
    made().write(folder / "theta-00030.safetensors")
    return folder


def test_a_finished_run_is_shipped_without_folders_of_this_machine(ship: ModuleType, run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    learned = replace(made(), name="mine", training={"config": config, "generation": 40})
    learned.write(run / "mine.safetensors")
    files = ship.ship(run, tmp_path, "icons-mine")
    assert [file.name for file in files] == [f"icons-mine.{kind}" for kind in ("safetensors", "json", "csv", "png")]
    found = LearnedSchedule.read(files[0])
    assert torch.equal(found.theta, learned.theta)
    assert found.sizes == learned.sizes
    assert found.name == "icons-mine"
    assert found.training == {"config": {"name": "icons-mine", "zoo": {"file": "zoo.yaml"}, "generations": 40}, "generation": 40}
    assert json.loads(files[1].read_text()) == found.training["config"]
    assert files[2].read_bytes() == (run / "curve.csv").read_bytes()
    assert files[3].read_bytes() == b"a picture"


def test_a_run_without_a_name_is_shipped_under_the_one_that_it_made_up(ship: ModuleType, run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text()) | {"name": ""}
    (run / "config.json").write_text(json.dumps(config))
    (run / "state-000030.safetensors").write_bytes(b"of the search")
    with pytest.raises(CheckpointError, match="has no schedule: it is not finished"):
        ship.of_run(run)
    replace(made(), name="icons-resnet18", training={"config": config, "generation": 40}).write(run / "icons-resnet18.safetensors")
    assert ship.ship(run, tmp_path)[0].name == "icons-resnet18.safetensors"


def test_a_run_that_goes_on_is_not_shipped(
    ship: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        ([str(run)], "run has no mine.safetensors: it is not finished"),
        ([str(tmp_path)], "has no config.json: it is no run of l3rs meta-train"),
    ):
        monkeypatch.setattr("sys.argv", ["ship.py", *words, "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as stop:
            ship.main()
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_the_shipped_start_is_what_the_workshop_makes(ship: ModuleType) -> None:
    made, shipped = ship.start(), load(START)
    assert torch.equal(made.theta, shipped.theta)
    assert (made.config, made.layers, made.name, made.training) == (shipped.config, shipped.layers, shipped.name, shipped.training)
