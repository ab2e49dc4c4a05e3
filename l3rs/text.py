"""Text for people: tables whose columns align, and errors in one line."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence


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
