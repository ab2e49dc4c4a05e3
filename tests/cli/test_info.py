"""`l3rs info` and `l3rs list`: what they say, and that no file of others can change the terminal that shows it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import fails, random_schedule, small_network

from l3rs import load, save
from l3rs.cli import list as listing
from l3rs.cli import main
from l3rs.learned import elements, weights
from l3rs.optimizer.kernels import native
from l3rs.schedules.variants import TABLE_2, TABLE_3, TABLE_4

HOSTILE = "a\x1b[2J\x1b]0;b\x07 \x9b1m \r\n\t\u202e\ud800é"


def test_info_counts_the_meta_parameters_of_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    out = capsys.readouterr().out
    assert all(name in out for name in (*TABLE_2, *TABLE_3, *TABLE_4))
    assert f"{len(load('icons-resnet34-paper').theta):,} meta-parameters, knows 110 layers by name" in out
    assert ("Step on CPU: native kernel, " in out) == (native.library() is not None)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_where_there_is_a_compiler_the_kernels_are_built() -> None:
    """An installation goes on without them, and tests of them are then passed over."""
    assert native.library() is not None
    assert elements.library() is not None


def test_info_describes_a_schedule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["info", "icons-resnet34-paper"])
    out = capsys.readouterr().out
    assert "directions: ('sgd', 'adam')" in out
    assert "sizes: of 108 layers, by which auto knows their network" in out
    assert "meta-training, generations: 40" in out
    save(random_schedule(small_network()), tmp_path / "mine.safetensors")
    main(["info", str(tmp_path / "mine.safetensors")])
    out = capsys.readouterr().out
    assert "layers: 7 by name, 0.weight to 6.bias" in out
    assert "sizes: not kept, so that auto never takes it" in out
    assert "nonsense is not a file; a learned schedule is one of" in fails(["info", "nonsense"], capsys)
    assert "generallist is not a file; did you mean generalist? a learned schedule is one of" in fails(["info", "generallist"], capsys)


def test_info_describes_the_weights_of_another_learned_optimizer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights.starting_weights("celo2-base", 0.03, "mine", seed=0).write(tmp_path / "mine.safetensors")
    main(["info", str(tmp_path / "mine.safetensors")])
    assert capsys.readouterr().out == "mine: 347 meta-parameters\n  optimizer: celo2-base\n  lr: 0.03\n"


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
    monkeypatch.setattr(listing, "cached", lambda: [("me/mine", tmp_path / "a.safetensors")])
    main(["list"])
    out = capsys.readouterr().out
    assert all(c.isprintable() for line in out.split("\n") for c in line)
    assert r"a\x1b[2J" in next(line for line in out.splitlines() if line.startswith("  me/mine"))
