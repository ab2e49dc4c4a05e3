"""The folder of a meta-training run, which loses nothing that it has saved."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from l3rs.files import write_atomically
from l3rs.finetuning.variety import META_PURPOSES
from l3rs.learners import LEARNERS
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.descent import Search
from l3rs.run_folder import FolderError, RunFolder
from l3rs.schedules.find import SHIPPED, SHIPPED_WEIGHTS, locate
from l3rs.schedules.learned import Learned
from l3rs.schedules.seal import DAMAGED, fingerprint, intact, sealed

CURVE = (
    "generation", "steps", "mean_loss", "best_loss", "spread", "diverged", "failed", "sigma", "lr", "validation_accuracy",
    "validation_loss", "inner_steps_per_second", "seconds",
)  # fmt: skip
KEPT = 3  # states
STATE = re.compile(r"state-(\d{6,})\.safetensors")
# These may change when a run resumes: its length, its processes, the choice at the end, and the place of the images.
FREE = ("generations", "workers", "ray_address", "gpus_per_actor", "device", "finalists", "final_tasks", "data", "cache")


def contents_of(config: MetaTrainConfig) -> str:
    """A hash of what the files hold that the config names: networks of a zoo, classes of splits, weights."""
    workloads = (config.workload,) if config.variety is None else config.variety.workloads
    held = [[workload.contents(META_PURPOSES), workload.source().fingerprint()] for workload in workloads]
    return fingerprint(json.dumps(held, sort_keys=True))[:12]


def mark_of(config: MetaTrainConfig, *others: Any) -> str:
    """Eight hex digits of a hash of a config, but for `FREE`, of the contents of its files, and of `others`, as JSON has them."""
    values = {name: value for name, value in config.flat().items() if name not in FREE}
    return fingerprint(json.dumps([values, contents_of(config), *others], sort_keys=True))[:8]


def started_from(config: MetaTrainConfig) -> str:
    """A hash of the files that it starts from; of what is on the Hub, the name."""
    files = [locate(given) if given in (*SHIPPED, *SHIPPED_WEIGHTS) else Path(given) for given in config.start]
    return fingerprint(*(file.read_bytes() if file.is_file() else str(file) for file in files))[:12]


class MetaTrainFolder(RunFolder):
    """The files of one run: `config.json`, `curve.csv`, `state-*.safetensors` to resume from, and `theta-*.safetensors`.

    Raises:
        FolderError: it holds a run of another config, or of more generations; another process is at work in it; or it cannot be written.
    """

    def __init__(self, path: Path, config: MetaTrainConfig) -> None:
        made = last_generation(path)
        if config.search == "nes" and made > config.generations:  # before the new number is written; of other searches it is refused anyway
            raise FolderError(f"generations must be at least {made}, which the run in {path} has made already (got {config.generations})")
        # Settings that there were not yet when the config was written had the defaults of today.
        free = tuple(name for name in FREE if name != "generations" or config.search == "nes")  # the others' rates follow from their number
        contents = {"contents": contents_of(config), "started_from": started_from(config)}  # older folders lack them
        super().__init__(path, config.flat() | contents, free=free, defaults=MetaTrainConfig().flat() | contents)
        self.config = config

    def kept(self) -> str:
        return f"everything up to generation {last_generation(self.path)} is saved in {self.path}"

    def states(self) -> list[Path]:
        """The saved states, newest first."""
        found = {int(name[1]): file for file in self.path.iterdir() if (name := STATE.fullmatch(file.name))}
        return [found[generation] for generation in sorted(found, reverse=True)]

    def save_state(self, search: Search) -> None:
        """Saves the state, and removes all but the last few."""
        tensors = {k: torch.as_tensor(v).clone().contiguous() for k, v in search.state_dict().items()}
        file = self.path / f"state-{search.generation:06d}.safetensors"
        with self.writing(file):
            write_atomically(file, save(tensors, sealed({"generation": search.generation}, tensors)))
            for old in self.states()[KEPT:]:
                old.unlink()

    def load_state(self, search: Search) -> None:
        """Takes up the newest state that can be read, if there is one, and forgets rows of generations that it had not seen.

        It renames states that cannot be read, so that they do not count as the newest.
        """
        for file in self.states():
            try:
                search.load_state_dict(read_state(file))
                break
            except (SafetensorError, KeyError, ValueError, OSError) as error:
                warnings.warn(f"{file} cannot be read ({error}); going on from the state before it", stacklevel=3)
                with self.writing(file):
                    file.rename(f"{file}.unreadable")
        if (self.path / "curve.csv").exists():
            self._write_curve(row for row in self.curve() if int(row["generation"]) <= search.generation)

    def curve(self) -> list[dict[str, str]]:
        """Reads the rows of `curve.csv`, without those that were cut off or damaged."""
        file = self.path / "curve.csv"
        if not file.exists():
            return []
        with file.open(newline="") as rows:
            return [row for row in csv.DictReader(rows) if (row.get("generation") or "").isdigit() and row.get("seconds") and _numbers(row)]

    def append(self, row: Mapping[str, float | int | str]) -> None:
        """Adds a row to `curve.csv`."""
        self._write_curve([*self.curve(), row])

    def _write_curve(self, rows: Iterable[Mapping[str, float | int | str]]) -> None:
        file, text = self.path / "curve.csv", io.StringIO()
        writer = csv.DictWriter(text, CURVE, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with self.writing(file):
            write_atomically(file, text.getvalue().encode())

    def save_learned(self, learned: Learned, file: Path) -> None:
        """Writes a schedule, or the weights of another learned optimizer."""
        with self.writing(file):
            learned.write(file)

    def theta(self, generation: int) -> Tensor:
        """The meta-parameters of a validated generation."""
        return LEARNERS[self.config.optimizer].read(self.theta_file(generation)).theta

    def theta_file(self, generation: int) -> Path:
        """The file of a validated generation's schedule."""
        return self.path / f"theta-{generation:05d}.safetensors"


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a state. Raises SafetensorError, OSError or ValueError if it cannot be read, or is not what was written."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  (not a dict)
        if not intact(opened.metadata() or {}, tensors):
            raise ValueError(DAMAGED)
    return tensors


def _numbers(row: Mapping[str, str]) -> bool:
    """Whether every cell of today's columns is a number, or empty."""
    try:
        return bool([float(row[name]) for name in CURVE if row.get(name)])
    except (TypeError, ValueError):
        return False


def last_generation(path: Path) -> int:
    """Finds the last saved generation in a folder; 0 if there is none."""
    return max((int(found[1]) for file in path.glob("state-*") if (found := STATE.fullmatch(file.name))), default=0)
