"""The folder of a meta-training run: what is written so that nothing is ever lost."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from l3rs.files import read_json, replacing, write_atomically
from l3rs.learners import LEARNERS
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.nes import NES
from l3rs.schedules.learned import Learned
from l3rs.schedules.seal import CheckpointError

CURVE = (
    "generation", "steps", "mean_loss", "best_loss", "spread", "diverged", "failed", "sigma", "lr", "validation_accuracy",
    "validation_loss", "inner_steps_per_second", "seconds",
)  # fmt: skip
KEPT = 3  # states
# How long a run goes on, on which processes, and how one schedule is chosen in the end change nothing of what it did before; and images
# stay what they are wherever they lie.
FREE = ("generations", "workers", "ray_address", "gpus_per_actor", "finalists", "final_tasks", "data", "cache")


class RunFolder:
    """The files of one run: `config.json`, `curve.csv`, `state-*.safetensors` to resume from, and `theta-*.safetensors`.

    It is locked while it is open, and is a context manager that gives the lock back.

    Raises:
        CheckpointError: it holds a run of another config, another process is at work in it, or it cannot be written.
    """

    def __init__(self, path: Path, config: MetaTrainConfig) -> None:
        self.path, self.config = path, config
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / "lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"another process is meta-training in {path}; choose another --out, or wait for it") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written ({error.strerror}); choose another --out") from None
        try:
            self._take(path / "config.json")
        except BaseException:
            self.close()
            raise

    def _take(self, file: Path) -> None:
        """Compares the config with that of the run that is here, if one is, and writes it."""
        described = self.config.flat()
        if file.exists():
            try:
                before = _with_defaults(read_json(file))
            except ValueError as error:
                raise CheckpointError(str(error)) from None
            except (TypeError, AttributeError) as error:
                raise CheckpointError(f"{file} cannot be read ({error}), and nothing else tells which run is there") from None
            different = [k for k in described if k not in FREE and before[k] != described[k]]
            if different:
                raise CheckpointError(f"{self.path} holds a run of another config: {', '.join(different)} differ; choose another --out")
        with self.writing(file):
            write_atomically(file, (json.dumps(described, indent=1) + "\n").encode())

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others in."""
        self._lock.release()

    @contextmanager
    def writing(self, what: object) -> Iterator[None]:
        """Says what is lost, what is not, and what to do, where something cannot be written."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise CheckpointError(
                f"{what} could not be written ({why}); everything up to generation {last_generation(self.path)} is saved in {self.path}. "
                "Make room there, or whatever it takes, and start the same run again: it goes on from there"
            ) from error

    def states(self) -> list[Path]:
        """The saved states, newest first."""
        return sorted(self.path.glob("state-*.safetensors"), reverse=True)

    def save_state(self, nes: NES) -> None:
        """Saves the state, and removes all but the last few."""
        tensors = {k: torch.as_tensor(v).clone().contiguous() for k, v in nes.state_dict().items()}
        file = self.path / f"state-{nes.generation:06d}.safetensors"
        with self.writing(file):
            write_atomically(file, save(tensors))
            for old in self.states()[KEPT:]:
                old.unlink()

    def load_state(self, nes: NES) -> None:
        """Takes up the newest state that can be read, if there is one, and forgets rows of generations that it had not seen.

        States that cannot be read are put aside, so that they are not taken for the newest.
        """
        for file in self.states():
            try:
                nes.load_state_dict(load(file.read_bytes()))
                break
            except (SafetensorError, KeyError, ValueError, OSError) as error:
                warnings.warn(f"{file} cannot be read ({error}); going on from the state before it", stacklevel=3)
                with self.writing(file):
                    file.rename(f"{file}.unreadable")
        if (self.path / "curve.csv").exists():
            self._write_curve(row for row in self.curve() if int(row["generation"]) <= nes.generation)

    def curve(self) -> list[dict[str, str]]:
        """The rows of `curve.csv` so far; one that was cut off is none."""
        file = self.path / "curve.csv"
        if not file.exists():
            return []
        with file.open(newline="") as rows:
            return [row for row in csv.DictReader(rows) if (row.get("generation") or "").isdigit() and row.get("seconds")]

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
        with self.writing(file), replacing(file) as temporary:
            learned.write(temporary)

    def theta(self, generation: int) -> Tensor:
        """The meta-parameters of a validated generation."""
        return LEARNERS[self.config.optimizer].read(self.theta_file(generation)).theta

    def theta_file(self, generation: int) -> Path:
        """Where the schedule of a validated generation is kept."""
        return self.path / f"theta-{generation:05d}.safetensors"


def _with_defaults(before: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it was written, and today's defaults of settings that there were not yet: they are what was done then."""
    defaults = MetaTrainConfig().flat()
    return defaults | {k: defaults[k] | v if isinstance(defaults.get(k), dict) else v for k, v in before.items()}


def last_generation(path: Path) -> int:
    """The last generation that was saved in a folder; 0 if there is none."""
    return max((int(file.stem.removeprefix("state-")) for file in path.glob("state-*.safetensors")), default=0)
