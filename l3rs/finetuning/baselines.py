"""The baselines: hand-designed optimizers, and their tuned learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib import import_module, resources
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
import yaml
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from l3rs.networks.create import head_of


class Recipe(NamedTuple):
    """An optimizer, and the scheduler of its learning rate, advanced once a step."""

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None


def _cosine(optimizer: torch.optim.Optimizer, steps: int) -> Recipe:
    return Recipe(optimizer, CosineAnnealingLR(optimizer, T_max=steps))


def _head10(network: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Makes two groups: the body, and the head at ten times the learning rate."""
    head = list(head_of(network).parameters())
    body = [p for p in network.parameters() if all(p is not h for h in head)]
    return [{"params": body, "lr": lr}, {"params": head, "lr": 10 * lr}]


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"this baseline needs {name}: pip install {name}") from error


def adam(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam at a constant learning rate."""
    return Recipe(torch.optim.Adam(network.parameters(), lr=lr, fused=True), None)


def adam_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam with a cosine: the learning rate falls to 0."""
    return _cosine(torch.optim.Adam(network.parameters(), lr=lr, fused=True), steps)


def adam_cosine_head10(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam with cosine, and ten times the learning rate on the new head."""
    return _cosine(torch.optim.Adam(_head10(network, lr), fused=True), steps)


def sgd_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """SGD with momentum 0.9 and a cosine."""
    return _cosine(torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, fused=True), steps)


def adamw(network: nn.Module, lr: float, steps: int) -> Recipe:
    """AdamW at a constant learning rate, torch's weight decay of 0.01."""
    return Recipe(torch.optim.AdamW(network.parameters(), lr=lr), None)


def adamw_cosine_head10(network: nn.Module, lr: float, steps: int) -> Recipe:
    """AdamW with torch's default weight decay, 0.01, cosine, and ten times the learning rate on the new head."""
    return _cosine(torch.optim.AdamW(_head10(network, lr), fused=True), steps)


def adamw_layer_decay(network: nn.Module, lr: float, steps: int) -> Recipe:
    """AdamW with a cosine, 0.75 times the learning rate of the next block of layers, and weight decay 0.05 (timm's defaults)."""
    groups = param_groups_layer_decay(network)
    return _cosine(torch.optim.AdamW([{**g, "lr": lr * g["lr_scale"]} for g in groups], fused=True), steps)  # AdamW itself ignores lr_scale


def schedule_free(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Schedule-free AdamW (Defazio et al. 2024) from `schedulefree` at its defaults, with a warm-up over 10% of the run; see `unroll`."""
    optimizer = _library("schedulefree").AdamWScheduleFree(network.parameters(), lr=lr, warmup_steps=steps // 10)
    optimizer.train()
    return Recipe(optimizer, None)


class Muon(torch.optim.Optimizer):
    """torch's Muon for kernels, flattened to matrices of output channels by the rest, and torch's AdamW for the other parameters.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that both share a learning rate and a weight
    decay. `state_dict` does not hold its state.
    """

    def __init__(self, kernels: Iterable[Tensor], others: Iterable[Tensor], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__([{"params": list(kernels)}, {"params": list(others)}], {"lr": lr})
        kernels, others = (group["params"] for group in self.param_groups)
        self.matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in kernels]  # torch's Muon takes nothing else
        self.muon = torch.optim.Muon(self.matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Steps both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = [(p, m) for p, m in zip(self.param_groups[0]["params"], self.matrices, strict=True) if p.grad is not None]
        for p, matrix in pairs:
            matrix.copy_(p.flatten(1))
            matrix.grad = p.grad.flatten(1)
        for group, part in zip(self.param_groups, (self.muon, self.adamw), strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        for p, matrix in pairs:
            p.copy_(matrix.view(p.shape))
        return loss


def muon_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Muon for kernels, AdamW for the head, norms and biases (Jordan et al. 2024), both of torch, at one learning rate, with cosine."""
    head = list(head_of(network).parameters())
    kernels = [p for p in network.parameters() if p.dim() > 1 and all(p is not h for h in head)]
    others = [p for p in network.parameters() if all(p is not k for k in kernels)]
    return _cosine(Muon(kernels, others, lr), steps)


def soap_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """SOAP (Vyas et al. 2024) from `pytorch_optimizer` at its defaults (a new basis every 10 steps, weight decay 0.01), with a cosine."""
    return _cosine(_library("pytorch_optimizer").SOAP(network.parameters(), lr=lr), steps)


BASELINES: MappingProxyType[str, Callable[[nn.Module, float, int], Recipe]] = MappingProxyType(
    {
        "adam": adam,
        "adam-cosine": adam_cosine,
        "adam-cosine-head10": adam_cosine_head10,
        "sgd-cosine": sgd_cosine,
        "adamw-cosine-head10": adamw_cosine_head10,
        "adamw-layer-decay": adamw_layer_decay,
        "schedule-free": schedule_free,
        "muon-cosine": muon_cosine,
        "soap-cosine": soap_cosine,
    }
)
"""The baselines with a tuned learning rate."""

LIBRARIES: Mapping[str, str] = MappingProxyType({"schedule-free": "schedulefree", "soap-cosine": "pytorch_optimizer"})
"""What a baseline needs that no extra brings."""

RECIPES: MappingProxyType[str, Callable[[nn.Module, float, int], Recipe]] = MappingProxyType({**BASELINES, "adamw": adamw})
"""All baselines."""


@lru_cache(maxsize=8)
def tuned_learning_rates(file: str | None = None) -> dict[str, dict[int, float]]:
    """Reads the learning rates that `evaluate/tune.py` found on meta-train tasks, by baseline (or Celo2) and horizon.

    Args:
        file: of `evaluate/tune.py`; None is the shipped one, tuned on Icons25.

    Raises:
        ValueError: there is no such file.
    """
    try:
        raw = yaml.safe_load((Path(file) if file else resources.files("l3rs.finetuning") / "baselines.yaml").read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); evaluate/tune.py writes it") from None
    return {name: {int(steps): float(lr) for steps, lr in chosen.items()} for name, chosen in raw.items()}


def tuned_learning_rate(name: str, steps: int, file: str | None = None) -> float:
    """Returns the tuned learning rate of a baseline at the tuned horizon nearest to `steps`, in log steps.

    Raises:
        ValueError: it was not tuned; the message names the tuned ones.
    """
    rates = tuned_learning_rates(file)
    if name not in rates:
        raise ValueError(f"no learning rate was tuned for {name!r}; there are {', '.join(rates)}")
    return rates[name][nearest_horizon(name, steps, file)]


def nearest_horizon(name: str, steps: int, file: str | None = None) -> int:
    """Finds the tuned horizon of a baseline nearest to `steps`, in log steps."""
    return min(tuned_learning_rates(file)[name], key=lambda k: (abs(math.log(k / steps)), k))
