"""Text for people: aligned tables, guesses at what was meant, errors in one line, and safe names on the terminal and in CSV files."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any


def first_line(error: BaseException) -> str:
    """The reason of an error: the system's word for it, the first line of its text, or its type."""
    why = error.strerror if isinstance(error, OSError) else None
    return (why or str(error).strip() or type(error).__name__).splitlines()[0]


def width(text: str) -> int:
    """Counts a text's columns on a terminal: two for a wide character, none for an accent, a joiner or a choice of variant."""
    return sum(0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), line: bool = False) -> list[str]:
    """Aligns a table's columns, two spaces apart, and returns its lines.

    Args:
        rows: of equally many cells; the first is the header.
        left: numbers of the columns to align left; the others align right.
        line: draws a line below the header.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(padded(cell, n, i in left) for i, (cell, n) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]] if line else lines


def padded(text: str, columns: int, left: bool = True) -> str:
    """Pads a text to this many columns of a terminal, aligned left or right."""
    space = " " * (columns - width(text))
    return text + space if left else space + text


def meant(word: str, known: Iterable[str]) -> str:
    """Asks for the known name most like an unknown one; empty if none is."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they make a terminal show text in another order


def printable(text: str) -> str:
    """Makes a text safe for a terminal: spells out control characters, line breaks, changes of direction and half characters."""
    if text.isprintable():
        return text
    odd = (c for c in set(text) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in DIRECTIONS)
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})


def csv_cell(text: str) -> str:
    """A text as a spreadsheet takes it for text: one that it would compute, such as =1+1, begins with an apostrophe then."""
    return f"'{text}" if text.startswith((*"=+-@\t\r\n'", *"＝＋－＠")) else text  # noqa: RUF001  (wide ones are computed too)


def csv_table(table: Any) -> Any:
    """Applies `csv_cell` to all texts of a pandas table, also to the names of rows and columns."""

    def safe(cell: Any) -> Any:
        return csv_cell(cell) if isinstance(cell, str) else cell

    return table.map(safe).rename(index=safe, columns=safe)


def from_csv_cell(text: str) -> str:
    """Undoes `csv_cell`."""
    return text.removeprefix("'")
