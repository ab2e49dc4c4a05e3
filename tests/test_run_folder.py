"""The folder of a run of any kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from l3rs.files import TEMPORARY
from l3rs.run_folder import FolderError, RunFolder


def test_what_a_killed_process_has_left_half_written_is_taken_away(tmp_path: Path) -> None:
    left = TEMPORARY.replace("*", "0123")
    (tmp_path / "arm").mkdir()
    for path in (tmp_path / left, tmp_path / "arm" / left):
        path.write_bytes(b"half")
    with RunFolder(tmp_path, {}), pytest.raises(FolderError, match="no other process is at work"):
        RunFolder(tmp_path, {})
    assert {p.name for p in tmp_path.rglob("*")} - {"lock"} == {"arm"}


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    RunFolder(tmp_path, {"a": 1, "b": {"c": (2,)}, "n": 3}, free=("n",)).close()
    RunFolder(tmp_path, {"a": 1, "b": {"c": [2]}, "n": 4, "new": {"d": 5}}, free=("n",), defaults={"new": {"d": 5}}).close()
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1, "b": {"c": [2]}, "n": 4, "new": {"d": 5}}
    for about, named in (({"a": 2, "b": {"c": [3]}}, "a, b"), ({"other": 1}, "other")):
        with pytest.raises(FolderError, match=rf"whose run has another {named}\)"):
            RunFolder(tmp_path, about)
    with pytest.raises(FolderError, match=r"another b\): b\.c is \[2\] there, and \[3\] here$"):
        RunFolder(tmp_path, {"b": {"c": [3]}})
    with pytest.raises(FolderError, match=r"another a, images\): a is 1 there, and \"0{56}\.\.\. here; images: other ones$"):
        RunFolder(tmp_path, {"a": "0" * 5 + "0" * 95 + "x", "images": "0123456789ab"})
    with pytest.raises(FolderError, match=r"k0 is null there, and 1 here; .*; k4 is null there, and 1 here; 2 more$"):
        RunFolder(tmp_path, {f"k{i}": 1 for i in range(7)})
    RunFolder(tmp_path, {"a": 1}).close()  # those that were refused hold no lock


def test_a_folder_with_other_things_is_refused_where_it_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FolderError, match=r"holds other things, such as thesis\.txt"):
        RunFolder(tmp_path, {}, alone=True)
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.txt"}  # not even a lock
    (tmp_path / "thesis.txt").rename(tmp_path / TEMPORARY.replace("*", "0123"))  # of a process that was killed as it described the run
    RunFolder(tmp_path, {"a": 1}, alone=True).close()
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "lock"}
    RunFolder(tmp_path, {"a": 1}).close()


def test_a_named_pipe_that_says_what_the_run_is_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(FolderError, match="it is no file, but a named pipe"):
        RunFolder(tmp_path, {})


@pytest.mark.parametrize(("name", "shown"), [("a\0b", r"a\\x00b: .*null byte"), ("a\ud800", r"a\\ud800: .*not allowed")])
def test_a_name_that_no_folder_can_have_is_told(name: str, shown: str, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=rf"--out must be a folder that can be written \(got .*{shown}"):
        RunFolder(tmp_path / name, {})


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("write failed\nstack")])
def test_what_could_not_be_written_is_one_line(error: Exception, tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}) as folder, pytest.raises(FolderError) as stop, folder.writing("x.ckpt"):
        raise error
    why = str(error.args[-1]).splitlines()[0]
    assert str(stop.value).startswith(f"x.ckpt could not be written ({why}); all earlier work is kept in {tmp_path}. Make room")
