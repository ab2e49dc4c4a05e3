"""A recipe: an optimizer with the schedule of its learning rate; and what recipes share."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler


class Recipe(NamedTuple):
    """An optimizer, and the scheduler of its learning rate, advanced once a step."""

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None


class Library(NamedTuple):
    """What a baseline needs that no extra brings: the module, and the package on PyPI."""

    module: str
    package: str

    @property
    def message(self) -> str:
        """How to get it."""
        return f"needs {self.package}: pip install {self.package}"

    @property
    def missing(self) -> bool:
        """Whether it is not there."""
        return find_spec(self.module) is None

    def load(self) -> ModuleType:
        """Imports it. Raises ModuleNotFoundError, which says what to install."""
        try:
            return import_module(self.module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"this baseline {self.message}") from error


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> Recipe:
    """Lets the learning rate fall to 0 along a cosine."""
    return Recipe(optimizer, CosineAnnealingLR(optimizer, T_max=steps))
