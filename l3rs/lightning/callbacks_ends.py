"""Callbacks for both ends of a run: a head in closed form before the first step, and BatchNorm's statistics at the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from copy import copy
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from l3rs.lightning.callbacks import BatchNormMode, HeadThenAll
from l3rs.networks import head_start, recent_statistics
from l3rs.networks.batch_norms import batch_norms
from l3rs.networks.create import head_inside


class HeadStart(Callback):
    """Gives the network a head in closed form, from the first training batches, before the first step; see `l3rs.head_start`.

    A run that is resumed keeps its head. The run then sees the batches that the head start has seen, where the loader shuffles by torch's
    generators. What was chosen is told in a line.

    Args:
        batches: so many are the most that it looks at; with several processes, on each.
        head: the name of the head in the module; None asks the network, as `l3rs.head_start` does.

    Attributes:
        found: what it saw and chose; None before.

    Raises:
        ValueError: `batches` is below 1; when training starts, there is no such head, or parameters are sharded.
    """

    def __init__(self, batches: int = head_start.HEAD_BATCHES, head: str | None = None) -> None:
        if batches < 1:
            raise ValueError(f"batches must be at least 1 (got {batches})")
        self.batches, self.head = batches, head
        self.found: head_start.HeadStartReport | None = None

    def images_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The inputs and the labels of a batch of the loader; override it where a batch is not (inputs, labels).

        Raises:
            ValueError: it is something else.
        """
        parts = () if isinstance(batch, Mapping | Tensor) else tuple(batch)
        if len(parts) < 2:
            keys = f" of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
            raise ValueError(
                f"a batch must be (inputs, labels), tensors (got a {type(batch).__name__}{keys}); a HeadStart with another "
                "images_and_labels(batch) takes others"
            )
        return parts[0], parts[1]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step or self.found is not None:
            return
        if not isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy)):
            raise ValueError(f"HeadStart cannot set a head under {type(trainer.strategy).__name__}; use DDP, or one device")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (BatchNormMode, HeadThenAll)):  # they set modes at each batch: the features are those of training
                callback.on_train_batch_start(trainer, pl_module, None, 0)
        with trainer.precision_plugin.forward_context():
            head = self._head(pl_module)  # one that is found here is also checked there
            self.found = head_start.head_start(pl_module, _Batches(self, trainer), self.batches, head=None if self.head is None else head)
        rank_zero_info(str(self.found))

    def _head(self, pl_module: pl.LightningModule) -> nn.Linear:
        cure = "give its name, HeadStart(head=...)"
        found = head_inside(pl_module, cure) if self.head is None else dict(pl_module.named_modules()).get(self.head)
        if not isinstance(found, nn.Linear):
            raise ValueError(f"head must be the name of a dense layer of {type(pl_module).__name__} (got {self.head!r})")
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"found": None if self.found is None else asdict(self.found)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        found = state_dict["found"]
        self.found = None if found is None else head_start.HeadStartReport(**found)


class _Batches:
    """The training batches, on the device of the module; it shows the loader's own generators to a head start, which puts them back."""

    def __init__(self, callback: HeadStart, trainer: pl.Trainer) -> None:
        self.callback, self.trainer, self.loader = callback, trainer, trainer.train_dataloader
        if isinstance(self.loader, DataLoader):
            self.loader = copy(self.loader)
            self.loader._iterator = None  # the trainer's own, where workers persist
        self.sampler, self.generator = getattr(self.loader, "sampler", None), getattr(self.loader, "generator", None)
        self.batch_sampler = getattr(self.loader, "batch_sampler", None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        before, own = torch.get_rng_state(), self.generator.get_state() if self.generator else None
        batches = iter(self.loader)  # type: ignore[arg-type]
        torch.set_rng_state(before)  # the trainer has made its own iterator already, which draws a number
        if self.generator:
            self.generator.set_state(own)
        for batch in batches:
            converted = self.trainer.precision_plugin.convert_input(batch)  # as the trainer does, for bf16-true and the like
            yield self.callback.images_and_labels(self.trainer.strategy.batch_to_device(converted))


class RecentStatistics(Callback):
    """Validates, and ends, with BatchNorm's statistics of the last training batches, see `l3rs.RecentStatistics`.

    Running ones lag behind the weights. Training does not change. Checkpoints hold the recent statistics among the weights, as they were
    validated, and the running ones beside them, for a resume. A module without BatchNorm stays as it is. Where weights are averaged,
    statistics of the last batches are those of other weights: Lightning's `WeightAveraging` is refused beside it.

    Args:
        last, share: as of `l3rs.RecentStatistics`.
        network: the name in the module of what holds all BatchNorm and is called once a batch; None finds it.

    Raises:
        ValueError: as `l3rs.RecentStatistics`; there is no such network, or weights are averaged; or, after the first batch, it was not
            called.
    """

    def __init__(self, last: int = 20, share: float = 0.2, network: str | None = None) -> None:
        recent_statistics.RecentStatistics(nn.Identity(), last, share).close()  # checks them
        self.last, self.share, self.network = last, share, network
        self._recent: recent_statistics.RecentStatistics | None = None
        self._lent = ExitStack()
        self._saved: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "RecentStatistics has those of the weights of the last steps, and WeightAveraging evaluates other weights: leave one out"
            )
        self._prefix = self._find(pl_module) if self.network is None else self.network
        network = dict(pl_module.named_modules()).get(self._prefix)
        if network is None:
            raise ValueError(f"network is {self.network!r}, and {type(pl_module).__name__} has no module of this name")
        self._recent = recent_statistics.RecentStatistics(network, self.last, self.share)
        if self._saved:
            self._recent.load_state_dict(self._saved)
            buffers = dict(pl_module.named_buffers())
            for name, value in self._saved["running"].items():
                buffers[name].copy_(value)
            self._saved = {}

    def _find(self, pl_module: pl.LightningModule) -> str:
        """The innermost module that holds all BatchNorm and has a forward pass."""
        norms = [name.split(".")[:-1] for name, m in pl_module.named_modules() if isinstance(m, _BatchNorm)]
        common = norms[0] if norms else []
        for parts in norms[1:]:
            common = [a for i, a in enumerate(common) if parts[: i + 1] == common[: i + 1]]
        modules = dict(pl_module.named_modules())
        while common and isinstance(modules[".".join(common)], (nn.ModuleList, nn.ModuleDict)):
            common = common[:-1]
        return ".".join(common)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if not outputs and pl_module.automatic_optimization:
            return  # the training step left this batch out
        if self._recent and not self._recent.taken and any(norm.training for norm in batch_norms(pl_module)):
            where = f"{type(pl_module).__name__}{'.' if self._prefix else ''}{self._prefix}"
            raise ValueError(f"{where} was not called in the training step: give RecentStatistics the name of the network that is")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._recent and not trainer.sanity_checking:
            self._lent.enter_context(self._recent.applied())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lent.close()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the recent statistics among the weights."""
        if self._recent:
            start = f"{self._prefix}." if self._prefix else ""
            checkpoint["state_dict"] |= {start + name: value for name, value in self._recent.means().items()}

    def state_dict(self) -> dict[str, Any]:
        if not self._recent:
            return dict(self._saved)
        start = f"{self._prefix}." if self._prefix else ""
        running = dict(self._recent.network.named_buffers())
        return self._recent.state_dict() | {"running": {start + name: running[name].clone() for name in self._recent.means()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._recent:
            self._recent.apply()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._lent.close()
        if self._recent:
            self._recent.close()
            self._recent = None
