"""A head in closed form before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from l3rs.lightning.callbacks.batch_norm_mode import BatchNormMode
from l3rs.lightning.callbacks.head_then_all import HeadThenAll
from l3rs.lightning.data import ImageFolderDataModule
from l3rs.networks import head_start
from l3rs.networks.create import head_inside
from l3rs.networks.head_features import afresh


class HeadStart(Callback):
    """Gives the network a head in closed form, from the first training batches, before the first step; see `l3rs.head_start`.

    A run that is resumed keeps its head. The run then sees the batches that the head start has seen, where the loader shuffles by torch's
    generators. What was chosen is told in a line.

    Args:
        batches: it looks at no more than this many, in each process, and at none that the trainer leaves out (`limit_train_batches`).
        head: the name of the head in the module; None asks the network, as `l3rs.head_start` does.

    Attributes:
        found: what it saw and chose; None before.

    Raises:
        ValueError: `batches` is below 1; when training starts, there is no such head, no forward pass to it, or parameters are sharded.
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

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.found = None  # of an earlier run; what a resumed one saw comes with its state, later

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step or self.found is not None:
            return
        if not isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy)):
            raise ValueError(f"HeadStart cannot set a head under {type(trainer.strategy).__name__}; use DDP, or one device")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (BatchNormMode, HeadThenAll)):  # they set modes at each batch: the features are those of training
                callback.on_train_batch_start(trainer, pl_module, None, 0)
        limit = int(min(self.batches, trainer.num_training_batches))  # infinitely many of data without a length
        data = getattr(trainer, "datamodule", None)
        whole = data.unmixed() if isinstance(data, ImageFolderDataModule) else nullcontext()  # images of one class each
        with trainer.precision_plugin.forward_context(), whole:
            head = self._head(pl_module)  # one that is found here is also checked there
            network = _with_forward(pl_module, head)
            self.found = head_start.head_start(network, _Batches(self, trainer), limit, head=None if self.head is None else head)
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


def _with_forward(pl_module: pl.LightningModule, head: nn.Linear) -> nn.Module:
    """The module, or what in it has the head and a forward pass. Raises ValueError if the head alone has one."""
    if type(pl_module).forward is not pl.LightningModule.forward:
        return pl_module
    run = (m for m in pl_module.modules() if m not in (pl_module, head) and not isinstance(m, (nn.ModuleList, nn.ModuleDict)))
    network = next((m for m in run if head in set(m.modules())), None)
    if network is None:
        kind = type(pl_module).__name__
        raise ValueError(
            f"{kind} has no forward pass to its head, which a head start runs: give it a forward(inputs) that ends in the head"
        )
    return network


class _Batches:
    """The training batches, on the device of the module; it shows the loader's own generators to a head start, which puts them back."""

    def __init__(self, callback: HeadStart, trainer: pl.Trainer) -> None:
        self.callback, self.trainer, self.loader = callback, trainer, afresh(trainer.train_dataloader)
        self.sampler, self.generator = getattr(self.loader, "sampler", None), getattr(self.loader, "generator", None)
        self.batch_sampler = getattr(self.loader, "batch_sampler", None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        before, own = torch.get_rng_state(), self.generator.get_state() if self.generator else None
        batches = iter(self.loader)
        torch.set_rng_state(before)  # the trainer has made its own iterator already, which draws a number
        if self.generator:
            self.generator.set_state(own)
        for batch in batches:
            converted = self.trainer.precision_plugin.convert_input(batch)  # as the trainer does, for bf16-true and the like
            yield self.callback.images_and_labels(self.trainer.strategy.batch_to_device(converted))
