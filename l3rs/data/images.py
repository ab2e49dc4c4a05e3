"""A set of labelled images in memory, with a train and a validation side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        name: of the set.
        pixels: uint8 (N, channels, height, width).
        labels: int64 (N,), indices into `classes`.
        classes: the names of all classes.
        validation: bool (N,); True on the validation side.
        mean, std: of the train side's pixels, over 255.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    validation: Tensor
    mean: float
    std: float

    def inputs(self, indices: Tensor) -> Tensor:
        """The images at `indices` as a network takes them: normalized float32 (len(indices), channels, height, width)."""
        return (self.pixels[indices].float() / 255 - self.mean) / self.std

    @cached_property
    def by_class(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """For each class its (train, validation) image indices, int64 arrays in ascending order."""
        labels, validation = self.labels.numpy(), self.validation.numpy()
        return tuple(
            (np.flatnonzero((labels == c) & ~validation), np.flatnonzero((labels == c) & validation)) for c in range(len(self.classes))
        )

    def contact_sheet(self, path: str | Path, classes: tuple[str, ...] | None = None, columns: int = 24) -> None:
        """Draws a picture with a row for each class: its name, train images, and validation images on the right third.

        Raises:
            ValueError: a name in `classes` is not a class of this set.
        """
        from PIL import Image, ImageDraw

        names = self.classes if classes is None else classes
        unknown = [n for n in names if n not in self.classes]
        if unknown:
            raise ValueError(f"no such class in {self.name}: {unknown[0]!r}; it has {len(self.classes)}, such as {self.classes[:3]}")
        side, margin, on_validation = self.pixels.shape[-1], 130, columns // 3
        sheet = Image.new("L", (margin + columns * (side + 2) + 8, len(names) * (side + 2)), 255)
        draw = ImageDraw.Draw(sheet)
        for row, name in enumerate(names):
            draw.text((4, row * (side + 2) + side // 3), name, fill=0)
            train, validation = self.by_class[self.classes.index(name)]
            shown = [*enumerate(train[: columns - on_validation]), *enumerate(validation[:on_validation], columns - on_validation)]
            for column, index in shown:
                gap = 8 if column >= columns - on_validation else 0
                picture = Image.fromarray(255 - self.pixels[index, 0].numpy())
                sheet.paste(picture, (margin + column * (side + 2) + gap, row * (side + 2)))
        sheet.save(path)


def statistics(pixels: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels, over 255."""
    values = torch.bincount(pixels.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (values @ levels) / values.sum()
    return float(mean), float((values @ (levels - mean) ** 2 / values.sum()).sqrt())
