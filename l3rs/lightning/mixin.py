"""L3RS in any LightningModule: a mixin."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn

from l3rs.controller.describe import layer_table
from l3rs.optimizer.l3rs import L3RS
from l3rs.schedules.find import Chosen, resolve
from l3rs.schedules.schedule import LearnedSchedule

TAKEN = 0.9  # of the planned steps; the batches that a training step leaves out may be fewer [choice]


class L3RSMixin(pl.LightningModule):
    """Trains a LightningModule with L3RS: put it before the class of yours, and leave out `configure_optimizers`.

    It makes the optimizer of all parameters that require a gradient, for the number of steps that the trainer is going to take, and
    hands it the loss that `training_step` returns: the unscaled one, and the mean over the batches whose gradients are accumulated.

    A module that overrides `optimizer_step` or `on_train_batch_end` calls those of `super()`. One that has a `configure_optimizers`
    of its own calls `l3rs_optimizer()` there. With manual optimization, call `self.optimizers().step(loss=loss)`.

    Attributes:
        lr_multiplier: multiplies every step; `LearningRateFinder(attr_name="lr_multiplier")` sets it.
        l3rs_learned: the learned schedule, as in `L3RS`; set it in the class or in the constructor.
        l3rs_weight_decay: decoupled, as in `L3RS`.
        l3rs_head: the name in the module of the layer that classifies, where it is not called as heads are; `head` of `L3RS`.
        l3rs_guard: cuts lengths where the loss of one of the first steps is far above that of the first, as in `L3RS`.

    Example:
        >>> class Mine(L3RSMixin, TheirModule):
        ...     l3rs_learned = "generalist"
    """

    lr_multiplier: float = 1.0
    l3rs_learned: str | LearnedSchedule = "auto"
    l3rs_weight_decay: float = 0.0
    l3rs_head: str | None = None
    l3rs_guard: bool = True
    _window: Mapping[int, Tensor | None] = {}  # replaced, never changed
    _begun: int | None = None  # the first batch of this fit

    def l3rs_optimizer(self, params: Iterable[tuple[str, nn.Parameter]] | None = None, total_steps: int | None = None) -> L3RS:
        """L3RS for `params`, named as in this module; by default all that require a gradient.

        `total_steps` is how many it will take; None asks the trainer, which does not know where you step by yourself (manual
        optimization) and not once a batch, or more than one optimizer.

        A layer's place, and which layer is the head, are told from all parameters of the module's children that have some of `params`: also
        from those that are frozen, or another optimizer's. Layers find what was learned for them among the names of the whole module, so
        those that are added later find it too.

        Raises:
            ValueError: the length of the run is unknown, a callback cannot be used with L3RS, or `l3rs_learned` does not fit.
        """
        refuse_callbacks(self.trainer)
        named = list(self.named_parameters())
        found = resolve(self.l3rs_learned, named)
        learned = found._replace(schedule=_renamed(found.schedule, [name for name, _ in named]))
        chosen = [(name, p) for name, p in self.named_parameters() if p.requires_grad] if params is None else list(params)
        steps = planned_steps(self.trainer) if total_steps is None else total_steps
        return _NamedL3RS(
            self, chosen, steps, learned, lr=self.lr_multiplier, weight_decay=self.l3rs_weight_decay,
            head=self._head_among(chosen), guard=self.l3rs_guard,
        )  # fmt: skip

    def _head_among(self, chosen: Sequence[tuple[str, nn.Parameter]]) -> str | None:
        """`head` of L3RS for some of the parameters: "" where another child of the module has the head."""
        # What is frozen may have a head of its own, as a teacher has; one that is named may be frozen.
        asked = [(name, p) for name, p in self.named_parameters() if p.requires_grad or self.l3rs_head]
        place, _ = layer_table([p.shape for _, p in asked], [name for name, _ in asked], self.l3rs_head).head
        elsewhere = place is not None and _child(asked[place][0]) not in {_child(name) for name, _ in chosen}
        return "" if elsewhere else self.l3rs_head

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """L3RS for all parameters that require a gradient."""
        return self.l3rs_optimizer()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Takes the step, and hands over the loss where the optimizer watches it."""
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        if optimizer_closure is None or "loss" not in inspect.signature(inner.step).parameters:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        # With a gradient scaler Lightning runs the closure itself and steps without it, but hands on what else it is given: a tensor,
        # which holds the loss only once the closure has run.
        seen = torch.full((), math.nan, device=self.device)
        earlier = self._earlier_losses(batch_idx)

        def closure() -> Any:
            loss = optimizer_closure()
            parts = [part.detach().float() for part in (*earlier, loss) if part is not None]  # None: `training_step` left the batch out
            if parts:
                seen.copy_(torch.stack(parts).mean() * self.trainer.accumulate_grad_batches)  # Lightning has divided each part
            return loss

        cast("Any", optimizer).step(closure=closure, loss=seen)

    def on_train_start(self) -> None:
        """Knows of no batch yet."""
        super().on_train_start()
        self._begun = None

    def on_train_end(self) -> None:
        """Warns where a run that steps by itself was much shorter than L3RS was told: its last steps are missing."""
        super().on_train_end()
        if self.automatic_optimization or self.trainer.should_stop:
            return
        for group in (optimizer.param_groups[0] for optimizer in self.trainer.optimizers if isinstance(optimizer, L3RS)):
            if group["step"] < TAKEN * group["total_steps"]:
                warnings.warn(
                    f"L3RS was made for {group['total_steps']} steps and took {group['step']}: tell it how many there are, "
                    "l3rs_optimizer(total_steps=...), in a configure_optimizers of yours",
                    stacklevel=2,
                )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Notes the first batch: a run that is resumed may begin within those of one step."""
        self._begun = batch_idx if self._begun is None else self._begun
        return super().on_train_batch_start(batch, batch_idx)

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int) -> None:
        """Keeps the losses of batches whose gradients are accumulated."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        every = self.trainer.accumulate_grad_batches
        if every > 1 and self.automatic_optimization:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            self._window = {**(self._window if batch_idx % every else {}), batch_idx: loss}

    def _earlier_losses(self, batch_idx: int) -> list[Tensor | None]:
        """Those of the batches before this one, since the run was begun or resumed, whose gradients go into the same step."""
        first = batch_idx - batch_idx % self.trainer.accumulate_grad_batches
        if self._begun is not None and first < self._begun <= batch_idx:
            first, self._begun = self._begun, 0  # of this step alone: the next epoch counts from 0 again
        missing = [i for i in range(first, batch_idx) if i not in self._window]
        if missing:
            raise RuntimeError(f"the loss of batch {missing[0]} was not kept: an on_train_batch_end must call super().on_train_batch_end")
        return [self._window[i] for i in range(first, batch_idx)]


