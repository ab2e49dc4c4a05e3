"""A set of labelled images, decoded, with a train and a validation side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images.

    Attributes:
        name: of the set.
        pixels: uint8 (N, channels, height, width), in memory or mapped from a file.
        labels: int64 (N,), indices into `classes`; -1 for an image of no class, which is never used.
        classes: the ids of all classes.
        validation: bool (N,); True on the validation side.
        mean, std: what inputs are normalized with, a number for each channel, of pixels over 255.
        side: height and width of what a network sees, cut out of the pixels; None is all of them.
        mirror: whether training images are mirrored at random.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    validation: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int | None = None
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.side is not None and self.side > min(self.pixels.shape[-2:]):
            raise ValueError(f"side must be at most that of the images of {self.name}, {tuple(self.pixels.shape[-2:])} (got {self.side})")

    @property
    def margin(self) -> tuple[int, int]:
        """How many pixels higher and wider the stored images are than what a network sees."""
        height, width = self.pixels.shape[-2:]
        return (0, 0) if self.side is None else (height - self.side, width - self.side)

    @property
    def augmented(self) -> bool:
        """Whether training images are cut out or mirrored at random."""
        return self.mirror or any(self.margin)

    def inputs(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        """Images as a network takes them: normalized float32 (n, channels, side, side).

        Args:
            indices: int64 (n,).
            crops: int (n, 3), top, left and whether mirrored; None cuts out the middle.
        """
        pixels = self._cut(indices, crops) if self.augmented else self.pixels[indices]
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)

    def _cut(self, indices: Tensor, crops: Tensor | None) -> Tensor:
        """What is seen of each image, mirrored or not: uint8, as that is a quarter of what moving floats costs."""
        (down, right), (*_, height, width) = self.margin, self.pixels.shape
        height, width = height - down, width - right
        places = [(down // 2, right // 2, 0)] * len(indices) if crops is None else crops.tolist()
        seen = torch.empty(len(indices), self.pixels.shape[1], height, width, dtype=torch.uint8)
        for i, (index, (y, x, mirrored)) in enumerate(zip(indices.tolist(), places, strict=True)):
            cut = self.pixels[index, :, y : y + height, x : x + width]
            seen[i] = cut.flip(-1) if mirrored and self.mirror else cut
        return seen

    @cached_property
    def by_class(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """For each class its (train, validation) image indices, int64 arrays in ascending order."""
        labels, validation = self.labels.numpy(), self.validation.numpy()
        order = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[order], np.arange(len(self.classes) + 1))
        members = [order[a:b] for a, b in pairwise(bounds.tolist())]
        return tuple((m[~validation[m]], m[validation[m]]) for m in members)

    def contact_sheet(self, path: str | Path, classes: tuple[str, ...] | None = None, columns: int = 24) -> None:
        """Draws a picture with a row for each class: its name, train images, and validation images on the right third.

        Grey images are drawn as ink on paper, dark on white.

        Raises:
            ValueError: a name in `classes` is not a class of this set.
        """
        from PIL import Image, ImageDraw

        names = self.classes if classes is None else classes
        unknown = [n for n in names if n not in self.classes]
        if unknown:
            raise ValueError(f"no such class in {self.name}: {unknown[0]!r}; it has {len(self.classes)}, such as {self.classes[:3]}")
        grey, side = self.pixels.shape[1] == 1, self.pixels.shape[-1]
        margin, on_validation = 130, columns // 3
        sheet = Image.new("L" if grey else "RGB", (margin + columns * (side + 2) + 8, len(names) * (side + 2)), "white")
        draw = ImageDraw.Draw(sheet)
        for row, name in enumerate(names):
            draw.text((4, row * (side + 2) + side // 3), name, fill="black")
            train, validation = self.by_class[self.classes.index(name)]
            shown = [*enumerate(train[: columns - on_validation]), *enumerate(validation[:on_validation], columns - on_validation)]
            for column, index in shown:
                gap = 8 if column >= columns - on_validation else 0
                pixels = self.pixels[index].permute(1, 2, 0).numpy()
                picture = Image.fromarray(255 - pixels[:, :, 0] if grey else pixels)
                sheet.paste(picture, (margin + column * (side + 2) + gap, row * (side + 2)))
        sheet.save(path)


def statistics(pixels: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels, over 255."""
    values = torch.bincount(pixels.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (values @ levels) / values.sum()
    return float(mean), float((values @ (levels - mean) ** 2 / values.sum()).sqrt())
