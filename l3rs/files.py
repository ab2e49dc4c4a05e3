"""Files that are replaced as a whole: whenever this process is killed, the old one or the new one is there; and JSON
that may be anything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
