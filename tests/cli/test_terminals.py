"""Where the command prints to: a pipe that is closed, a terminal without the characters, a notebook's shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import l3rs.cli.dispatch
from l3rs.cli import main
from l3rs.cli.dispatch import CLOSED_PIPE

COMMAND = [sys.executable, "-m", "l3rs.cli"]


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_pipe_that_is_closed_ends_the_command_quietly(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([*COMMAND, "list"], stdout=write, stderr=subprocess.PIPE, env=env, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")


def test_a_pipe_that_is_closed_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(words: list[str]) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(l3rs.cli.dispatch, "_run", run)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    assert stop.value.code == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_a_command_without_stdout_and_stderr_ends_as_any_other() -> None:
    for words, code in (("list", 0), ("no-such-command", 2)):
        shell = f"exec {' '.join(COMMAND)} {words} >&- 2>&-"
        assert subprocess.run(["bash", "-c", shell], check=False).returncode == code


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_characters_that_the_terminal_lacks_are_escaped(encoding: str, tmp_path: Path) -> None:
    for name in ("猫", "犬"):
        (tmp_path / name).mkdir()
        for i in range(10):
            (tmp_path / name / f"{i}.png").write_bytes(b"")
    words = ["split", str(tmp_path), "--meta-train", "1", "--meta-validation", "1", "--meta-test", "0", "--out", str(tmp_path / "s.json")]
    size = ["--classes-per-task", "1", "--batch-size", "1", "--evaluation-size", "1"]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    both = f"from l3rs.cli import main; main({[*words, *size]}); main(['info', '猫'])"
    done = subprocess.run([sys.executable, "-c", both], capture_output=True, env=env, check=False)
    assert {rb"\u732b", rb"\u72ac"} <= set(done.stdout.split())
    assert "猫" in (tmp_path / "s.json").read_text(encoding="utf-8") or r"\u732b" in (tmp_path / "s.json").read_text()
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(rb"l3rs: error: \u732b is not a file")


def test_a_notebooks_backend_is_not_the_commands(tmp_path: Path) -> None:
    """MPLBACKEND of a notebook names a module that may be installed only there; what draws is imported all the same."""
    code = "from l3rs.cli import main; main(['list']); import matplotlib.pyplot as p; print(p.get_backend())"
    env = {**os.environ, "MPLBACKEND": "module://no_such_backend"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "agg"