def planned_steps(trainer: pl.Trainer) -> int:
    """The steps that the trainer is going to take in all, those before a resume among them, but not those of an earlier `fit`.

    Raises:
        ValueError: nobody knows: the run is to go on for ever, or over data without a length.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 1:
        raise ValueError(
            f"the trainer plans {steps} steps, and L3RS has to know the length of the run: give the Trainer max_steps, or max_epochs where "
            "the training data have a length"
        )
    if trainer.ckpt_path is not None:
        # To count, Lightning has set up the loaders before it reads the checkpoint, and would not give them their states: a run that is
        # resumed within an epoch would see the epoch's first batches again. So it sets them up afresh, as for its LearningRateFinder.
        trainer.fit_loop._combined_loader = None
        return int(steps)
    return max(1, int(steps) - trainer.global_step)


def refuse_callbacks(trainer: pl.Trainer) -> None:
    """Raises ValueError if a callback of Lightning writes to the learning rate, or changes the length of the run on its way."""
    if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "StochasticWeightAveraging writes learning rates of its own into the optimizer's groups, where L3RS has a multiplier of 1: its "
            "steps would be those of another optimizer. Use pytorch_lightning.callbacks.WeightAveraging, which only averages weights"
        )
    plans = [c.scheduling for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    wrong = next((plan for plan in plans if set(plan.values()) != {1}), None)
    if wrong is not None:
        raise ValueError(
            f"GradientAccumulationScheduler({wrong}) changes the number of steps, which Lightning does not count, and L3RS plans the whole "
            "run at its start. Give the Trainer one accumulate_grad_batches"
        )


class _NamedL3RS(L3RS):
    """L3RS that knows all parameters of a module by name, also those that Lightning's callbacks add without."""

    def __init__(
        self, module: nn.Module, params: Sequence[tuple[str, nn.Parameter]], total_steps: int, learned: Chosen, **options: Any
    ) -> None:
        self._called = {p: name for name, p in module.named_parameters()}
        super().__init__(params, total_steps, learned, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        if all(isinstance(p, Tensor) and p in self._called for p in params) and "param_names" not in param_group:
            params = [(self._called[p], p) for p in params]
        super().add_param_group({**param_group, "params": params})

    def _whole_network(self) -> tuple[list[Tensor], list[str] | None]:
        """All of the children that have some of the parameters; a child that is frozen as a whole, such as a teacher, is no part of it."""
        own = [p for group in self.param_groups for p in group["params"]]
        if not all(p in self._called for p in own):
            return super()._whole_network()
        children = {_child(self._called[p]) for p in own}
        layers = {p: name for p, name in self._called.items() if _child(name) in children}
        return list(layers), list(layers.values())

    def _called_as_here(self, learned: LearnedSchedule) -> LearnedSchedule:
        return _renamed(learned, list(self._called.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_called": self._called}


def _child(name: str) -> str:
    """The child of a module that has the parameter of this name."""
    return name.partition(".")[0]


def _renamed(learned: LearnedSchedule, names: Sequence[str]) -> LearnedSchedule:
    """The schedule with its layers called as in a module: each is then found by its own name, whichever others are there."""
    layers = list(learned.layers)
    for name, slot in zip(names, learned.slots(len(names), names), strict=False):  # a generalist has no slots
        layers[slot] = name
    return replace(learned, layers=tuple(layers))
