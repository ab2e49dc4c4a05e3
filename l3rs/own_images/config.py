"""The settings of a run on your own images; it checks values before any work."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from l3rs.data.decode import check_channels
from l3rs.data.transform import AUGMENTATIONS, Transform
from l3rs.finetuning.arms import OURS, Arm
from l3rs.finetuning.baselines import PUBLISHED
from l3rs.networks.create import draw_head
from l3rs.networks.pretrained import SHIPPED
from l3rs.networks.source import Source
from l3rs.own_images.rivals import COMPARED, Rival, rivals
from l3rs.schedules.find import GENERALIST

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BALANCES = ("none", "sampling", "weights")
LOGGERS = ("tensorboard", "csv", "wandb")
HEAD_ALONE = "head"
HEAD_RATES = {10: 0.03, 25: 0.03, 50: 0.01, 100: 0.01}  # of Adam, by steps: evaluate/results/rates/A-head.yaml


@dataclass(frozen=True)
class OwnImagesConfig:
    """The settings of a run; it checks values before any work.

    Attributes:
        data: folder of the images; without val/, a fifth of each class is for validation.
        labels: CSV file of labels, where an image may be of several classes; see the documentation.
        model: name of the network in timm.
        steps: steps of training; None is ten times through the images, but 100 to 500 steps.
        epochs: or times through the images.
        weights: `icons` or `glyphs`, which are shipped, or a file of tensors; None takes timm's pretrained weights.
        from_scratch: starts from random weights instead.
        width: channels of the first stage, for `resnet18` and `resnet34`; None is timm's own width, and 16 with shipped weights.
        side: height and width, in pixels, of the network's input; None takes timm's data config, and 32 with shipped weights.
        img_size: the same, for vision transformers, which are made for one size.
        channels: 3, colour, or 1, grey; None is 3, and 1 with shipped weights.
        batch_size: images a step, in each process, at most all training images.
        augment: of training images: `none`; `crop` and mirror at random; or also timm's `randaugment`; None is crop, and none with shipped
            weights, which were pretrained without.
        mixup: strength with which two training images are blended, by timm's Mixup; 0 is off.
        cutmix: strength with which a part of one is pasted into another; 0 is off.
        label_smoothing: share of each label that is spread over all classes.
        balance: where classes have unlike numbers of images: `sampling` draws all classes equally often, `weights` gives their losses
            equal weights; the best weights are then chosen by balanced accuracy.
        learned: the schedule: "auto", a shipped name, a path, or a Hub id.
        head_start: begins with a head in closed form.
        refresh: judges by BatchNorm's statistics of the last batches; the running ones lag behind the weights.
        head_only: trains the head alone: in closed form, and then by a tuned Adam, which is about as good as L3RS there.
        average: judges and keeps a running average of the weights (Lightning's WeightAveraging).
        patience: stop after this many validations in a row that are no better, in accuracy or, at equal accuracy, in loss; by default
            never.
        validate_every: steps between two validations; None is at most ten of them, in less than half of the time.
        compare: baselines to train on the same batches, each alone, at a learning rate, as in `adam=3e-4`, or at several, as in
            `adam=1e-4,3e-4`; without a name, adamw=1e-3, fastai, autogluon, prodigy and
            schedule-free.
        precision: of the forward and backward pass, by Lightning's name.
        devices: accelerators, or processes on CPU, each with its share of a larger batch.
        logger: loggers of Lightning.
        seed: seed of every random draw.
        out: folder of the run; None is l3rs-NAME, after the images' folder.
        workers: processes that decode images; None depends on the images and the machine.
    """

    data: str
    labels: str | None = None
    model: str = "resnet34"
    steps: int | None = None
    epochs: int | None = None
    weights: str | None = None
    from_scratch: bool = False
    width: int | None = None
    side: int | None = None
    img_size: int | None = None
    channels: int | None = None
    batch_size: int = 64
    augment: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    balance: str = "none"
    learned: str = "auto"
    head_start: bool = True
    refresh: bool = True
    head_only: bool = False
    average: bool = False
    patience: int | None = None
    validate_every: int | None = None
    compare: tuple[str, ...] = ()
    precision: str = "32-true"
    devices: int = 1
    logger: tuple[str, ...] = field(default=())
    seed: int = 0
    out: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        least = {
            "steps": 1, "epochs": 1, "batch-size": 1, "side": 1, "img-size": 1, "patience": 1, "validate-every": 1, "devices": 1, "seed": 0,
            "workers": 0,
        }  # fmt: skip
        for name, smallest in least.items():
            value = getattr(self, name.replace("-", "_"))
            if value is not None and value < smallest:
                raise ValueError(f"--{name} must be a whole number of at least {smallest} (got {value})")
        if self.seed >= 2**63:
            raise ValueError(f"--seed must be below 2^63 (got {self.seed})")
        for name in ("mixup", "cutmix", "label_smoothing"):
            value, below = getattr(self, name), 1.0 if name == "label_smoothing" else math.inf
            if not 0 <= value < below:
                limit = " and below 1" if math.isfinite(below) else ", and finite"
                raise ValueError(f"--{name.replace('_', '-')} must be a number of at least 0{limit} (got {value})")
        chosen = {"precision": PRECISIONS, "balance": BALANCES, "augment": (None, *AUGMENTATIONS)}
        for name, allowed in chosen.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} must be one of {', '.join(a for a in allowed if a)} (got {getattr(self, name)!r})")
        for name in self.logger:
            if name not in LOGGERS:
                raise ValueError(f"--logger must be one or more of {', '.join(LOGGERS)} (got {name!r})")
        check_channels(3 if self.channels is None else self.channels)
        if self.weights in SHIPPED and self.channels not in (None, 1):
            raise ValueError(
                f"--channels must be 1 with the shipped weights {self.weights}, whose network sees grey (got {self.channels}): leave it out"
            )
        self._check_pairs()
        self.source()  # checks model, width and weights
        for rival in rivals(self.compare, head=self.head):
            if self.precision == "16-mixed" and any(arm.optimizer == "autogluon" for arm in rival.arms):
                raise ValueError("--precision must be 32-true or bf16-mixed with --compare autogluon, which clips gradients (got 16-mixed)")

    def _check_pairs(self) -> None:
        """Raises ValueError where two options contradict each other."""
        pairs = {
            ("steps", "epochs"): "the other follows from it",
            ("side", "img_size"): "--img-size is both",
            ("labels", "balance"): "images of several classes each have no one class to balance",
            ("head_only", "average"): "a head alone needs no average",
        }
        for (one, other), why in pairs.items():
            if all(getattr(self, name) not in (None, False, "none") for name in (one, other)):
                names = [f"--{name}".replace("_", "-") for name in (one, other)]
                raise ValueError(f"{names[0]} and {names[1]} do not go together: {why}; leave one out")
        if self.head_only and self.learned != "auto":
            raise ValueError(f"--head-only and --learned do not go together: no schedule moves a head alone (got {self.learned})")
        if self.head_only and not self.head_start:
            raise ValueError("--head-only and --no-head-start do not go together: a head alone begins in closed form; leave one out")
        tuned = [text for text in self.compare if text in COMPARED and text not in PUBLISHED]
        if self.head_only and tuned:
            raise ValueError(
                f"--compare must give a learning rate with --head-only, as in {tuned[0]}=1e-3 (got {tuned[0]!r}): those that are tuned "
                "are of whole networks"
            )

    def source(self) -> Source:
        """The network and the source of its weights."""
        return Source(self.model, self.width, self.weights, self.from_scratch, img_size=self.img_size)

    @cached_property
    def transform(self) -> Transform:
        """Makes its inputs."""
        if self.weights in SHIPPED:
            return Transform.of_shipped(str(self.weights), self.side)
        return Transform.of(self.model, self.side or self.img_size, 3 if self.channels is None else self.channels)

    @property
    def augmentation(self) -> str:
        """What happens to training images."""
        return self.augment or ("none" if self.weights in SHIPPED else "crop")

    @property
    def head(self) -> str:
        """What its head is at first: with `labels`, of images of several classes each, there is none in closed form."""
        return "start" if (self.head_start or self.head_only) and self.labels is None else "random"

    @property
    def refreshed(self) -> bool:
        """Whether BatchNorm's statistics are of the last batches: those of an average are averages too, and a head alone moves none."""
        return self.refresh and not self.average and not self.head_only

    @property
    def schedule(self) -> str:
        """The schedule to find: `auto` is the generalist, which met many networks, and at home whichever fits best."""
        return GENERALIST if self.learned == "auto" and self.weights not in SHIPPED else self.learned

    def arms(self, steps: int) -> list[Rival]:
        """L3RS, or the head alone, and the baselines of `compare`, for a run of this many steps."""
        if self.head_only:
            lr = HEAD_RATES[min(HEAD_RATES, key=lambda k: abs(math.log(k / steps)))]
            ours = Arm(HEAD_ALONE, "adam", lr, source=f"{'in closed form, then ' if self.head == 'start' else ''}Adam tuned on Icons25")
        else:
            ours = Arm(OURS, OURS, source="learned")
        return [Rival((ours,)), *rivals(self.compare, steps, self.head)]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.out) if self.out is not None else Path(f"l3rs-{Path(self.data).resolve().name}")

    def network(self, num_classes: int) -> nn.Module:
        """Makes the first network of every arm, with a head drawn from the seed.

        Raises:
            ValueError: its weights are missing, or do not fit.
        """
        torch.manual_seed(self.seed)
        network = self.source().network(self.transform.channels, num_classes)
        if not self.from_scratch:
            with suppress(ValueError):  # the head is no dense layer: timm drew it after manual_seed
                draw_head(network, self.seed)
        return network

    @property
    def origin(self) -> str:
        """The start of the network, in words."""
        if self.from_scratch:
            return "from scratch"
        return f"weights {self.weights}" if self.weights else "timm's pretrained weights"
