"""Tables whose columns align, and errors in one line."""

from __future__ import annotations

import errno
import os

import pytest

from l3rs.text import first_line, padded, table, width


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
