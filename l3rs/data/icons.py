"""Icons: 440 classes of grey 32 px icons from 150 open icon sets, shipped with the package.

`datasets/build_icons.py` builds it; `l3rs/data/icons/ATTRIBUTION.md` credits every icon set. Train and validation images are by
different designers: icon sets that share an author or draw on each other are all on one side.
"""

from __future__ import annotations

from l3rs.data.embedded import load_embedded, read_index, read_split
from l3rs.data.images import ImageSet
from l3rs.data.splits import ClassSplit


def icons_split() -> ClassSplit:
    """The committed split: 200 classes pretrain, 100 meta-train (Icons25), 40 meta-validation, 100 meta-test (Icons25Eval)."""
    return read_split("icons")


def icons_index() -> list[dict[str, str]]:
    """One row an image, in the order of the pixels: its `class`, `side`, icon `set` prefix and icon `name`."""
    return read_index("icons")


def load_icons() -> ImageSet:
    """The whole set, uint8 (31506, 1, 32, 32); ink is bright on a dark ground."""
    return load_embedded("icons")
