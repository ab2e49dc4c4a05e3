"""Glyphs: 194 classes of grey 32 px characters of nine scripts, drawn with 358 open typeface families, shipped with the package.

`datasets/build_glyphs.py` builds it; `l3rs/data/glyphs/ATTRIBUTION.md` credits every family. Train and validation images are by
different designs: families that share one (Noto Sans and Noto Serif, say) are all on one side.
"""

from __future__ import annotations

from l3rs.data.embedded import load_embedded, read_index, read_split
from l3rs.data.images import ImageSet
from l3rs.data.splits import ClassSplit


def glyphs_split() -> ClassSplit:
    """The committed split: 75 classes pretrain, all others, meta-test, are for judging (Glyphs25Eval); none meta-trains."""
    return read_split("glyphs")


def glyphs_index() -> list[dict[str, str]]:
    """One row an image, in the order of the pixels: its `class`, `side`, typeface family (`set`) and code point (`name`)."""
    return read_index("glyphs")


def load_glyphs() -> ImageSet:
    """The whole set, uint8 (20140, 1, 32, 32); ink is bright on a dark ground."""
    return load_embedded("glyphs")
