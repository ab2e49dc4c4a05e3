"""Files that are replaced: what is there keeps its kind, its mode and its links; rows are added all or none; names that no file has."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

from l3rs import files
from l3rs.files import TEMPORARY, append_rows, check_name, check_writable, is_endless, replacing, whole_rows, write_atomically
from l3rs.schedules.seal import write_sealed

FIELDS = ("a", "b")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    for name, target in (("link", "real"), ("chain", "link"), ("dangling", "not-yet")):
        (tmp_path / name).symlink_to(target)
        write_atomically(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == name
    assert (tmp_path / "real").read_text() == "chain"
    assert not list(tmp_path.glob(TEMPORARY))


def test_a_file_keeps_its_mode_and_a_new_one_has_its_neighbours(tmp_path: Path) -> None:
    """Also one that safetensors writes, which makes files that only their owner reads."""
    before = os.umask(0o027)
    try:
        (tmp_path / "neighbour").touch()
        write_atomically(tmp_path / "new", b"x")
        with replacing(tmp_path / "tensors") as temporary:
            save_file({}, temporary)
        assert {mode(tmp_path / name) for name in ("neighbour", "new", "tensors")} == {0o640}
        write_sealed(tmp_path / "sealed", {}, {})
        assert mode(tmp_path / "sealed") == 0o640
    finally:
        os.umask(before)
    (tmp_path / "new").chmod(0o604)
    write_atomically(tmp_path / "new", b"y")
    assert mode(tmp_path / "new") == 0o604


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    came: list[bytes] = []
    reader = threading.Thread(target=lambda: came.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    check_writable(tmp_path / "pipe")
    write_atomically(tmp_path / "pipe", b"whole")
    reader.join()
    assert came == [b"whole"]
    assert (tmp_path / "pipe").is_fifo()


def test_the_standard_output_is_written_to_after_what_it_holds(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as out:
        out.write(b"printed\n")
        write_atomically(Path(f"/dev/fd/{out.fileno()}"), b"table\n")
        out.seek(0, os.SEEK_END)
        out.write(b"more\n")
    assert (tmp_path / "out").read_bytes() == b"printed\ntable\nmore\n"


def test_a_name_that_can_be_guessed_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file.tmp").symlink_to("victim")
    write_atomically(tmp_path / "file", b"new")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / TEMPORARY.replace("*", "guessed")).symlink_to("victim")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"newer")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"


def test_what_cannot_be_written_is_told_beforehand(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, why in ((tmp_path / "folder", "Is a directory"), (tmp_path / "none" / "file", "No such file")):
        with pytest.raises(OSError, match=why):
            check_writable(path)
    check_writable(tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {"folder"}


def test_rows_are_added_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    append_rows(file, [{"a": 1, "b": "x"}], FIELDS)
    append_rows(file, [{"a": 2, "b": "y"}, {"a": 3, "b": "z"}], FIELDS)
    before = file.read_bytes()
    assert pd.read_csv(file).a.to_list() == [1, 2, 3]

    cut, size = os.ftruncate, []

    def truncate(descriptor: int, length: int) -> None:
        size.append(os.fstat(descriptor).st_size)
        cut(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", truncate)
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append_rows(file, [{"a": 4, "b": "long" * 9}], FIELDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert size == [len(before) + 5]  # some of it was written
    assert file.read_bytes() == before


def test_a_row_that_was_cut_off_is_none(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,x\n2,")
    assert whole_rows(tmp_path / "rows.csv") == b"a,b\n1,x\n"


def test_names_that_no_file_can_have_are_refused() -> None:
    for name in ("cat", "x" * 255, os.fsdecode(b"\xe9" * 255), "狐" * 85):
        check_name(name, "a class")
    for name in ("", "a\0b", "\ud83d"):
        with pytest.raises(ValueError, match="a class must be a name that a file can have"):
            check_name(name, "a class")
    for name in ("x" * 256, "狐" * 86):
        with pytest.raises(ValueError, match="a class must have at most 255 bytes"):
            check_name(name, "a class")


def test_pipes_and_devices_are_told_from_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert [is_endless(p) for p in (tmp_path / "pipe", "/dev/zero", tmp_path / "file", tmp_path)] == [True, True, False, False]


def test_a_spreadsheet_computes_nothing_of_rows_that_are_added(tmp_path: Path) -> None:
    append_rows(tmp_path / "t.csv", [{"a": "=1+1", "b": -0.5}, {"a": "-1e-3", "b": "@x"}], FIELDS)
    assert (tmp_path / "t.csv").read_text() == "a,b\n'=1+1,-0.5\n-1e-3,'@x\n"


def test_rows_are_not_added_to_a_row_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for before in (b"a,b\n1,x\n2,", b"a,b\n1,x\n", b"a,b", b""):
        file.write_bytes(before)
        append_rows(file, [{"a": 3, "b": "z"}], FIELDS)
        assert file.read_bytes() == (b"a,b\n1,x\n3,z\n" if b"1" in before else b"a,b\n3,z\n")
