"""The folder of a run on one's own images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from l3rs.files import write_atomically
from l3rs.finetuning.arms import Arm
from l3rs.run_folder import RunFolder
from l3rs.text import csv_table


class Folder(RunFolder):
    """The folder of a run. Raises FolderError as `RunFolder` does, also where it holds anything else."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        super().__init__(path, about, alone=True)

    def of(self, arm: Arm) -> Path:
        """Where the files of an arm are."""
        return self.path if arm.lr is None else self.path / arm.name

    def write_table(self, table: pd.DataFrame, file: Path, index: bool = False) -> None:
        """Replaces a file by a table, in which a spreadsheet computes nothing."""
        with self.writing(file):
            write_atomically(file, csv_table(table).to_csv(index=index).encode())
