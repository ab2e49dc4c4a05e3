"""Short runs of Lightning's Trainer on CPU, and the plain loops that they have to agree with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from conftest import batch, random_schedule, small_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from l3rs import L3RS
from l3rs.lightning import L3RSModule

QUIET = (  # what Lightning says of short runs on CPU
    "ignore:.*does not have many workers",
    "ignore:.*treespec, LeafSpec",
    "ignore:.*exists and is not empty",
    "ignore:.*ckpt_path.*",
)


class Batches(Dataset):
    """The batches of `conftest.batch`, from 0 on."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        return batch(k)


class Resumable(DataLoader):
    """Goes on within an epoch where a checkpoint says that it was, as Lightning asks loaders to."""

    start = given = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.given, self.start = self.start, 0
        for k in range(self.given, len(self)):
            self.given = k + 1
            yield self.dataset[k]

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"] % len(self)  # of an epoch that had ended, the next starts afresh


def loader(count: int) -> DataLoader:
    return Resumable(Batches(count), batch_size=None)


def module(**options: Any) -> L3RSModule:
    """The small network with a random schedule for it."""
    network = small_network()
    return L3RSModule(network, 3, **{"learned": random_schedule(network, scale=0.1), **options})


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{"default_root_dir": folder, "accelerator": "cpu", "num_sanity_val_steps": 0, **quiet, **options})


def fit(folder: Path, fitted: pl.LightningModule, count: int, ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
    """Trains on `count` batches an epoch, and validates on one."""
    done = trainer(folder, **options)
    done.fit(fitted, loader(count), loader(1), ckpt_path=ckpt_path, weights_only=True)
    return done


def loop(
    steps: int,
    each: int = 1,
    before_step: Callable[[nn.Module], None] = lambda _: None,
    context: Callable[[], Any] = torch.enable_grad,
    **options: Any,
) -> tuple[nn.Module, L3RS]:
    """`steps` steps in a plain loop, each on the mean of `each` batches' losses; of the network and schedule of `module`."""
    network = small_network()
    optimizer = L3RS(network.named_parameters(), steps, random_schedule(network, scale=0.1), **options)
    for k in range(steps):
        optimizer.zero_grad()
        losses = []
        for i in range(k * each, (k + 1) * each):
            inputs, labels = batch(i)
            with context():
                losses.append(F.cross_entropy(network(inputs), labels))
            (losses[-1] / each).backward()
        before_step(network)
        optimizer.step(loss=torch.stack(losses).mean())
    return network, optimizer
