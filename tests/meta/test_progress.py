"""What shows how a run goes: the curve, its picture, TensorBoard's events, and the bar."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pandas as pd
import pytest
from small_runs import quick
from tensorboardX.proto.event_pb2 import Event, SessionLog

from l3rs.meta.folder import CURVE
from l3rs.meta.train import meta_train


def events(file: Path) -> list[Event]:
    """Those in a file of TensorBoard's: length, its checksum, the event, its checksum."""
    data, found, at = file.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return found


def test_a_run_leaves_its_curve_its_picture_and_its_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta_train(quick(4), tmp_path)
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert tuple(curve.columns) == CURVE
    assert curve.generation.tolist() == [0, 1, 2, 3, 4]
    validation = ["validation_accuracy", "validation_loss"]
    assert curve[validation].notna().all(axis=1).tolist() == [True, False, False, True, True]
    trained = curve.drop(columns=validation).set_index("generation").drop(index=0)
    assert trained.notna().all(axis=None)
    assert trained.steps.isin([2, 3]).all()
    assert (trained.best_loss <= trained.mean_loss).all()
    assert (trained.drop(columns=["diverged", "failed"]) > 0).all(axis=None)
    assert trained.sigma.tolist() == pytest.approx([0.1 * 0.5 ** (g / 60) for g in range(4)])
    assert trained.lr.tolist() == pytest.approx([0.05 * 0.5 ** (g / 60) for g in range(4)])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

    (file,) = (tmp_path / "tensorboard").iterdir()
    scalars = {(e.step, v.tag): v.simple_value for e in events(file) for v in e.summary.value}
    for name in set(CURVE) - {"generation", "steps"}:
        assert {step: value for (step, tag), value in scalars.items() if tag == name} == pytest.approx(
            curve.set_index("generation")[name].dropna().to_dict()
        )

    bars = capsys.readouterr().err.strip().split("\r")
    assert "choosing: 100%" in bars[-1]
    last = [bar for bar in bars if "choosing" not in bar][-1]
    assert "4/4" in last
    for part in (r"loss=\d", r"best=\d", r"spread=\d", r"val=\d", "sigma=0.097", r"\blr=0.048", r"steps/s=\d"):
        assert re.search(part, last)
    assert "lost=" not in last


def test_tensorboard_hides_what_a_run_said_of_generations_that_are_made_again(tmp_path: Path) -> None:
    """And only that: the last that was saved stays."""
    for generations in (2, 3):
        meta_train(quick(generations, validate_every=9), tmp_path, progress=False)
    starts = []
    for file in (tmp_path / "tensorboard").iterdir():
        starts += [e.step for e in events(file) if e.session_log.status == SessionLog.START]
    assert sorted(starts) == [1, 3]


def test_no_bar_where_none_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta_train(quick(1), tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")
