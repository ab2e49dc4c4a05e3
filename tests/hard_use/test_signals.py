"""Ctrl-C and SIGTERM to a command and all its processes at once, as from a terminal, systemd, scancel or `timeout`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_tree

from l3rs.cli import main
from l3rs.data.transform import Transform
from l3rs.own_images.classifier import Classifier, save

BOTH = pytest.mark.parametrize(("which", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
TINY = ["--model", "resnet18", "--width", "2", "--side", "16", "--from-scratch", "--batch-size", "4"]


def stopped(argv: list[str], which: signal.Signals, ready: Callable[[], bool]) -> tuple[int, str, str]:
    """Starts a command, sends the signal to its group when it is ready, and gives its exit code, its last line and its stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "l3rs.cli", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background of a shell ignore it, and so would it
    )  # fmt: skip
    try:
        end = time.monotonic() + 200
        while not ready():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        os.killpg(process.pid, which)
        said, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, said.strip().splitlines()[-1], errors


@BOTH
def test_a_comparison_with_processes(which: signal.Signals, code: int, tmp_path: Path) -> None:
    out = tmp_path / "o"
    argv = ["finetune", "--steps", "2", "--optimizers", "adam", "--workers", "2", "--out", str(out)]
    ended, line, errors = stopped([*argv, "--tasks", "500"], which, (out / "runs.csv").exists)
    assert (ended, line) == (code, f"Stopped. {out} holds the finished runs; the same command resumes it.")
    assert "Traceback" not in errors
    done = len(pd.read_csv(out / "runs.csv"))
    main([*argv, "--tasks", str(done + 1)])
    runs, curves = (pd.read_csv(out / name) for name in ("runs.csv", "curves.csv"))
    assert runs.task_seed.is_unique
    assert not curves.duplicated(["task_seed", "steps"]).any()


@pytest.mark.slow
@BOTH
def test_own_images_with_processes(which: signal.Signals, code: int, tmp_path: Path) -> None:
    photos, out = write_tree(tmp_path / "photos", {"ant": 9, "bee": 9}, 20, 20), tmp_path / "o"
    argv = ["finetune", "--data", str(photos), *TINY, "--steps", "5000", "--workers", "2", "--out", str(out)]
    ended, line, errors = stopped(argv, which, (out / "curve.csv").exists)
    assert ended == code
    assert line.startswith("Stopped at step ")
    assert errors == ""


@pytest.mark.slow
@BOTH
def test_predictions(which: signal.Signals, code: int, tmp_path: Path) -> None:
    classifier = Classifier("resnet18", 2, ("ant", "bee"), Transform(16, 18, 3, "bilinear", (0.5,) * 3, (0.25,) * 3))
    save(classifier, classifier.network().state_dict(), tmp_path / "model.safetensors")
    photos = write_tree(tmp_path / "photos", {"ant": 300}, 20, 20)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody reads it: the command waits there with all that it has predicted
    started = time.monotonic()
    argv = ["predict", str(tmp_path), str(photos), "--csv", str(pipe)]
    assert stopped(argv, which, lambda: time.monotonic() > started + 12) == (code, "Stopped.", "")
