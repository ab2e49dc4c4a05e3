"""L3RS in a LightningModule: a mixin for any module, and a module that classifies with any model of timm."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from l3rs.finetuning.baselines import Recipe
from l3rs.networks.create import check_model, create, head_of
from l3rs.networks.pretrained import from_hub
from l3rs.optimizer.l3rs import L3RS
from l3rs.schedules.find import Chosen, resolve
from l3rs.schedules.schedule import LearnedSchedule

MakeOptimizer = Callable[[nn.Module, int], "torch.optim.Optimizer | Recipe"]


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

    def l3rs_optimizer(self, params: Iterable[tuple[str, nn.Parameter]] | None = None) -> L3RS:
        """L3RS for `params`, named as in this module; by default all that require a gradient.

        Layers find what was learned for them among the names of the whole module, so those that are added later find it too.

        Raises:
            ValueError: the length of the run is unknown, a callback cannot be used with L3RS, or `l3rs_learned` does not fit.
        """
        refuse_callbacks(self.trainer)
        named = list(self.named_parameters())
        found = resolve(self.l3rs_learned, named)
        learned = found._replace(schedule=_renamed(found.schedule, [name for name, _ in named]))
        chosen = [(name, p) for name, p in self.named_parameters() if p.requires_grad] if params is None else list(params)
        return _NamedL3RS(
            self, chosen, total_steps(self.trainer), learned, lr=self.lr_multiplier, weight_decay=self.l3rs_weight_decay,
            head=self.l3rs_head, guard=self.l3rs_guard,
        )  # fmt: skip

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


class L3RSModule(L3RSMixin):
    """Classifies images with any model of timm, trained by L3RS; logs loss and accuracy as `train_loss`, `val_accuracy` and so on.

    Batches are (inputs, labels): what the model takes, (B, C, H, W), and the numbers of the classes, (B,).

    Args:
        model: its name in timm, or a network that gives (B, num_classes) logits.
        num_classes: of them.
        learned: the learned schedule, as in `L3RS`.
        optimizer: makes another optimizer for the network and a number of steps, to compare with; it may be a `Recipe`, whose scheduler
            advances at each step.
        pretrained: whether a model by name gets timm's pretrained weights, from the Hub or its cache.
        in_chans: input channels of a model by name.
        lr_multiplier: multiplies every step of L3RS.
        weight_decay: of L3RS, decoupled, see there.
        classes: their names, for people; kept in checkpoints.
        multilabel: an image may be of several classes: labels are (B, num_classes) of 0 and 1, and the loss is binary cross entropy.
        label_smoothing: share of each label that is spread over all classes, in training.
        class_weights: of the training loss, one a class.

    A checkpoint of a model by name is loaded with `L3RSModule.load_from_checkpoint(path, weights_only=True)`; where `model`, `learned` or
    `optimizer` is an object, give it again there, as an argument.

    Raises:
        ValueError: timm has no such model or no weights for it, the network's head has another number of classes, or an option does not
            go with that number.
    """

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int,
        *,
        learned: str | Path | LearnedSchedule = "auto",
        optimizer: MakeOptimizer | None = None,
        pretrained: bool = True,
        in_chans: int = 3,
        lr_multiplier: float = 1.0,
        weight_decay: float = 0.0,
        classes: Sequence[str] | None = None,
        multilabel: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 (got {num_classes})")
        if classes is not None and len(classes) != num_classes:
            raise ValueError(f"classes are {len(classes)} names, and num_classes is {num_classes}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"class_weights are {len(class_weights)} numbers, and num_classes is {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1 (got {label_smoothing})")
        # Plain values only: Lightning would pickle anything else, which is then not loaded with weights_only=True.
        plain: dict[str, Any] = {
            "num_classes": num_classes,
            "lr_multiplier": lr_multiplier,
            "weight_decay": weight_decay,
            "classes": None if classes is None else list(classes),
            "multilabel": multilabel,
            "label_smoothing": label_smoothing,
            "class_weights": None if class_weights is None else list(class_weights),
        }
        if isinstance(model, str):
            plain |= {"model": model, "pretrained": pretrained, "in_chans": in_chans}
        if not isinstance(learned, LearnedSchedule):
            plain |= {"learned": str(learned)}
        self.save_hyperparameters(plain)
        self.network = _network(model, num_classes, pretrained, in_chans)
        self.l3rs_learned = str(learned) if isinstance(learned, Path) else learned
        self.lr_multiplier, self.l3rs_weight_decay = lr_multiplier, weight_decay
        self.make_optimizer, self.classes = optimizer, classes
        self.multilabel, self.label_smoothing, self.class_weights = multilabel, label_smoothing, class_weights
        judge = MultilabelAveragePrecision(num_classes) if multilabel else MulticlassAccuracy(num_classes, average="macro")
        self.val_judge, self.test_judge = judge, judge.clone()  # nothing of them is in checkpoints

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, (B, num_classes)."""
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss, (), of inputs and labels."""
        return self._measure("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss, (), of inputs and labels."""
        return self._measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss, (), of inputs and labels."""
        return self._measure("test", batch)

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> Tensor:
        """Probabilities, (B, num_classes), of a batch with or without labels."""
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        logits = self(inputs).float()
        probabilities: Tensor = logits.sigmoid() if self.multilabel else logits.softmax(dim=1)
        return probabilities

    def _measure(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean cross entropy of a batch; logs it, and the share of images, or of labels, that are right.

        In validation also the accuracy of the mean class, or the mean average precision of images of several classes.
        """
        inputs, labels = batch
        logits = self(inputs)
        weights = None if self.class_weights is None or stage != "train" else logits.new_tensor(self.class_weights)
        smoothing = self.label_smoothing if stage == "train" else 0.0
        if self.multilabel:
            loss = F.binary_cross_entropy_with_logits(logits, labels + smoothing * (0.5 - labels), weights)
            right = (logits > 0) == (labels > 0.5)
        else:
            loss = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
            right = logits.argmax(dim=1) == (labels if labels.ndim == 1 else labels.argmax(dim=1))  # of mixed images, the larger share
        values: dict[str, Any] = {f"{stage}_loss": loss, f"{stage}_accuracy": right.float().mean()}
        self.log_dict(values, prog_bar=True, batch_size=len(labels), sync_dist=stage != "train")
        if stage != "train":
            judge = self.val_judge if stage == "val" else self.test_judge
            judge.update(logits.float(), labels.long())
            self.log(f"{stage}_{'mean_precision' if self.multilabel else 'balanced_accuracy'}", judge)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """L3RS, or what `optimizer` makes."""
        if self.make_optimizer is None:
            return self.l3rs_optimizer()
        made = self.make_optimizer(self.network, total_steps(self.trainer))
        if isinstance(made, torch.optim.Optimizer):
            return made
        if made.scheduler is None:
            return made.optimizer
        return {"optimizer": made.optimizer, "lr_scheduler": {"scheduler": made.scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The checkpoint has all weights: loading it does not ask for pretrained ones."""
        super().on_save_checkpoint(checkpoint)
        if "pretrained" in checkpoint.get("hyper_parameters", {}):
            checkpoint["hyper_parameters"]["pretrained"] = False


def total_steps(trainer: pl.Trainer) -> int:
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

    def _called_as_here(self, learned: LearnedSchedule) -> LearnedSchedule:
        return _renamed(learned, list(self._called.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_called": self._called}


def _renamed(learned: LearnedSchedule, names: Sequence[str]) -> LearnedSchedule:
    """The schedule with its layers called as in a module: each is then found by its own name, whichever others are there."""
    layers = list(learned.layers)
    for name, slot in zip(names, learned.slots(len(names), names), strict=False):  # a generalist has no slots
        layers[slot] = name
    return replace(learned, layers=tuple(layers))


def _network(model: str | nn.Module, num_classes: int, pretrained: bool, in_chans: int) -> nn.Module:
    if isinstance(model, str):
        check_model(model)
        if pretrained:
            return from_hub(model, in_chans, num_classes, instead="give pretrained=False to start at random")
        return create(model, in_chans=in_chans, num_classes=num_classes)
    try:
        has = head_of(model).out_features
    except ValueError:  # not of timm: its head is not known
        return model
    if has != num_classes:
        raise ValueError(f"the network's head has {has} classes, and num_classes is {num_classes}: see l3rs.networks.create.replace_head")
    return model
