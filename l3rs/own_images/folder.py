"""The folder of a run on one's own images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from l3rs.files import claim, csv_table, read_json, write_atomically
from l3rs.finetuning.arms import Arm


@dataclass
class Folder:
    """The folder of a run, locked while it is open.

    Raises:
        ValueError: it holds a run of another config, or other things; another process is at work in it; or it cannot be written.
    """

    path: Path
    about: Mapping[str, Any]
    _lock: FileLock = field(init=False)

    def __post_init__(self) -> None:
        described = json.loads(json.dumps(self.about))
        file = self.path / "config.json"
        try:
            there = sorted(p.name for p in self.path.iterdir() if p.name != "lock") if self.path.exists() else []
            if there and not file.exists():
                raise ValueError(f"--out is {self.path}, which holds other things, such as {there[0]}; give a new folder")
        except OSError as error:
            raise ValueError(f"--out is {self.path}, which cannot be written ({error.strerror}); give a folder of yours") from None
        self._lock = claim(self.path)
        try:
            if file.exists():
                before = read_json(file)
                different = [k for k in described if before.get(k) != described[k]]
                if different:
                    raise ValueError(
                        f"--out is {self.path}, which holds a run with other {', '.join(different)} and stays as it is; give another folder"
                    )
            else:
                write_atomically(file, (json.dumps(described, indent=1) + "\n").encode())
        except OSError as error:
            self.close()
            raise ValueError(f"{file} could not be written ({error.strerror}); make room there, or give another --out") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others in."""
        self._lock.release()

    def of(self, arm: Arm) -> Path:
        """Where the files of an arm are."""
        return self.path if arm.lr is None else self.path / arm.name


def write_csv(table: pd.DataFrame, path: Path, index: bool = False) -> None:
    """Replaces a file by a table, in which a spreadsheet computes nothing."""
    write_atomically(path, csv_table(table).to_csv(index=index).encode())
