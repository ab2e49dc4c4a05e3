"""Names that may be anything: on the terminal, in CSV files, and as names of files."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from l3rs.files import check_name, is_endless
from l3rs.own_images.folder import Folder
from l3rs.text import csv_cell, csv_table, from_csv_cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("red fox", "red fox"),
        ("狐 Füchse \U0001f469\u200d\U0001f33e \u0646\u0627\u0645\u200c\u0647\u0627", None),  # joiners are part of words and pictures
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
    ],
)
def test_what_controls_a_terminal_is_spelled_out(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'"])
def test_spreadsheets_compute_no_text(sign: str) -> None:
    text = f"{sign}1+1"
    assert csv_cell(text) == f"'{text}"
    assert from_csv_cell(csv_cell(text)) == text


@pytest.mark.parametrize("text", ["", "cat", "a=b", "1-2", "狐"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert csv_cell(text) == from_csv_cell(text) == text


def test_tables_compute_nothing(tmp_path: Path) -> None:
    table = pd.DataFrame([[-1, "=1+1"], [2, "cat"]], pd.Index(["@a", "b"], name="class"), ["-n", "+t"])
    assert csv_table(table).to_csv() == "class,'-n,'+t\n'@a,-1,'=1+1\nb,2,cat\n"
    with Folder(tmp_path / "run", {}) as folder:
        folder.write_table(table, folder.path / "t.csv", index=True)
    assert (tmp_path / "run" / "t.csv").read_text() == csv_table(table).to_csv()


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
