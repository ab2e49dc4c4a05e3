"""The folder of a run of any kind: one process at a time, one run for good, and resumable after any end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from l3rs.files import TEMPORARY, read_json, write_atomically
from l3rs.text import first_line, printable

CONFIG = "config.json"  # describes a run
SHOWN = 5  # differences that an error names
HASH = re.compile("[0-9a-f]{12,}")
Self = TypeVar("Self", bound="RunFolder")


class FolderError(ValueError):
    """The folder holds something else, is in use, or cannot be written; the message says why, and names the cure."""


class RunFolder:
    """The folder of a run, locked while it is open; leaving the context releases the lock.

    A JSON file in it describes the run. If the descriptions agree, the run resumes. If they differ, the folder is refused, and stays as it
    is.

    Args:
        path: made if needed.
        about: describes the run, as JSON has it.
        file: name of the file with the description.
        free: keys that may change when the run resumes.
        defaults: values for keys that the file lacks, as one of an older version does.
        alone: refuses a folder that holds other things and no description.

    Raises:
        FolderError: it holds another run, or other things; another process is at work in it; or it cannot be written.
    """

    def __init__(
        self, path: Path, about: Mapping[str, Any], file: str = CONFIG, *,
        free: tuple[str, ...] = (), defaults: Mapping[str, Any] | None = None, alone: bool = False,
    ) -> None:  # fmt: skip
        self.path, described = path, path / file
        try:
            there = sorted(p.name for p in path.iterdir()) if alone and path.exists() else []
            others = [name for name in there if name != "lock" and not fnmatch(name, TEMPORARY)]  # what a killed process has begun
            if others and not described.exists():
                raise FolderError(f"--out must be a new folder (got {path}, which holds other things, such as {others[0]})")
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / "lock")  # released with this object, or with the process
            self._lock.acquire(timeout=0)
        except Timeout:
            message = f"--out must be a folder where no other process is at work (got {path}); choose another, or wait for it"
            raise FolderError(message) from None
        except FolderError:
            raise
        except (OSError, ValueError) as error:  # a zero byte or half a character is a ValueError
            raise FolderError(f"--out must be a folder that can be written (got {printable(str(path))}: {first_line(error)})") from None
        try:
            self._take(described, json.loads(json.dumps(about)), free, defaults or {})
        except BaseException:
            self.close()
            raise

    def _take(self, file: Path, about: dict[str, Any], free: tuple[str, ...], defaults: Mapping[str, Any]) -> None:
        """Compares the run with the one in the folder, if there is one, and writes its description."""
        written: dict[str, Any] = {}
        if file.exists():
            try:
                written = read_json(file)
            except ValueError as error:
                raise FolderError(f"{error}, and only it tells which run is there") from None
            before = _filled(written, defaults)
            different = [k for k in about if k not in free and before.get(k) != about[k]]
            if different:
                other = f"(got {self.path}, whose run has another {', '.join(different)})"
                said = [line for name in different for line in _differences(name, before.get(name), about[name])]
                more = [f"{len(said) - SHOWN} more"] if len(said) > SHOWN else []
                raise FolderError(f"--out must be a new folder, or the folder of this run {other}: {'; '.join(said[:SHOWN] + more)}")
        with self.writing(file):
            for pattern in (TEMPORARY, f"*/{TEMPORARY}"):
                for left in self.path.glob(pattern):  # of a killed process: no other is here
                    left.unlink()
            if written != written | about:
                write_atomically(file, (json.dumps(written | about, indent=1) + "\n").encode())

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    @contextmanager
    def writing(self, what: object) -> Iterator[None]:
        """Turns errors of writing, also torch's and safetensors' own, into one that says what is kept, and what to do."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            raise FolderError(
                f"{what} could not be written ({first_line(error)}); {self.kept()}. Make room, or remove the "
                "cause, and give the same command again: it resumes"
            ) from error

    def kept(self) -> str:
        """Says what is saved, for the error."""
        return f"all earlier work is kept in {self.path}"


def _differences(name: str, there: Any, here: Any) -> Iterator[str]:
    """Says what differs between two values that JSON has, in nested tables by the names of the settings."""
    if isinstance(there, dict) and isinstance(here, dict):
        for inner in dict.fromkeys((*there, *here)):
            if there.get(inner) != here.get(inner):
                yield from _differences(f"{name}.{inner}", there.get(inner), here.get(inner))
    elif any(isinstance(value, str) and HASH.fullmatch(value) for value in (there, here)):
        yield f"{name}: other ones"  # nobody reads hashes
    else:
        yield f"{name} is {_short(there)} there, and {_short(here)} here"


def _short(value: Any) -> str:
    text = printable(json.dumps(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _filled(before: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the defaults to a description, also in nested tables."""
    nested = {k: _filled(v, defaults[k]) for k, v in before.items() if isinstance(v, dict) and isinstance(defaults.get(k), dict)}
    return {**defaults, **before, **nested}
