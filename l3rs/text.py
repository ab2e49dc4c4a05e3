"""Text for people: tables whose columns align, errors in one line, and names that may be anything, on the terminal and in CSV files."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import Any


def first_line(error: BaseException) -> str:
    """Why it failed: the system's word for it, or the first line of the error's text, or else its kind."""
    why = error.strerror if isinstance(error, OSError) else None
    return (why or str(error).strip() or type(error).__name__).splitlines()[0]


def width(text: str) -> int:
    """Columns of a terminal that a text takes: two for a wide character, none for an accent that combines with the one before."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), line: bool = False) -> list[str]:
    """Lines of a table whose columns align, two spaces apart.

    Args:
        rows: of cells, each as many as the others; the first is the header.
        left: columns that are aligned to the left, by number; the others are numbers, aligned to the right.
        line: whether one is drawn below the header.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(padded(cell, n, i in left) for i, (cell, n) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]] if line else lines


def padded(text: str, columns: int, left: bool = True) -> str:
    """A text in so many columns of a terminal, to the left or to the right in them."""
    space = " " * (columns - width(text))
    return text + space if left else space + text


DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they make a terminal show text in another order


def printable(text: str) -> str:
    """A text that is safe on a terminal: what controls one, breaks lines, turns text around, or is no character, is spelled out."""
    if text.isprintable():
        return text
    odd = (c for c in set(text) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in DIRECTIONS)
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})


def csv_cell(text: str) -> str:
    """A text as a spreadsheet takes it for text: one that it would compute, such as =1+1, begins with an apostrophe then."""
    return f"'{text}" if text.startswith((*"=+-@\t\r\n'", *"＝＋－＠")) else text  # noqa: RUF001  (wide ones are computed too)


def csv_table(table: Any) -> Any:
    """A table of pandas with all its texts, the names of its rows and columns among them, as `csv_cell` gives them."""

    def safe(cell: Any) -> Any:
        return csv_cell(cell) if isinstance(cell, str) else cell

    return table.map(safe).rename(index=safe, columns=safe)


def from_csv_cell(text: str) -> str:
    """What `csv_cell` was given."""
    return text.removeprefix("'")
