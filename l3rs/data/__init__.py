"""Images, class splits, trees of image files and the embedded data sets."""

from l3rs.extras import require

require(__name__, "images")

from l3rs.data.emoji import load_emoji
from l3rs.data.glyphs import load_glyphs
from l3rs.data.icons import load_icons
from l3rs.data.images import ImageSet
from l3rs.data.splits import ClassSplit
from l3rs.data.trees import ImageTree, read_tree

__all__ = ["ClassSplit", "ImageSet", "ImageTree", "load_emoji", "load_glyphs", "load_icons", "read_tree"]
