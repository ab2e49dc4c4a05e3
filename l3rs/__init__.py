"""l3rs: fine-tune pretrained networks with a learned layer-wise schedule (L3RS, arXiv 2408.09310)."""

import l3rs._torchvision  # noqa: F401  isort: skip  (first: it mends `import torchvision` beside a CPU-only torch)

from importlib.metadata import PackageNotFoundError, version

from l3rs.checkpoint import load, save
from l3rs.config import L3RSConfig
from l3rs.optimizer import L3RS
from l3rs.schedule import LearnedSchedule
from l3rs.timm_registry import register_with_timm

try:
    __version__ = version("l3rs")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0"

__all__ = ["L3RS", "L3RSConfig", "LearnedSchedule", "__version__", "load", "register_with_timm", "save"]
