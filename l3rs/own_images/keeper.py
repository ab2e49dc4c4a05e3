"""What is kept during a run, so that nothing is lost: the curve, the best weights, and checkpoints to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import nn

from l3rs.files import replacing
from l3rs.own_images.classifier import FILE, Classifier, save
from l3rs.own_images.folder import Folder


class Keeper(pl.Callback):
    """Saves the curve, the most accurate weights, and a checkpoint to resume from, at every validation and on SIGTERM.

    Args:
        run: the open folder of the run.
        path: folder in it, for `model.safetensors` and `last.ckpt`.
        classifier: the description beside the weights.
        seed: with the step, the seed of the network's own draws (dropout), so that a resumed run draws the same.
        steps: of the run.
        say: prints a line at each validation.
    """

    def __init__(self, run: Folder, path: Path, classifier: Classifier, seed: int, steps: int, say: bool) -> None:
        self.run, self.path, self.classifier, self.seed, self.steps, self.say = run, path, classifier, seed, steps, say
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self._losses: list[torch.Tensor] = []
        self._since = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(int(np.random.SeedSequence([self.seed, trainer.global_step]).generate_state(1)[0]))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self._losses.append(loss.detach().float())
        if trainer.global_step >= self.steps:
            trainer.should_stop = True  # makes Lightning validate, wherever the last step falls

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seen = trainer.callback_metrics
        row: dict[str, float] = {"step": trainer.global_step, "train_loss": self._mean_loss()}
        row |= {name: float(seen[name]) for name in ("val_loss", "val_accuracy")}
        self.rows.append(row)
        self.run.write_table(pd.DataFrame(self.rows), self.path / "curve.csv")
        if not self.best or _rank(row) > _rank(self.best):
            self.best = row
            trained = {**self.classifier.training, "step": row["step"], "val_accuracy": row["val_accuracy"], "val_loss": row["val_loss"]}
            network: nn.Module = pl_module.network  # type: ignore[assignment]
            with self.run.writing(self.path / FILE):
                save(replace(self.classifier, training=trained), network.state_dict(), self.path / FILE)
        self._save(trainer)
        if self.say:
            print(
                f"{trainer.global_step:>7} of {self.steps} steps: training loss {row['train_loss']:.3f}, "
                f"validation loss {row['val_loss']:.3f}, accuracy {row['val_accuracy']:.3f}",
                flush=True,
            )
        self._since = time.perf_counter()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and not trainer.validating:  # comes between two steps
            self.seconds += time.perf_counter() - self._since
            self._save(trainer)

    def _mean_loss(self) -> float:
        """Averages the loss since the last validation."""
        mean = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        self._losses = []
        return mean

    def _save(self, trainer: pl.Trainer) -> None:
        with self.run.writing(self.path / "last.ckpt"), replacing(self.path / "last.ckpt") as temporary:
            trainer.save_checkpoint(temporary)

    def state_dict(self) -> dict[str, Any]:
        losses = torch.stack(self._losses).cpu() if self._losses else torch.empty(0)
        return {"rows": list(self.rows), "best": dict(self.best), "seconds": self.seconds, "losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best, self.seconds = list(state_dict["rows"]), dict(state_dict["best"]), state_dict["seconds"]
        self._losses = list(state_dict["losses"])


def _rank(row: Mapping[str, float]) -> tuple[float, float]:
    """Ranks by accuracy, and equals by loss; higher is better."""
    loss = row["val_loss"]
    return row["val_accuracy"], -loss if math.isfinite(loss) else -math.inf
