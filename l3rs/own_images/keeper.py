"""Callbacks of a run: what is kept, so that nothing is lost, and where a schedule-free optimizer is judged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from l3rs.files import replacing
from l3rs.finetuning.unroll import REFRESH, where_evaluated
from l3rs.lightning.data import ImageFolderDataModule
from l3rs.own_images.classifier import FILE, Classifier, save
from l3rs.own_images.folder import Folder
from l3rs.own_images.plan import VALIDATIONS

LAST, BEST = "last.ckpt", "best.ckpt"


def rank(metric: float, loss: float) -> tuple[float, float]:
    """Orders weights, the best last: by the metric of validation, equal ones by the loss. What is not finite is worse than any number."""
    return metric if math.isfinite(metric) else -1.0, -loss if math.isfinite(loss) else -math.inf


class Keeper(pl.Callback):
    """Saves the curve and the best weights at every validation; a checkpoint to resume from also along the way and on SIGTERM.

    Args:
        run: the open folder of the run.
        path: folder in it, for `model.safetensors`, `best.ckpt` and `last.ckpt`.
        classifier: the description beside the weights.
        metric: of validation, which chooses the best weights; of equals, the one with the lower loss.
        seed: with the step, the seed of all draws (dropout, mixup), so that a resumed run draws the same.
        steps: of the run.
        say: prints a line at each validation.
        patience: validations in a row without better weights, after which the run ends; None is never.
    """

    def __init__(
        self, run: Folder, path: Path, classifier: Classifier, metric: str, seed: int, steps: int, say: bool, patience: int | None = None
    ) -> None:
        self.run, self.path, self.classifier, self.metric = run, path, classifier, metric
        self.seed, self.steps, self.say, self.patience = seed, steps, say, patience
        self.save_every = math.ceil(steps / VALIDATIONS)  # where validations are rarer, no more is lost either
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self._losses: list[Tensor] = []
        self._since = time.perf_counter()

    @property
    def out_of_patience(self) -> bool:
        """Whether there were no better weights for too long."""
        return self.patience is not None and sum(row["step"] > self.best["step"] for row in self.rows) >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
        if self.out_of_patience:  # of a run that was killed as it ended
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self._seed_of(trainer.global_step))

    def _seed_of(self, step: int) -> int:
        return int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self._losses.append(loss.detach().float())
        if trainer.global_step >= self.steps:
            trainer.should_stop = True  # makes Lightning validate, wherever the last step falls
        elif trainer.global_step % self.save_every == 0:
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter() - self._since

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves what was judged: later, callbacks put the weights of training back."""
        seen = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        row = {"step": float(trainer.global_step), "train_loss": self._mean_loss(), **seen}
        self.rows.append(row)
        better = not self.best or rank(row[self.metric], row["val_loss"]) > rank(self.best[self.metric], self.best["val_loss"])
        if better:
            self.best = row
            with self.run.writing(self.path / BEST):
                trainer.save_checkpoint(self.path / BEST, weights_only=True)
        elif self.out_of_patience:
            trainer.should_stop = True
        if not trainer.is_global_zero:
            return
        self.run.write_table(pd.DataFrame(self.rows).astype({"step": int}), self.path / "curve.csv")
        if better:
            trained = {**self.classifier.training, **row, "step": trainer.global_step}
            network: nn.Module = pl_module.network  # type: ignore[assignment]
            with self.run.writing(self.path / FILE):
                save(replace(self.classifier, training=trained), network.state_dict(), self.path / FILE)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        row = self.rows[-1]
        if self.say and trainer.is_global_zero:
            print(
                f"{trainer.global_step:>7} of {self.steps} steps: training loss {row['train_loss']:.3f}, "
                f"validation loss {row['val_loss']:.3f}, {in_words(self.metric)} {row[self.metric]:.3f}",
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
        file = self.path / LAST
        with self.run.writing(file), replacing(file) if trainer.is_global_zero else nullcontext(file) as temporary:
            trainer.save_checkpoint(temporary)

    def state_dict(self) -> dict[str, Any]:
        losses = torch.stack(self._losses).cpu() if self._losses else torch.empty(0)
        return {"rows": list(self.rows), "best": dict(self.best), "seconds": self.seconds, "losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best, self.seconds = list(state_dict["rows"]), dict(state_dict["best"]), state_dict["seconds"]
        self._losses = list(state_dict["losses"])


class AtAverage(pl.Callback):
    """Judges a schedule-free optimizer at the average of its weights, see `l3rs.finetuning.unroll.where_evaluated`; before the keeper.

    Args:
        data: whose last training batches give the statistics of BatchNorm there.
        refresh: whether they do; else the network keeps its own.
    """

    def __init__(self, data: ImageFolderDataModule, refresh: bool) -> None:
        self.data, self.refresh = data, refresh

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network: nn.Module = pl_module.network  # type: ignore[assignment]
        step = trainer.global_step
        last = self.data.batches(range(max(0, step - REFRESH), step)) if self.refresh else None
        batches = None if last is None else (inputs.to(pl_module.device) for inputs, _ in last)
        self._there = ExitStack()
        self._there.enter_context(where_evaluated(network, trainer.optimizers[0], batches))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._there.close()


def in_words(metric: str) -> str:
    """Spells `val_balanced_accuracy` as `balanced accuracy`."""
    return metric.removeprefix("val_").replace("_", " ")
