"""From an image file to a network's input: by timm's data config of the model, or as the shipped networks were pretrained."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.data.auto_augment import rand_augment_transform
from timm.models import get_pretrained_cfg
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from l3rs.data.decode import Decoder, check_channels, open_image, side_before_cut
from l3rs.data.embedded import SETS, load_embedded

SCALE = (0.35, 1.0)  # share of an image's area in a training crop; timm's 0.08 is for hundreds of epochs
LARGEST = 4096  # pixels a side
AUGMENTATIONS = ("none", "crop", "randaugment")
# timm's RandAugment for ResNets and vision transformers (`timm.data.auto_augment`), at most at its own strength: at 10 it would ask for
# colours of 0 bits, which Pillow 13 refuses.
POLICY = "rand-m9-mmax9-mstd0.5-inc1"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def data_config(model: str) -> dict[str, Any]:
    """timm's data config of a model: side, share of the image, interpolation, mean and standard deviation of its inputs."""
    known = get_pretrained_cfg(model)
    config: dict[str, Any] = resolve_data_config(pretrained_cfg=known.to_dict() if known else {"input_size": (3, 224, 224)})
    return config


def of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """A number for each of three colours as it is for 3 channels; for 1, grey, their mean."""
    return tuple(values) if channels == 3 else (sum(values) / len(values),)


@dataclass(frozen=True)
class Transform:
    """The recipe of a network's inputs: plain values, which a file can hold.

    Attributes:
        side: height and width of the network's input, in pixels.
        resize: length of the shorter side, in pixels, before the middle is cut out; at least `side`.
        channels: 3, RGB; or 1, grey.
        interpolation: of resizing, by Pillow's name.
        mean, std: normalize pixels over 255, a number for each channel.
        invert: swaps dark and bright first; the shipped networks know ink as bright.
        squash: resizes both sides to `resize`, whatever the image's form.

    Raises:
        ValueError: a value is wrong; the message names it.
    """

    side: int
    resize: int
    channels: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    invert: bool = False
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("side", "resize", "channels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number (got {value!r})")
        if not 1 <= self.side <= self.resize <= LARGEST:
            raise ValueError(f"side and resize must satisfy 1 <= side <= resize <= {LARGEST} pixels (got {self.side} and {self.resize})")
        check_channels(self.channels)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)} (got {self.interpolation!r})")
        for name in ("mean", "std"):
            values = getattr(self, name)
            good = isinstance(values, Sequence) and all(isinstance(v, float | int) and math.isfinite(v) for v in values)
            if not good or len(values) != self.channels or (name == "std" and min(values) <= 0):
                kind = "number above 0" if name == "std" else "finite number"
                raise ValueError(f"{name} must be a {kind} for each of {self.channels} channels (got {values!r})")
            object.__setattr__(self, name, tuple(map(float, values)))
        for name in ("invert", "squash"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false (got {getattr(self, name)!r})")

    @classmethod
    def of(cls, model: str, side: int | None = None, channels: int = 3) -> Transform:
        """Reads timm's data config of a model; with another `side` it cuts out the same share of the image.

        A `crop_mode` of `border`, which three models of timm have, is taken for `center`.

        Raises:
            ValueError: the model's images are not square, and there is no `side`.
        """
        config = data_config(model)
        _, height, width = config["input_size"]
        if side is None and height != width:
            raise ValueError(f"{model} was pretrained on images of {height} x {width} px, which are not square: give --side")
        seen = side or int(width)
        mean, std = (of_channels(config[name], channels) for name in ("mean", "std"))
        resize = side_before_cut(seen, float(config["crop_pct"]))
        squash = config["crop_mode"] == "squash"
        return cls(seen, resize, channels, str(config["interpolation"]), mean, std, squash=squash)

    @classmethod
    def of_shipped(cls, name: str, side: int | None = None) -> Transform:
        """Makes inputs like those that a shipped network was pretrained on: grey, 32 px, nothing cut off. Images are dark on bright."""
        images = load_embedded(name)
        seen = side or SETS[name].side
        return cls(seen, seen, 1, "bilinear", images.mean, images.std, invert=True)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.resize, self.channels, self.interpolation, self.squash)

    @cached_property
    def _augment(self) -> v2.Transform:
        crop = v2.RandomResizedCrop(self.side, SCALE, interpolation=InterpolationMode(self.interpolation), antialias=True)
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    @cached_property
    def _randaugment(self) -> Callable[[Image.Image], Image.Image]:
        mean = [1 - m if self.invert else m for m in self.mean]  # before it is inverted
        paper = tuple(round(255 * m) for m in mean) * (3 // self.channels)  # what is moved out of the picture leaves this colour
        return rand_augment_transform(POLICY, {"translate_const": int(0.45 * self.side), "img_mean": paper})  # type: ignore[no-any-return]

    def evaluation(self, path: str | Path) -> Tensor:
        """Reads the middle of an image, float32 (channels, side, side). Raises `l3rs.data.decode.BrokenImage`."""
        top = round((self.resize - self.side) / 2)  # as torchvision does
        pixels = self._decoder(path)[:, top : top + self.side, top : top + self.side]
        return self._normalized(torch.from_numpy(np.ascontiguousarray(pixels)))

    def training(self, path: str | Path, seed: int, augment: str = "crop") -> Tensor:
        """Reads a part of an image, mirrored or not; `seed` alone decides. Otherwise like `evaluation`.

        Args:
            augment: `randaugment` also changes colours and shape, by timm's RandAugment.
        """
        image = open_image(path, self.channels)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed GPUs too
            image = self._augment(image)
        if augment == "randaugment":
            with seeded(seed):  # timm draws from Python's and numpy's generators
                image = self._randaugment(image.convert("RGB")).convert(image.mode)
        return self._normalized(v2.functional.pil_to_tensor(image))

    def _normalized(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        values = (255 - pixels if self.invert else pixels).float().div_(255)
        return values.sub_(mean).div_(std)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python and numpy, and puts them back."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
