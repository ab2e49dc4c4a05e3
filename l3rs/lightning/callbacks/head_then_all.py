"""The head alone first, and then all layers."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from l3rs.networks.create import head_inside

KEPT_BY_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "max_lrs", "min_lrs", "base_momentums", "max_momentums")  # by schedulers of torch


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
            if value < 1:  # type: ignore[operator]
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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warns where nothing will be thawed."""
        steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs
        if self.unfreeze_at_step is not None and 0 < steps <= self.unfreeze_at_step:  # of data without a length it is -1
            name, length = "unfreeze_at_step", steps
        elif self.unfreeze_at_epoch is not None and epochs is not None and 0 <= epochs <= self.unfreeze_at_epoch:
            name, length = "unfreeze_at_epoch", epochs
        else:
            return
        warnings.warn(f"{name} is {getattr(self, name)}, and the run ends at {length}: HeadThenAll trains the head alone", stacklevel=2)

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
