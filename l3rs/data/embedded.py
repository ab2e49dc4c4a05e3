"""Reading the data sets that are shipped with the package (`datasets/embedded_set.py` writes them).

Icons and glyphs are 32 px grey pictures in 16 levels of ink; emoji are 64 px pictures in colour.
"""

from __future__ import annotations

import csv
import io
import lzma
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from l3rs.data.images import ImageSet, statistics
from l3rs.data.splits import ClassSplit

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

INK = 17  # the file of a grey set holds 16 levels of ink, 0 to 15; times 17 they are 0 to 255
COLUMNS = 64  # images in a row of the picture that holds a colour set


@dataclass(frozen=True)
class Form:
    """What the images of an embedded set are: channels, height and width in pixels as stored, and the sides that they can be resized to."""

    channels: int
    side: int
    resized: tuple[int, ...] = ()

    @property
    def sides(self) -> tuple[int, ...]:
        """Every height and width that the images can be had in."""
        return (self.side, *self.resized)


SETS = {"icons": Form(1, 32), "glyphs": Form(1, 32), "emoji": Form(3, 64, resized=(32, 128))}


def files_of(name: str) -> Traversable:
    """The folder of the embedded set `name`."""
    return resources.files("l3rs.data") / name


def read_split(name: str) -> ClassSplit:
    """The committed class split of the embedded set `name`."""
    with resources.as_file(files_of(name) / "split.json") as path:
        return ClassSplit.read(path)


def read_index(name: str) -> list[dict[str, str]]:
    """One row an image, in the order of the pixels: its `class`, `side`, `set` and `name`."""
    return list(csv.DictReader(io.StringIO(lzma.decompress((files_of(name) / "index.csv.xz").read_bytes()).decode())))


def read_pixels(name: str, number: int) -> Tensor:
    """The pixels of a set's `number` images, uint8 (N, channels, side, side)."""
    form, files = SETS[name], files_of(name)
    if form.channels == 1:
        ink = np.frombuffer(lzma.decompress((files / "pixels.xz").read_bytes()), dtype=np.uint8) * np.uint8(INK)
        return torch.from_numpy(ink.reshape(number, 1, form.side, form.side))
    sheet = np.asarray(Image.open(io.BytesIO((files / "pixels.webp").read_bytes())).convert("RGB"))
    apart = sheet.reshape(-1, form.side, COLUMNS, form.side, form.channels).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(apart.reshape(-1, form.channels, form.side, form.side)[:number].copy())


def load_embedded(name: str, side: int | None = None) -> ImageSet:
    """The whole set, uint8 (N, channels, side, side); grey ink is bright on a dark ground, colours stand on white.

    Args:
        name: one of `SETS`.
        side: height and width, in pixels, one of the set's `sides`: images are averaged down, or interpolated, to it. None is as stored.
    """
    return _load(name, side or SETS[name].side)


@cache
def _load(name: str, side: int) -> ImageSet:
    stored = SETS[name].side
    if side != stored:
        full, mode = _load(name, stored), "area" if side < stored else "bilinear"
        resized = [F.interpolate(part.float(), side, mode=mode).round().to(torch.uint8) for part in full.pixels.split(512)]
        return _image_set(name, torch.cat(resized), full.labels, full.classes, full.validation)
    rows = read_index(name)
    classes = tuple(sorted({row["class"] for row in rows}))
    number = {label: i for i, label in enumerate(classes)}
    labels = torch.tensor([number[row["class"]] for row in rows])
    validation = torch.tensor([row["side"] == "validation" for row in rows])
    return _image_set(name, read_pixels(name, len(rows)), labels, classes, validation)


def _image_set(name: str, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], validation: Tensor) -> ImageSet:
    """The set, normalized by the mean and the standard deviation of each channel of its training images."""
    seen = [statistics(channel[~validation]) for channel in pixels.unbind(1)]
    mean, std = tuple(m for m, _ in seen), tuple(s for _, s in seen)
    return ImageSet(name=name, pixels=pixels, labels=labels, classes=classes, validation=validation, mean=mean, std=std)
