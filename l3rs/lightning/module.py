"""A LightningModule that classifies images with any model of timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from l3rs.finetuning.baselines import Recipe
from l3rs.lightning.mixin import L3RSMixin, planned_steps
from l3rs.networks.create import check_model, create, head_inside
from l3rs.networks.pretrained import from_hub
from l3rs.schedules.schedule import LearnedSchedule

MakeOptimizer = Callable[[nn.Module, int], "torch.optim.Optimizer | Recipe"]


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
        judge = MultilabelAveragePrecision(num_classes) if multilabel else BalancedAccuracy(num_classes)
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
        """The mean cross entropy of a batch; logs it, and the share of images that are right, of several classes with all of these.

        In validation also the accuracy of the mean class, or the mean average precision of images of several classes.
        """
        inputs, labels = batch
        logits = self(inputs)
        weights = None if self.class_weights is None or stage != "train" else logits.new_tensor(self.class_weights)
        smoothing = self.label_smoothing if stage == "train" else 0.0
        if self.multilabel:
            loss = F.binary_cross_entropy_with_logits(logits, labels + smoothing * (0.5 - labels), weights)
            right = ((logits > 0) == (labels > 0.5)).all(dim=1)
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
        made = self.make_optimizer(self.network, planned_steps(self.trainer))
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


class BalancedAccuracy(MulticlassAccuracy):
    """The mean recall of the classes that have images. The macro average of torchmetrics counts one without as wrong, once it is taken."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None)

    def compute(self) -> Tensor:
        """The mean, ()."""
        right, _, _, missed = self._final_state()
        of = right + missed
        return (right[of > 0] / of[of > 0]).mean()


def _network(model: str | nn.Module, num_classes: int, pretrained: bool, in_chans: int) -> nn.Module:
    if isinstance(model, str):
        check_model(model)
        if pretrained:
            return from_hub(model, in_chans, num_classes, instead="give pretrained=False to start at random")
        return create(model, in_chans=in_chans, num_classes=num_classes)
    try:
        has = head_inside(model).out_features
    except ValueError:  # its head is not known
        return model
    if has != num_classes:
        raise ValueError(f"the network's head has {has} classes, and num_classes is {num_classes}: give it a new head, or another number")
    return model
