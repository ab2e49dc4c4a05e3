"""Reading a data set that is shipped with the package: 32 px grey pictures in 16 levels of ink (`datasets/embedded_set.py` writes them)."""

from __future__ import annotations

import csv
import io
import lzma
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import torch

from l3rs.data.images import ImageSet, statistics
from l3rs.data.splits import ClassSplit

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SIDE = 32  # pixels
INK = 17  # the file holds 16 levels of ink, 0 to 15; times 17 they are 0 to 255


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


@cache
def load_embedded(name: str) -> ImageSet:
    """The whole set, uint8 (N, 1, 32, 32); ink is bright on a dark ground."""
    rows = read_index(name)
    pixels = np.frombuffer(lzma.decompress((files_of(name) / "pixels.xz").read_bytes()), dtype=np.uint8) * np.uint8(INK)
    classes = tuple(sorted({row["class"] for row in rows}))
    number = {label: i for i, label in enumerate(classes)}
    validation = torch.tensor([row["side"] == "validation" for row in rows])
    images = torch.from_numpy(pixels.reshape(-1, 1, SIDE, SIDE).copy())
    mean, std = statistics(images[~validation])
    return ImageSet(
        name=name,
        pixels=images,
        labels=torch.tensor([number[row["class"]] for row in rows]),
        classes=classes,
        validation=validation,
        mean=(mean,),
        std=(std,),
    )
