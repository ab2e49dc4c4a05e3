"""The folder of a run of any kind: one process's at a time, of one run for good, and such that the run goes on after any end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from l3rs.files import TEMPORARY, read_json, write_atomically
from l3rs.text import first_line, printable

Self = TypeVar("Self", bound="RunFolder")


class FolderError(ValueError):
    """A folder that cannot be that of the run, or be written; the message says why and what to do."""


class RunFolder:
    """The folder of a run, locked while it is open; a context manager that gives the lock back.

    What the run is stands in a file of it. A folder where that differs is refused and stays as it is; else the run goes on.

    Args:
        path: made if needed.
        about: what the run is, as JSON has it.
        file: the name of the file that says so.
        free: keys that may change from one process to the next.
        defaults: what holds for keys that the file lacks, such as those of a version that did not know them.
        alone: whether a folder is refused that holds other things and no such file.

    Raises:
        FolderError: it holds another run, or other things; another process is at work in it; or it cannot be written.
    """

    def __init__(
        self, path: Path, about: Mapping[str, Any], file: str = "config.json", *,
        free: tuple[str, ...] = (), defaults: Mapping[str, Any] | None = None, alone: bool = False,
    ) -> None:  # fmt: skip
        self.path, described = path, path / file
        try:
            others = sorted(p.name for p in path.iterdir() if p.name != "lock") if alone and path.exists() else []
            if others and not described.exists():
                raise FolderError(f"--out must be a new folder (got {path}, which holds other things, such as {others[0]})")
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / "lock")  # given back with this object, or with the process
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
        """Compares what the run is with that which is here, if one is, and writes it."""
        written: dict[str, Any] = {}
        if file.exists():
            try:
                written = read_json(file)
            except ValueError as error:
                raise FolderError(str(error)) from None
            before = _filled(written, defaults)
            different = [k for k in about if k not in free and before.get(k) != about[k]]
            if different:
                other = ", ".join(different)
                raise FolderError(f"--out must be a new folder, or that of the same run (got {self.path}, whose run has another {other})")
        with self.writing(file):
            for pattern in (TEMPORARY, f"*/{TEMPORARY}"):
                for left in self.path.glob(pattern):  # by a process that was killed: no other is here
                    left.unlink()
            if written != written | about:
                write_atomically(file, (json.dumps(written | about, indent=1) + "\n").encode())

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others in."""
        self._lock.release()

    @contextmanager
    def writing(self, what: object) -> Iterator[None]:
        """Says what could not be written, what is kept, and what to do. Torch and safetensors have errors of their own for that."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            raise FolderError(
                f"{what} could not be written ({first_line(error)}); {self.kept()}. Make room there, or whatever it takes, and give the "
                "same command again: it goes on from there"
            ) from error

    def kept(self) -> str:
        """What is not lost where something cannot be written."""
        return f"what was done before is kept in {self.path}"


def _filled(before: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A description with what it lacks, in tables within it too."""
    nested = {k: _filled(v, defaults[k]) for k, v in before.items() if isinstance(v, dict) and isinstance(defaults.get(k), dict)}
    return {**defaults, **before, **nested}
