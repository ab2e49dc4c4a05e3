"""What batch normalization does in training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from l3rs.networks.batch_norms import batch_norms

MODES = ("train", "eval", "frozen")


class BatchNormMode(Callback):
    """Says what batch normalization does in training. In validation it always uses its running statistics.

    Args:
        mode: of all batch normalizations in the module.
            `train`, the usual one: normalizes by the statistics of the batch and updates the running ones; scale and shift are trained.
            `eval`: normalizes by the running statistics and leaves them as they are; scale and shift are trained.
            `frozen`: as `eval`, and scale and shift are not trained: they get no gradient, and are not in the optimizer.

    Raises:
        ValueError: there is no such mode; when training is set up, the module has no batch normalization.
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)} (got {mode!r})")
        self.mode = mode

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if next(batch_norms(pl_module), None) is None:
            raise ValueError(f"BatchNormMode({self.mode!r}) was given, and {type(pl_module).__name__} has no batch normalization")
        self._freeze(pl_module)  # before the optimizer is made

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        for norm in batch_norms(pl_module):  # again and again: other callbacks set modes too
            norm.training = self.mode == "train"
        self._freeze(pl_module)

    def _freeze(self, pl_module: pl.LightningModule) -> None:
        if self.mode == "frozen":
            for norm in batch_norms(pl_module):
                norm.requires_grad_(False)
