"""Tables whose columns align, errors in one line, and names that may be anything, on the terminal and in CSV files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pandas as pd
import pytest

from l3rs.own_images.folder import Folder
from l3rs.text import csv_cell, csv_table, first_line, from_csv_cell, padded, printable, table, width


def test_columns_align_also_below_wide_characters() -> None:
    rows = [("class", "train"), ("狐", "5"), ("e\u0301te\u0301", "12"), ("longest of them", "1")]
    assert table(rows, line=True) == [
        "class            train",
        "----------------------",
        "狐                   5",
        "e\u0301te\u0301                 12",
        "longest of them      1",
    ]
    assert {width(line) for line in table(rows)} == {22}
    assert padded("狐", 4, left=False) == "  狐"


def test_a_table_to_the_left_has_no_blanks_at_its_ends() -> None:
    assert table([("a", "b"), ("long", ""), ("x", "y")], left=(0, 1)) == ["a     b", "long", "x     y"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\n"), "one"),
        (KeyError(), "KeyError"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file"), "No space left on device"),
        (OSError("I/O error"), "I/O error"),
    ],
)
def test_an_error_in_one_line(error: Exception, said: str) -> None:
    assert first_line(error) == said


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
    frame = pd.DataFrame([[-1, "=1+1"], [2, "cat"]], pd.Index(["@a", "b"], name="class"), ["-n", "+t"])
    assert csv_table(frame).to_csv() == "class,'-n,'+t\n'@a,-1,'=1+1\nb,2,cat\n"
    with Folder(tmp_path / "run", {}) as folder:
        folder.write_table(frame, folder.path / "t.csv", index=True)
    assert (tmp_path / "run" / "t.csv").read_text() == csv_table(frame).to_csv()
