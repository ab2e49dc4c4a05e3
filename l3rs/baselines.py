"""The hand-designed optimizers that L3RS is compared with, and their tuned learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

import torch
import yaml
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from l3rs.networks import head_of


class Recipe(NamedTuple):
    """An optimizer and the schedule that goes with it, advanced once a step."""

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None


def _cosine(optimizer: torch.optim.Optimizer, steps: int) -> Recipe:
    return Recipe(optimizer, CosineAnnealingLR(optimizer, T_max=steps))


def adam(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam at a constant learning rate."""
    return Recipe(torch.optim.Adam(network.parameters(), lr=lr), None)


def adam_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam, its learning rate falling to 0 along a cosine."""
    return _cosine(torch.optim.Adam(network.parameters(), lr=lr), steps)


def adam_cosine_head10(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam with cosine, and ten times the learning rate on the new head."""
    head = list(head_of(network).parameters())
    body = [p for p in network.parameters() if all(p is not h for h in head)]
    return _cosine(torch.optim.Adam([{"params": body, "lr": lr}, {"params": head, "lr": 10 * lr}]), steps)


def sgd_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """SGD with momentum 0.9, its learning rate falling to 0 along a cosine."""
    return _cosine(torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9), steps)


BASELINES: MappingProxyType[str, Callable[[nn.Module, float, int], Recipe]] = MappingProxyType(
    {"adam": adam, "adam-cosine": adam_cosine, "adam-cosine-head10": adam_cosine_head10, "sgd-cosine": sgd_cosine}
)


@lru_cache(maxsize=1)
def tuned_learning_rates() -> dict[str, dict[int, float]]:
    """Learning rate by baseline, or Celo2, and horizon, tuned on meta-train tasks by `evaluate/tune.py`."""
    raw = yaml.safe_load((resources.files("l3rs") / "baselines.yaml").read_text())
    return {name: {int(steps): float(lr) for steps, lr in chosen.items()} for name, chosen in raw.items()}


def tuned_learning_rate(name: str, steps: int) -> float:
    """The tuned learning rate of a baseline at the tuned horizon nearest to `steps` in log steps.

    Raises:
        ValueError: it was not tuned; the message names what was.
    """
    if name not in tuned_learning_rates():
        raise ValueError(f"no learning rate was tuned for {name!r}; there are {', '.join(tuned_learning_rates())}")
    chosen = tuned_learning_rates()[name]
    return chosen[min(chosen, key=lambda k: (abs(math.log(k / steps)), k))]
