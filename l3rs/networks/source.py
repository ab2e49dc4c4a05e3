"""Which network, and where its weights come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from l3rs.networks.create import check_model, create
from l3rs.networks.pretrained import SHIPPED, from_hub, load

WIDTH = 16  # of the shipped networks


@dataclass(frozen=True)
class Source:
    """A network of timm with weights that are shipped, from a file, or timm's own; or without.

    Attributes:
        model: its name in timm.
        width: channels of the first stage, for `resnet18` and `resnet34`; None is timm's own, and that of the shipped networks for these.
        weights: `icons` or `glyphs`, which are shipped, or a file; None is timm's own.
        from_scratch: whether it starts at random instead.
        img_size: pixels a side, for vision transformers, which are made for one size; None is timm's own.
        model_args: what else timm's `create_model` is given; None is nothing.

    Raises:
        ValueError: values that are wrong, or do not go together; the message says which.
    """

    model: str
    width: int | None = None
    weights: str | None = None
    from_scratch: bool = False
    model_args: dict[str, Any] | None = field(default=None, hash=False)
    img_size: int | None = None

    def __post_init__(self) -> None:
        if self.from_scratch and self.weights is not None:
            raise ValueError(f"weights is {self.weights}, and from_scratch is set; choose one")
        if self.shipped and (self.model != "resnet34" or self.width not in (None, WIDTH) or self.model_args):
            other = self.model if self.width is None else f"{self.model} at width {self.width}"
            what = "model_args is given" if self.model_args else f"model is {other}"
            raise ValueError(f"the shipped weights {self.weights} are of resnet34 at width {WIDTH}, and {what}")
        if self.from_hub and self.model_args:
            raise ValueError(
                "model_args is given, and pretrained weights are of timm's own network: give weights, or from_scratch, or leave it out"
            )
        if self.from_hub and self.width is not None:
            raise ValueError(
                f"width is {self.width}, and pretrained weights are of timm's own width: give weights, or from_scratch, or leave it out"
            )
        check_model(self.model, self.width, self.model_args)

    @property
    def shipped(self) -> str | None:
        """Which of the shipped networks it is, if it is one."""
        return self.weights if self.weights in SHIPPED else None

    @property
    def from_hub(self) -> bool:
        """Whether the weights are timm's."""
        return self.weights is None and not self.from_scratch

    @property
    def stage_width(self) -> int | None:
        """As in `l3rs.networks.create.create`."""
        return WIDTH if self.shipped else self.width

    def fingerprint(self) -> str:
        """The first twelve hex digits of the SHA-256 of a weights file; empty for other sources. Raises OSError if it cannot be read."""
        return "" if self.weights is None or self.shipped else _fingerprint(Path(self.weights), Path(self.weights).stat().st_mtime_ns)

    def network(self, in_chans: int, num_classes: int) -> nn.Module:
        """The network, with a head of `num_classes` classes that is yet to be drawn.

        Raises:
            ValueError: the weights cannot be had, or do not fit.
        """
        if self.from_hub:
            return from_hub(self.model, in_chans, num_classes, img_size=self.img_size)
        model_args = (self.model_args or {}) | ({} if self.img_size is None else {"img_size": self.img_size})
        try:
            network = create(self.model, self.stage_width, in_chans, num_classes, model_args or None)
        except ValueError as error:
            if self.img_size is None or self.model_args:
                raise
            cure = f"give --side {self.img_size}, unless it is made for one size"
            raise ValueError(f"{self.model} takes no --img-size (got {self.img_size}): {cure} ({error})") from None
        if self.weights is not None:
            load(network, self.weights)
        return network


@lru_cache(maxsize=64)  # every row of a comparison has it
def _fingerprint(file: Path, changed: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
