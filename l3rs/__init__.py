"""l3rs: fine-tune pretrained networks with a learned layer-wise schedule (L3RS, arXiv 2408.09310)."""

import l3rs._torchvision  # noqa: F401  isort: skip  (first: it mends `import torchvision` beside a CPU-only torch)

from importlib import import_module
from typing import TYPE_CHECKING, Any

from l3rs._version import __version__
from l3rs.controller.config import L3RSConfig
from l3rs.optimizer.l3rs import L3RS
from l3rs.optimizer.timm_registry import register_with_timm
from l3rs.schedules.find import load, save
from l3rs.schedules.hub import push_to_hub, save_pretrained
from l3rs.schedules.schedule import LearnedSchedule

if TYPE_CHECKING:
    from l3rs.networks.head_start import head_start as head_start
    from l3rs.networks.recent_statistics import RecentStatistics as RecentStatistics
    from l3rs.own_images.finetuned import load_classifier as load_classifier

__all__ = ["L3RS", "L3RSConfig", "LearnedSchedule", "__version__", "load", "push_to_hub", "register_with_timm", "save", "save_pretrained"]
_LATER = {
    "RecentStatistics": "l3rs.networks.recent_statistics",
    "head_start": "l3rs.networks.head_start",
    "load_classifier": "l3rs.own_images.finetuned",
}  # they need an extra: imported when they are asked for, and so not in __all__


def __getattr__(name: str) -> Any:
    if name == "learners":  # which errors name, for other learned optimizers
        return import_module("l3rs.learners")
    if name not in _LATER:
        raise AttributeError(f"module 'l3rs' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
