"""Recipes that promise to need no tuning, at their authors' defaults, from their packages where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from l3rs.finetuning.baselines.recipe import Library, Recipe, cosine
from l3rs.networks.batch_norms import batch_norms

PRODIGY = Library("prodigyopt", "prodigyopt")
DOG = Library("dog", "dog-optimizer")


class ClippedAdamW(torch.optim.AdamW):
    """AdamW on gradients whose norm is at most 1."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Steps with the loss and the gradients of a closure."""
        with torch.enable_grad():
            loss = closure()
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        super().step()
        return loss


def autogluon(network: nn.Module, lr: float, steps: int) -> Recipe:
    """AutoGluon's default for images: AdamW, 0.9 times the learning rate a layer down, a warm-up over 10% and a cosine to 0.

    The numbers are of `multimodal/configs/optim/default.yaml` of AutoGluon 1.6.2: weight decay 0.001 but for norms and biases, gradients
    clipped to norm 1 (https://github.com/autogluon/autogluon). timm's groups of layers stand for AutoGluon's. Its early stopping
    and its average of the best checkpoints (`greedy_soup`) need validation images, which no optimizer here has.
    """
    groups = param_groups_layer_decay(network, weight_decay=0.001, layer_decay=0.9)
    warm = int(0.1 * steps)

    def share(step: int) -> float:
        return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

    optimizer = ClippedAdamW([{**g, "lr": lr * g["lr_scale"]} for g in groups])
    return Recipe(optimizer, LambdaLR(optimizer, share))


def prodigy(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Prodigy (Mishchenko & Defazio 2024, arXiv 2306.06101) from `prodigyopt` 1.1.2 at its defaults, with the cosine its page recommends.

    https://github.com/konstmish/prodigy
    """
    return cosine(PRODIGY.load().Prodigy(network.parameters(), lr=lr), steps)


class Averaged(torch.optim.Optimizer):
    """An optimizer that is evaluated at an average of its weights, which `dog` keeps: with `train` and `eval`, as a schedule-free one.

    Args:
        optimizer: that steps.
        averager: of `dog`; it copies the network.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, averager: Any) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer, self.averager = optimizer, averager
        self.param_groups = optimizer.param_groups
        self.pairs = list(zip(averager.base_model.parameters(), averager.averaged_model.parameters(), strict=True))

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Steps, and averages."""
        loss = self.optimizer.step(closure)
        self.averager.step()
        self.state[self.pairs[0][0]]["steps"] = self.averager.t  # there is something to evaluate
        return loss

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the average into the network."""
        self.there = [p.clone() for p, _ in self.pairs]
        for p, mean in self.pairs:
            p.copy_(mean)

    @torch.no_grad()
    def train(self) -> None:
        """Puts the weights of training back."""
        for (p, _), there in zip(self.pairs, self.there, strict=True):
            p.copy_(there)


class NoStep(torch.optim.Optimizer):
    """Leaves the network as it is, and computes nothing."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does nothing; says 0 for the loss."""
        return torch.zeros(())


def none(network: nn.Module, lr: float, steps: int) -> Recipe:
    """No training: what a head in closed form is worth alone, on the images of a run."""
    return Recipe(NoStep(network.parameters(), {}), None)


def l_dog(network: nn.Module, lr: float, steps: int) -> Recipe:
    """L-DoG (Ivgi et al. 2023, arXiv 2302.12022) with polynomial decay averaging, from `dog-optimizer` 1.0.3 at its defaults.

    `reps_rel` is 1e-6, and 1e-4 for networks with BatchNorm, as its page says. Like schedule-free it is evaluated at the average, with
    BatchNorm statistics taken there. https://github.com/formll/dog
    """
    dog = DOG.load()
    first = 1e-4 if any(batch_norms(network)) else 1e-6
    trained = [p for p in network.parameters() if p.requires_grad]  # it cannot do without a gradient
    return Recipe(Averaged(dog.LDoG(trained, reps_rel=first, lr=lr), dog.PolynomialDecayAverager(network)), None)
