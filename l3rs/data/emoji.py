"""Emoji: 569 classes of signs in colour, 64 px, drawn by six vendors in eight open sets, shipped with the package.

`datasets/build_emoji.py` builds it; `l3rs/data/emoji/ATTRIBUTION.md` credits every set. Train and validation images are by different
vendors. There are few: about five to train a class on and three to judge it by, so that a task goes through its images many times.
Give tasks small batches: 25 classes of it take `batch_size=32` and `evaluation_size=50`.
"""

from __future__ import annotations

from l3rs.data.embedded import load_embedded, read_index, read_split
from l3rs.data.images import ImageSet
from l3rs.data.splits import ClassSplit


def emoji_split() -> ClassSplit:
    """The committed split: 329 classes pretrain, 100 meta-train (Emoji25), 40 meta-validation, 100 meta-test (Emoji25Eval)."""
    return read_split("emoji")


def emoji_index() -> list[dict[str, str]]:
    """One row an image, in the order of the pixels: its `class`, `side`, emoji `set` prefix and `name`."""
    return read_index("emoji")


def load_emoji(side: int | None = None) -> ImageSet:
    """The whole set, uint8 (4041, 3, 64, 64), on a white ground; with `side=32` averaged down to 32 pixels, with 128 enlarged."""
    return load_embedded("emoji", side)
