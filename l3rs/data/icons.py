"""Icons: 440 classes of grey 32 px icons from 150 open icon sets, shipped with the package.

`datasets/build_icons.py` builds it; `l3rs/data/icons/ATTRIBUTION.md` credits every icon set. Train and validation images are by
different designers: icon sets that share an author or draw on each other are all on one side.
"""

from __future__ import annotations

import csv
import io
import lzma
from functools import lru_cache
from importlib import resources

import numpy as np
import torch

from l3rs.data.images import ImageSet, statistics
from l3rs.data.splits import ClassSplit

FILES = resources.files("l3rs.data") / "icons"
SIDE = 32
INK = 17  # the file holds 16 levels of ink, 0 to 15; times 17 they are 0 to 255


def icons_split() -> ClassSplit:
    """The committed split: 200 classes pretrain, 100 meta-train (Icons25), 40 meta-validation, 100 meta-test (Icons25Eval)."""
    with resources.as_file(FILES / "split.json") as path:
        return ClassSplit.read(path)


def icons_index() -> list[dict[str, str]]:
    """One row an image, in the order of the pixels: its `class`, `side`, icon `set` prefix and icon `name`."""
    return list(csv.DictReader(io.StringIO(lzma.decompress((FILES / "index.csv.xz").read_bytes()).decode())))


@lru_cache(maxsize=1)
def load_icons() -> ImageSet:
    """The whole set, uint8 (31506, 1, 32, 32); ink is bright on a dark ground."""
    rows = icons_index()
    pixels = np.frombuffer(lzma.decompress((FILES / "pixels.xz").read_bytes()), dtype=np.uint8) * np.uint8(INK)
    classes = tuple(sorted({row["class"] for row in rows}))
    number = {name: i for i, name in enumerate(classes)}
    validation = torch.tensor([row["side"] == "validation" for row in rows])
    images = torch.from_numpy(pixels.reshape(-1, 1, SIDE, SIDE).copy())
    mean, std = statistics(images[~validation])
    return ImageSet(
        name="icons",
        pixels=images,
        labels=torch.tensor([number[row["class"]] for row in rows]),
        classes=classes,
        validation=validation,
        mean=mean,
        std=std,
    )
