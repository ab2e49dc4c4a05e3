"""fastai's recipes: the one-cycle schedule, and its `fine_tune` (fastai 2.8.12, `callback/schedule.py`, `learner.py`, `optimizer.py`).

https://github.com/fastai/fastai/tree/2.8.12/fastai
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.lr_scheduler import LRScheduler

from l3rs.finetuning.baselines.recipe import Recipe
from l3rs.networks.create import head_of

ADAMW = {"betas": (0.95, 0.99), "eps": 1e-5, "weight_decay": 0.01}  # `Adam` and its sqr_mom, eps and wd; the first beta is scheduled
HIGH, LOW = 0.95, 0.85  # `moms` of Learner: the first beta goes from high to low and back
FLOOR = 1e5  # `div_final` of fit_one_cycle
BASE_LR, LR_MULT = 2e-3, 100  # of fine_tune
FROZEN_SHARE = 1 / 2  # [choice] one epoch of two, as in its quick start
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


class Cycle(NamedTuple):
    """One call of fit_one_cycle.

    Attributes:
        steps: its length.
        peaks: the highest learning rate of each group of parameters.
        rise: `pct_start`, the share of the steps in which the learning rate rises.
        div: the peak by the first learning rate.
    """

    steps: int
    peaks: Sequence[float]
    rise: float = 0.25
    div: float = 25.0

    def at(self, step: int) -> tuple[list[float], float]:
        """The learning rate of each group, and the first beta, at a step."""
        place = min(step / self.steps, 1.0)
        rising = place < self.rise
        share = place / self.rise if rising else (place - self.rise) / (1 - self.rise)
        begin, end = (1 / self.div, 1.0) if rising else (1.0, 1 / FLOOR)
        high, low = (HIGH, LOW) if rising else (LOW, HIGH)
        return [peak * _cosine(begin, end, share) for peak in self.peaks], _cosine(high, low, share)


def _cosine(begin: float, end: float, share: float) -> float:
    return begin + (end - begin) * (1 - math.cos(math.pi * share)) / 2


class OneCycle(LRScheduler):
    """Goes through cycles, one after another; each begins with a fresh optimizer, as freezing and unfreezing in fastai does."""

    def __init__(self, optimizer: torch.optim.Optimizer, cycles: Sequence[Cycle]) -> None:
        self.cycles = cycles
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, which torch loads without unpickling; the cycles are made again."""
        return {name: value for name, value in super().state_dict().items() if name != "cycles"}

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of each group; it also sets the first beta, and forgets the past where a cycle begins."""
        step = self.last_epoch
        for cycle in self.cycles[:-1]:
            if step < cycle.steps:
                break
            step -= cycle.steps
        else:
            cycle = self.cycles[-1]
        if step == 0:
            self.optimizer.state.clear()
        rates, beta = cycle.at(step)
        for group in self.optimizer.param_groups:
            group["betas"] = (beta, group["betas"][1])
        return [*rates]


def one_cycle(network: nn.Module, lr: float, steps: int) -> Recipe:
    """`fit_one_cycle` at its defaults, with AdamW: up for a quarter of the run, down along a cosine; no decay of norms and biases."""
    norms = _norms(network)
    groups = [g for g in _groups(list(network.named_parameters()), norms) if g["params"]]
    return _recipe(groups, [Cycle(steps, [lr] * len(groups))])


def fine_tune(network: nn.Module, lr: float, steps: int) -> Recipe:
    """`fine_tune` at its defaults: the head alone, then all layers, each in one cycle.

    The head, and the body's norms at a tenth of its rate (`train_bn`), rise to `lr` along 0.99 of the first cycle. In the second the head
    rises to `lr / 2` along 0.3 of it from a fifth of that, and the first layers to `lr / 2 / 100`; ResNets have a group between, of their
    last two stages. The first takes half of the run, as one epoch of two. fastai's own head, of two layers with dropout, is left out:
    all optimizers here train the same network.
    """
    head = {id(p) for p in head_of(network).parameters()}
    norms = _norms(network)
    resnet = hasattr(network, "layer3") and hasattr(network, "layer4")  # split before stage 3, as `_resnet_split` does
    parts: list[list[tuple[str, nn.Parameter]]] = [[], [], []] if resnet else [[], []]
    for name, p in network.named_parameters():
        parts[-1 if id(p) in head else 1 if resnet and name.startswith(("layer3.", "layer4.")) else 0].append((name, p))
    groups, frozen, unfrozen = [], [], []
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        for group in _groups(part, norms):
            if group["params"]:
                groups.append(group)
                frozen.append(lr if last else lr / 10 if group["norms"] else 0.0)
                unfrozen.append(lr / 2 * LR_MULT ** (place / (len(parts) - 1) - 1))
    first = round(FROZEN_SHARE * steps)
    cycles = [Cycle(first, frozen, rise=0.99)] if first else []
    return _recipe(groups, [*cycles, Cycle(steps - first, unfrozen, rise=0.3, div=5.0)])


def _recipe(groups: list[dict[str, Any]], cycles: list[Cycle]) -> Recipe:
    optimizer = torch.optim.AdamW(groups, lr=1.0, **ADAMW)  # type: ignore[arg-type]
    return Recipe(optimizer, OneCycle(optimizer, cycles))


def _norms(network: nn.Module) -> set[int]:
    return {id(p) for module in network.modules() if isinstance(module, NORMS) for p in module.parameters()}


def _groups(part: Sequence[tuple[str, nn.Parameter]], norms: set[int]) -> list[dict[str, Any]]:
    """Parts parameters into weights, norms and other biases; the last two do not decay (`wd_bn_bias`)."""
    of_norms = [p for _, p in part if id(p) in norms]
    biases = [p for name, p in part if id(p) not in norms and name.rpartition(".")[2] == "bias"]
    weights = [p for name, p in part if id(p) not in norms and name.rpartition(".")[2] != "bias"]
    return [
        {"params": weights, "norms": False},
        {"params": of_norms, "norms": True, "weight_decay": 0.0},
        {"params": biases, "norms": False, "weight_decay": 0.0},
    ]
