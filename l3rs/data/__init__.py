"""Images, class splits and the embedded data sets."""

from l3rs.data.icons import load_icons
from l3rs.data.images import ImageSet
from l3rs.data.splits import ClassSplit

__all__ = ["ClassSplit", "ImageSet", "load_icons"]
