"""The settings of a run on your own images; it checks values before any work."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from l3rs.data.decode import check_channels
from l3rs.data.transform import Transform
from l3rs.finetuning.arms import OURS, Arm
from l3rs.finetuning.baselines import nearest_horizon, tuned_learning_rate, tuned_learning_rates
from l3rs.networks.create import draw_head
from l3rs.networks.pretrained import SHIPPED
from l3rs.networks.source import Source

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# Not schedule-free, which evaluates other weights than it trains; nor those whose state does not resume.
COMPARED = ("adam", "adamw", "adam-cosine", "adam-cosine-head10", "sgd-cosine")


def parse_arm(text: str, steps: int) -> Arm:
    """Reads `adam`, at the rate tuned for this many steps, or `adam=3e-4`. Raises ValueError."""
    name, equals, value = text.partition("=")
    if name not in COMPARED:
        raise ValueError(
            f"--compare must be one or more of {', '.join(COMPARED)}, alone or with a learning rate, as in adam=3e-4 (got {text!r})"
        )
    if equals:
        try:
            lr = float(value)
        except ValueError:
            lr = math.nan
        if not 0 < lr < math.inf:
            raise ValueError(f"a learning rate of --compare must be a number above 0, as in adam=3e-4 (got {text!r})")
        return Arm(f"{name}={lr:g}", name, lr, source="given")
    tuned = name if name in tuned_learning_rates() else "adam"  # adamw takes adam's: its decay does next to nothing in short runs
    source = f"tuned on Icons25{'' if tuned == name else f' for {tuned}'}, at {nearest_horizon(tuned, steps)} steps"
    return Arm(name, name, tuned_learning_rate(tuned, steps), source=source)


@dataclass(frozen=True)
class OwnImagesConfig:
    """The settings of a run; it checks values before any work.

    Attributes:
        data: folder of the images; without val/, a fifth of each class is for validation.
        model: name of the network in timm.
        steps: steps of training.
        weights: `icons` or `glyphs`, which are shipped, or a file of tensors; None takes timm's pretrained weights.
        from_scratch: starts from random weights instead.
        width: channels of the first stage, for `resnet18` and `resnet34`; None is timm's own width, and 16 with shipped weights.
        side: height and width, in pixels, of the network's input; None takes timm's data config, and 32 with shipped weights.
        channels: 3, colour, or 1, grey; None is 3, and 1 with shipped weights.
        batch_size: images a step, at most all training images.
        augment: crops and mirrors training images at random; never with shipped weights, which were pretrained without.
        learned: the schedule: "auto", a shipped name, or a path.
        compare: baselines to train on the same batches, at tuned learning rates or given ones, as in `adam=3e-4`.
        precision: of the forward and backward pass, by Lightning's name.
        seed: seed of every random draw.
        out: folder of the run; None is l3rs-NAME, after the images' folder.
        workers: processes that decode images; None depends on the images and the machine.
    """

    data: str
    model: str = "resnet34"
    steps: int = 300
    weights: str | None = None
    from_scratch: bool = False
    width: int | None = None
    side: int | None = None
    channels: int | None = None
    batch_size: int = 64
    augment: bool = True
    learned: str = "auto"
    compare: tuple[str, ...] = ()
    precision: str = "32-true"
    seed: int = 0
    out: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch-size": 1, "side": 1, "seed": 0, "workers": 0}
        for name, smallest in least.items():
            value = getattr(self, name.replace("-", "_"))
            if value is not None and value < smallest:
                raise ValueError(f"--{name} must be a whole number of at least {smallest} (got {value})")
        if self.seed >= 2**63:
            raise ValueError(f"--seed must be below 2^63 (got {self.seed})")
        if self.precision not in PRECISIONS:
            raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)} (got {self.precision!r})")
        check_channels(3 if self.channels is None else self.channels)
        if self.weights in SHIPPED and self.channels not in (None, 1):
            raise ValueError(
                f"--channels must be 1 with the shipped weights {self.weights}, whose network sees grey (got {self.channels}): leave it out"
            )
        self.source()  # checks model, width and weights
        for text in self.compare:
            parse_arm(text, self.steps)

    def source(self) -> Source:
        """The network and the source of its weights."""
        return Source(self.model, self.width, self.weights, self.from_scratch)

    @cached_property
    def transform(self) -> Transform:
        """Makes its inputs."""
        if self.weights in SHIPPED:
            return Transform.of_shipped(str(self.weights), self.side)
        return Transform.of(self.model, self.side, 3 if self.channels is None else self.channels)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """L3RS, and the baselines of `compare`."""
        return tuple(dict.fromkeys([Arm(OURS, OURS, source="learned"), *(parse_arm(text, self.steps) for text in self.compare)]))

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
