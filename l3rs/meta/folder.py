"""The folder of a meta-training run: what is written so that nothing is ever lost."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save

from l3rs.checkpoint import CheckpointError
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.nes import NES
from l3rs.runs import append_rows

CURVE = (
    "generation", "steps", "mean_loss", "best_loss", "spread", "diverged", "failed", "sigma", "lr", "validation_accuracy",
    "validation_loss", "inner_steps_per_second", "seconds",
)  # fmt: skip
KEPT = 3  # states
# How long a run goes on, on which processes, and how one schedule is chosen in the end change nothing of what it did before; and images
# stay what they are wherever they lie.
FREE = ("generations", "workers", "ray_address", "gpus_per_actor", "finalists", "final_tasks", "data", "cache")


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file: whatever happens on the way, the old one or the new one is there, whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


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
        described, file = json.loads(json.dumps(asdict(config))), path / "config.json"
        if file.exists():
            before = json.loads(file.read_text())
            different = [k for k in described if k not in FREE and before.get(k) != described[k]]
            if different:
                self.close()
                raise CheckpointError(f"{path} holds a run of another config: {', '.join(different)} differ; choose another --out")
        write_atomically(file, (json.dumps(described, indent=1) + "\n").encode())

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others in."""
        self._lock.release()

    def states(self) -> list[Path]:
        """The saved states, newest first."""
        return sorted(self.path.glob("state-*.safetensors"), reverse=True)

    def save_state(self, nes: NES) -> None:
        """Saves the state, and removes all but the last few."""
        tensors = {k: torch.as_tensor(v).clone().contiguous() for k, v in nes.state_dict().items()}
        write_atomically(self.path / f"state-{nes.generation:06d}.safetensors", save(tensors))
        for old in self.states()[KEPT:]:
            old.unlink()

    def load_state(self, nes: NES) -> None:
        """Takes up the newest state that can be read, if there is one, and forgets rows of generations that it had not seen."""
        for file in self.states():
            try:
                nes.load_state_dict(load(file.read_bytes()))
                break
            except (SafetensorError, KeyError, ValueError, OSError) as error:
                warnings.warn(f"{file} cannot be read ({error}); going on from the state before it", stacklevel=3)
        rows = [row for row in self.curve() if int(row["generation"]) <= nes.generation]
        if (self.path / "curve.csv").exists():
            text = [",".join(CURVE), *(",".join(row[name] for name in CURVE) for row in rows)]
            write_atomically(self.path / "curve.csv", ("\n".join(text) + "\n").encode())

    def curve(self) -> list[dict[str, str]]:
        """The rows of `curve.csv` so far; one that was cut off is none."""
        file = self.path / "curve.csv"
        if not file.exists():
            return []
        with file.open(newline="") as rows:
            return [row for row in csv.DictReader(rows) if row["generation"] and row["generation"].isdigit() and row["seconds"]]

    def append(self, row: Mapping[str, float | int | str]) -> None:
        """Adds a row to `curve.csv`."""
        append_rows(self.path / "curve.csv", [row], CURVE)

    def theta_file(self, generation: int) -> Path:
        """Where the schedule of a validated generation is kept."""
        return self.path / f"theta-{generation:05d}.safetensors"


def last_generation(path: Path) -> int:
    """The last generation that was saved in a folder; 0 if there is none."""
    return max((int(file.stem.removeprefix("state-")) for file in path.glob("state-*.safetensors")), default=0)
