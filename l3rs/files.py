"""Files that are replaced as a whole: whenever this process is killed, the old one or the new one is there; JSON that may be
anything; and folders that are one process's."""

from __future__ import annotations

import json
import os
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


def printable(text: str) -> str:
    """A text that may hold names that are no UTF-8, with these spelled out."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
