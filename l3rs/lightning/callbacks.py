"""Callbacks: what L3RS decides, for every logger and as a picture; the head first; what batch normalization does."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning, Callback
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from l3rs.networks.batch_norms import batch_norms
from l3rs.networks.create import head_inside
from l3rs.networks.layer_groups import layer_groups
from l3rs.optimizer.l3rs import L3RS
from l3rs.plots import plot_decisions

POINTS = 200  # of a picture's curves, at most about so many
MODES = ("train", "eval", "frozen")
KEPT_BY_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "max_lrs", "min_lrs", "base_momentums", "max_momentums")  # by schedulers of torch


class L3RSMonitor(Callback):
    """Logs what L3RS decides, and draws it when training ends.

    Layers are grouped by `layer_groups`. To every logger go, every `log_every_n_steps` of the trainer, `lambda/DEPTH/KIND`, the geometric
    mean over the group's layers, and `mu_NAME/DEPTH/KIND`, their mean, for each direction. `l3rs.png`, in the folder of the first logger or
    in `default_root_dir`, shows them against the step; it covers the whole run, also when that was resumed.

    Attributes:
        decisions: what was recorded, a row a step and group: `step` (from 1), `depth`, `kind`, `lambda`, `mu_NAME`.

    Raises:
        ValueError: when training starts, the optimizer is not L3RS.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._taken = 0

    @property
    def decisions(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._taken = _l3rs_of(trainer).param_groups[0]["step"]
        self._rows = [row for row in self._rows if row["step"] <= self._taken]  # of the run that goes on; of no other
        self._groups = layer_groups(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        group = _l3rs_of(trainer).param_groups[0]
        if group["step"] == self._taken or not trainer.is_global_zero:  # no step: gradients accumulate, or a scaler skipped it
            return
        self._taken = step = group["step"]
        last, between = group["total_steps"], trainer.log_every_n_steps  # type: ignore[attr-defined]
        to_log = bool(between) and step % between == 0 and bool(trainer.loggers)
        to_draw = step in (1, last) or step % max(1, last // POINTS) == 0
        if not to_log and not to_draw:
            return
        rows = self._by_group(_l3rs_of(trainer))
        if to_draw:
            self._rows += [{"step": step, **row} for row in rows]
        if to_log:
            metrics = {f"{what}/{r['depth']}/{r['kind']}": r[what] for r in rows for what in r if what not in ("depth", "kind")}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step - 1)  # as Lightning counts what is logged in `training_step`

    def _by_group(self, optimizer: L3RS) -> list[dict[str, Any]]:
        """The last step's decisions: a row a group, in the order of the network."""
        table = optimizer.decisions().drop(columns="length").join(self._groups)
        table["lambda"] = np.log(table["lambda"])
        mean = table.groupby(["depth", "kind"], sort=False).mean().reset_index()
        mean["lambda"] = np.exp(mean["lambda"])
        return [{str(column): value for column, value in row.items()} for row in mean.to_dict("records")]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # asked by all ranks: the first one's is broadcast
        if self._rows and trainer.is_global_zero:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.draw(Path(folder))

    def draw(self, folder: Path) -> None:
        """Draws what was recorded as `l3rs.png` in a folder."""
        plot_decisions(self.decisions, folder / "l3rs.png")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self._rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = list(state_dict["rows"])


class HeadThenAll(BaseFinetuning):
    """Trains the head first, and everything from a step or an epoch on.

    Until then the other parameters that require a gradient are frozen and not in the optimizer, and the modules below the head are in
    evaluation mode, so the head sees the same features of an image each time. Then they are added as a group of parameters, which L3RS
    finds by name and steps by the clock of the run. The group has the options of the first one: its learning rate (the multiplier, of
    L3RS), and its place in the schedulers of `torch.optim.lr_scheduler`. It works across a resume, with DistributedDataParallel (which
    Lightning's own finetuning callbacks leave unaware of what is thawed), and with other optimizers.

    Args:
        unfreeze_at_step: the number of steps that the head is trained alone.
        unfreeze_at_epoch: or the number of epochs.
        head: the name of the head in the module; None asks the network, as `l3rs.head_start` does.

    Raises:
        ValueError: not exactly one of step and epoch is given, or it is below 1; when training is set up, there is no such head, or
            parameters are sharded.
    """

    def __init__(self, *, unfreeze_at_step: int | None = None, unfreeze_at_epoch: int | None = None, head: str | None = None) -> None:
        super().__init__()
        given = {"unfreeze_at_step": unfreeze_at_step, "unfreeze_at_epoch": unfreeze_at_epoch}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of unfreeze_at_step and unfreeze_at_epoch (got {' and '.join(given) or 'neither'})")
        for name, value in given.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 (got {value})")
        self.unfreeze_at_step, self.unfreeze_at_epoch, self.head = unfreeze_at_step, unfreeze_at_epoch, head
        self._frozen: list[nn.Parameter] = []
        self._resting: list[nn.Module] = []
        self._thawed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy)):
            raise ValueError(f"HeadThenAll cannot add parameters under {type(trainer.strategy).__name__}; use DDP, or one device")
        self._thawed, self._resting = False, []
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        """Freezes all but the head."""
        kept = set(self._head(pl_module).parameters())
        self._frozen = [p for p in pl_module.parameters() if p.requires_grad and p not in kept]
        for p in self._frozen:
            p.requires_grad_(False)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Thaws what was frozen and adds it to the optimizer, once it is time."""
        due = self.unfreeze_at_epoch is not None and epoch >= self.unfreeze_at_epoch
        due |= self.unfreeze_at_step is not None and pl_module.global_step >= self.unfreeze_at_step
        if due and not self._thawed:
            self._thaw(pl_module, optimizer)

    def _thaw(self, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        for p in self._frozen:
            p.requires_grad_(True)
        for module in self._resting:
            module.training = True
        self._resting, self._thawed = [], True
        there = {p for group in optimizer.param_groups for p in group["params"]}
        frozen = set(self._frozen) - there
        added = [(name, p) for name, p in pl_module.named_parameters() if p in frozen]
        if added:
            _add_group(optimizer, added, [c.scheduler for c in pl_module.trainer.lr_scheduler_configs])
        strategy = pl_module.trainer.strategy
        if isinstance(strategy, DDPStrategy):  # it averages the gradients of the parameters that required one when it was made
            strategy.model = pl_module
            strategy.configure_ddp()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the parameters that a resumed run had added, before the optimizer's state is loaded."""
        if self._restarting and self._resumes_thawed:
            self._thaw(pl_module, trainer.optimizers[0])
        self._restarting = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: a run that is resumed within an epoch does not come by here, so all is done at batches."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.finetune_function(pl_module, trainer.current_epoch, trainer.optimizers[0])
        if not self._thawed and not self._resting:
            above = {id(m) for m in self._head(pl_module).modules()}
            below = (m for m in pl_module.modules() if m is not pl_module and above.isdisjoint(id(c) for c in m.modules()))
            self._resting = [m for m in below if m.training]
            for module in self._resting:
                module.training = False

    def state_dict(self) -> dict[str, Any]:
        return {"thawed": self._thawed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restarting, self._resumes_thawed = True, bool(state_dict["thawed"])

    def _head(self, pl_module: pl.LightningModule) -> nn.Module:
        if self.head is None:
            return head_inside(pl_module, "give its name, HeadThenAll(head=...)")
        try:
            return pl_module.get_submodule(self.head)
        except AttributeError:
            raise ValueError(f"head is {self.head!r}, and {type(pl_module).__name__} has no module of this name") from None


def _add_group(optimizer: torch.optim.Optimizer, added: list[tuple[str, nn.Parameter]], schedulers: list[Any]) -> None:
    """Adds a group that goes on as the first one does, by its options and by what schedulers keep of it."""
    first, count = optimizer.param_groups[0], len(optimizer.param_groups)
    options = {name: deepcopy(value) for name, value in first.items() if name not in ("params", "param_names")}
    optimizer.add_param_group({**options, "params": added if "param_names" in first else [p for _, p in added]})
    for scheduler in schedulers:
        if scheduler.optimizer is optimizer:
            _extend(scheduler, count)


def _extend(scheduler: Any, count: int) -> None:
    """Repeats what a scheduler keeps of the first of `count` groups for one more."""
    for part in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        _extend(part, count)
    for name in KEPT_BY_GROUP:
        kept = getattr(scheduler, name, None)
        if isinstance(kept, list) and len(kept) == count:
            setattr(scheduler, name, [*kept, kept[0].clone() if isinstance(kept[0], Tensor) else kept[0]])


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


def _l3rs_of(trainer: pl.Trainer) -> L3RS:
    found = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, L3RS)]
    if not found:
        raise ValueError(f"L3RSMonitor shows what L3RS decides, and the optimizer is {type(trainer.optimizers[0]).__name__}")
    return found[0]
