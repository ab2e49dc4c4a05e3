"""What `l3rs info` and `l3rs list` show of files of others cannot change the terminal that shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import random_schedule, small_network

from l3rs import info, save
from l3rs.cli import main

HOSTILE = "a\x1b[2J\x1b]0;b\x07 \x9b1m \r\n\t\u202e\ud800é"


def test_info_shows_signs_that_move_a_terminal_as_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = random_schedule(small_network())
    training = {HOSTILE: HOSTILE, "config": {HOSTILE: [HOSTILE]}, "generation": HOSTILE}
    save(replace(schedule, name=HOSTILE, layers=(HOSTILE, *schedule.layers[1:]), training=training), tmp_path / "a.safetensors")
    main(["info", str(tmp_path / "a.safetensors")])
    out = capsys.readouterr().out
    assert all(c.isprintable() for line in out.split("\n") for c in line)
    assert out.splitlines()[0] == r"a\x1b[2J\x1b]0;b\x07 \x9b1m \r\n\t\u202e\ud800é: 2,742 meta-parameters"
    assert len(out.splitlines()) == 1 + len(schedule.settings()) + 2  # no value breaks a line


def test_the_list_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = random_schedule(small_network())
    training = {"config": {"model": HOSTILE}, "generation": HOSTILE}
    save(replace(schedule, training=training), tmp_path / "a.safetensors")
    monkeypatch.setattr(info, "cached", lambda: [("me/mine", tmp_path / "a.safetensors")])
    main(["list"])
    out = capsys.readouterr().out
    assert all(c.isprintable() for line in out.split("\n") for c in line)
    assert r"a\x1b[2J" in next(line for line in out.splitlines() if line.startswith("  me/mine"))
