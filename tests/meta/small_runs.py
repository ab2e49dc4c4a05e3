"""Meta-training runs of a tenth of a second a generation, and the command that makes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from l3rs.controller.config import L3RSConfig
from l3rs.finetuning.tasks import TaskConfig
from l3rs.meta.config import MetaTrainConfig, NESConfig
from l3rs.meta.nes import Problem
from l3rs.meta.problem import FineTuning


def quick(generations: int = 3, **changes: object) -> MetaTrainConfig:
    """Four candidates, two or three steps on five classes, with a very narrow network that starts at random."""
    settings: dict[str, object] = {
        "name": "quick",
        "generations": generations,
        "specialist": False,
        "steps": (2, 3),
        "validate_every": 3,
        "validation_steps": (2, 3),
        "validation_tasks": 1,
        "workers": 1,
        "finalists": 2,
        "final_tasks": 1,
        "nes": NESConfig(population=4, sigma=0.1, lr=0.05),
    }
    if "zoo" not in changes:
        task = TaskConfig(classes=5, batch_size=8, evaluation_size=20)
        settings |= {"model": "resnet18", "width": 4, "from_scratch": True, "task": task}
    if changes.get("optimizer", "l3rs") == "l3rs":
        settings["schedule"] = L3RSConfig(embedding=0)
    return MetaTrainConfig.of(**(settings | changes))  # type: ignore[arg-type]


class Quadratic(Problem):
    """|x - target|^2."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target
        super().__init__("min", solution_length=len(target), initial_bounds=(-1.0, 1.0), store_solution_stats=False)

    def _evaluate_batch(self, batch: object) -> None:
        batch.set_evals(((batch.values - self.target) ** 2).sum(1))  # type: ignore[attr-defined]


class Told(FineTuning):
    """It knows the processes that it has started, and on which nodes they are."""

    made: ClassVar[list[Told]] = []  # in this process

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pids: list[int] = []
        self.nodes: list[str] = []
        self.evaluations = 0
        self.made.append(self)

    def place(self) -> tuple[int, str]:
        import ray  # which is not everywhere where the other runs are made

        return os.getpid(), ray.get_runtime_context().get_node_id()

    def _parallelize(self) -> None:
        new = self.is_main and self._num_actors and self._actors is None
        super()._parallelize()
        if new:
            for pid, node in self.all_remote_problems().place():
                self.pids.append(pid)
                self.nodes.append(node)

    def evaluate(self, x: Any) -> None:
        self.evaluations += 1
        super().evaluate(x)


def bits(folder: Path, generation: int) -> dict[str, torch.Tensor]:
    """All of the state after a generation."""
    return load_file(folder / f"state-{generation:06d}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def arguments(config: MetaTrainConfig, out: Path) -> list[str]:
    """Those of `l3rs` that make a run of this config."""
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(config.flat()))  # JSON is YAML
    return ["meta-train", "--config", str(file), "--out", str(out)]


def command(config: MetaTrainConfig, out: Path) -> subprocess.Popen[str]:
    """`l3rs meta-train` with this config, in a process, and a group of processes, of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "l3rs.cli", *arguments(config, out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background of a shell ignore it, and so would it
    )  # fmt: skip


def generations(out: Path) -> list[int]:
    """Those in `curve.csv` so far."""
    file = out / "curve.csv"
    return [int(line.split(",")[0]) for line in file.read_text().splitlines()[1:]] if file.exists() else []


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Waits until something is so, while a process is at work."""
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
