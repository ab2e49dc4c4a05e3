"""The folder of a run on your own images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from l3rs.files import write_atomically
from l3rs.finetuning.arms import Arm
from l3rs.run_folder import RunFolder
from l3rs.text import csv_table


def check_outside(out: Path, images: str | Path) -> None:
    """Raises ValueError if results in the folder `out` would be among the images."""
    here, among = out.resolve(), Path(images).resolve()
    if here == among or among in here.parents:
        raise ValueError(f"--out must be outside of the images' folder {images} (got {out}); give another folder")


class Folder(RunFolder):
    """The folder of a run. Raises FolderError like `RunFolder`, also if it holds anything else.

    Other processes of a run, to which it is sent, write into it without the lock that this one holds.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        super().__init__(path, about, alone=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def of(self, arm: Arm, main: bool) -> Path:
        """The folder of an arm's files."""
        return self.path if main else self.path / arm.name

    def write_table(self, table: pd.DataFrame, file: Path, index: bool = False) -> None:
        """Writes a table in which a spreadsheet computes nothing."""
        with self.writing(file):
            write_atomically(file, csv_table(table).to_csv(index=index).encode())
