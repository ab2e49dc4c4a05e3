"""Files: replaced as a whole, so that a killed process leaves the old one or the new one; tables, to which it adds all rows or none; JSON
that may be anything; and the names that a file can have."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l3rs.text import csv_cell, printable

TEMPORARY = ".l3rs-*.tmp"  # names of files until they are whole


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a file to write in place of `path`. Whatever happens, the old one or the new one is there, whole.

    It replaces the target of a link, and keeps the link. The new file has the old one's mode, or the umask's. It writes into anything but a
    regular file, such as a pipe or /dev/stdout.
    """
    if is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "whole")
            with path.open("ab") as special:  # appends: /dev/stdout may be a file that holds earlier output
                special.write(Path(folder, "whole").read_bytes())
        return
    path = Path(os.path.realpath(path))
    temporary = _beside(path)
    mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raises OSError if `replacing` could not write; call it before the work."""
    if not is_special(path):
        _beside(Path(os.path.realpath(path))).unlink()
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def is_special(path: Path) -> bool:
    """Whether it is a pipe, a device or another file that nothing can replace. Raises OSError for a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return str(path.absolute()).startswith(("/dev/std", "/dev/fd/", "/proc/")) or (path.exists() and not path.is_file())


def _beside(path: Path) -> Path:
    """Makes an empty file in the same folder, under a name that nobody can guess and link."""
    temporary = path.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask
    return temporary


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> None:
    """Adds rows to a CSV file, with a header if it is new: all of them, or, where that fails, none. A last row that was cut off goes.

    A spreadsheet computes nothing of their texts.
    """
    with path.open("a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if before and (file.seek(before - 1), file.read(1))[1] != b"\n":
            before = len(whole_rows(path))
            os.ftruncate(file.fileno(), before)
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        if not before:
            writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        left = memoryview(text.getvalue().encode())
        try:
            while left:
                left = left[file.write(left) :]
        except BaseException:
            os.ftruncate(file.fileno(), before)
            raise


def _cell(value: Any) -> Any:
    """A text as `l3rs.text.csv_cell` has it, unless it is a number."""
    try:
        float(value)
    except (TypeError, ValueError):
        return csv_cell(value) if isinstance(value, str) else value
    return value


def whole_rows(path: Path) -> bytes:
    """Reads a table without a last row that was cut off when its process was killed."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises ValueError."""
    try:
        refuse_endless(file)
        read = json.loads(file.read_text())
        if not isinstance(read, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from None
    return read


LONGEST_NAME = 255  # bytes, of a file or a folder


def check_name(name: str, what: str) -> None:
    """Raises ValueError if no file can have this name; the message calls it `what`."""
    try:
        length = len(name.encode(errors="surrogateescape"))  # such surrogates stand for bytes that are not UTF-8
    except UnicodeEncodeError:
        length = 0
    if not length or "\0" in name:
        raise ValueError(f"{what} must be a name that a file can have (got {name[:40]!a})")
    if length > LONGEST_NAME:
        raise ValueError(f"{what} must have at most {LONGEST_NAME} bytes ({printable(name[:20])!r}... has {length})")


def refuse_endless(path: str | Path) -> None:
    """Raises ValueError for what `is_endless`."""
    if is_endless(path):
        raise ValueError("it is no file, but a named pipe, a socket or a device")


def is_endless(path: str | Path) -> bool:
    """Whether a path is a named pipe, a socket or a device, whose reader may wait for ever. Raises OSError."""
    mode = os.stat(path).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
