"""L3RS in pytorch-lightning: a module that classifies, a mixin for modules of one's own, callbacks, and a folder of images as data."""

from l3rs.extras import require

require(__name__, "lightning")

from l3rs.lightning.callbacks import BatchNormMode, HeadStart, HeadThenAll, L3RSMonitor, RecentStatistics
from l3rs.lightning.data import ImageFolderDataModule
from l3rs.lightning.mixin import L3RSMixin
from l3rs.lightning.module import L3RSModule

__all__ = [
    "BatchNormMode",
    "HeadStart",
    "HeadThenAll",
    "ImageFolderDataModule",
    "L3RSMixin",
    "L3RSModule",
    "L3RSMonitor",
    "RecentStatistics",
]
