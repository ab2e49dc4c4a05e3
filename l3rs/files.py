"""Files that are replaced as a whole: whenever this process is killed, the old one or the new one is there; JSON that may be
anything; folders that are one process's; and names that may be anything, on the terminal and in CSV files."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file to write in place of `path`: whatever happens on the way, the old one or the new one is there, whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_json(file: Path) -> dict[str, Any]:
    """An object. Raises ValueError."""
    try:
        read = json.loads(file.read_text())
        if not isinstance(read, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({error}), and nothing else tells which run is there") from None
    return read


def claim(out: Path) -> FileLock:
    """Makes the folder of `--out` and locks it, until the lock is released or the process ends.

    Raises:
        ValueError: another process is at work in it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"--out is {out}, where another process is at work; give another folder, or wait for it") from None
    except OSError as error:
        raise ValueError(f"--out is {out}, which cannot be written ({error.strerror}); give a folder of yours") from None
    return lock


DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they make a terminal show text in another order
LONGEST_NAME = 255  # bytes, of a file or a folder


def printable(text: str) -> str:
    """A text that is safe on a terminal: what controls one, breaks lines, turns text around, or is no character, is spelled out."""
    if text.isprintable():
        return text
    odd = (c for c in set(text) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in DIRECTIONS)
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})


def csv_cell(text: str) -> str:
    """A text as a spreadsheet takes it for text: one that it would compute, such as =1+1, begins with an apostrophe then."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def csv_table(table: Any) -> Any:
    """A table of pandas with all its texts, the names of its rows and columns among them, as `csv_cell` gives them."""

    def safe(cell: Any) -> Any:
        return csv_cell(cell) if isinstance(cell, str) else cell

    return table.map(safe).rename(index=safe, columns=safe)


def from_csv_cell(text: str) -> str:
    """What `csv_cell` was given."""
    return text.removeprefix("'")


def check_name(name: str, what: str) -> None:
    """Raises ValueError where no file can have a name. `what` it is, for the message."""
    try:
        length = len(name.encode(errors="surrogateescape"))  # such surrogates stand for bytes that are not UTF-8
    except UnicodeEncodeError:
        length = 0
    if not length or "\0" in name:
        raise ValueError(f"{what} must be a name that a file can have (got {name[:40]!a})")
    if length > LONGEST_NAME:
        raise ValueError(f"{what} must have at most {LONGEST_NAME} bytes ({printable(name[:20])!r}... has {length})")


def is_endless(path: str | Path) -> bool:
    """Whether something is a named pipe, a socket or a device, which may keep its reader waiting for ever. Raises OSError."""
    mode = os.stat(path).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
