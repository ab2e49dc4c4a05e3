"""The inputs of the controller (section 3.2 of the paper), and their names, which define their number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l3rs.controller.config import L3RSConfig
from l3rs.controller.describe import KINDS, NUMBERS
from l3rs.directions import direction


def feature_names(config: L3RSConfig) -> tuple[str, ...]:
    """Names the controller's inputs in order. A checkpoint stores the names, and does not load if they differ."""
    return (
        *(f"ema/{signal}/{factor}" for signal in config.signals for factor in config.ema_factors),
        *(f"relative_time/{i / (config.time_points - 1):.3f}" for i in range(config.time_points)),
        *(f"absolute_time/{scale:.0f}" for scale in config.time_scales),
        *(f"log_direction_norm/{name}" for name in shown_directions(config)),
        *(f"layer/{what}" for what in (*KINDS, *NUMBERS) if config.descriptors),
        *(f"embedding/{i}" for i in range(config.embedding)),
    )


def shown_directions(config: L3RSConfig) -> tuple[str, ...]:
    """The directions whose norm is a feature."""
    return tuple(name for name in config.directions if config.direction_norms == "all" or direction(name).scale_free)


def log_rms(norms: Tensor, root_numel: Tensor, config: L3RSConfig) -> Tensor:
    """log(norm / sqrt(numel) + floor) / scale: a layer's log l2-norm, comparable across layer sizes. Shapes (L, ...) and (L, 1)."""
    return (norms / root_numel).add_(config.norm_floor).log_().div_(config.norm_scale)


def log_scaled(x: Tensor, config: L3RSConfig) -> Tensor:
    """log(x + floor) / scale, of any shape."""
    return (x + config.norm_floor).log_().div_(config.norm_scale)


class TimeFeatures:
    """Relative time tanh(a (k/K - t_i)), then absolute time tanh(K/s_i - 1), of G runs at once.

    Args:
        totals: K of each run, in steps.
        device: where.
    """

    def __init__(self, totals: Sequence[int], config: L3RSConfig, device: torch.device) -> None:
        self.slope = config.time_slope
        self.totals = torch.tensor([float(total) for total in totals], dtype=torch.float32, device=device)
        self.points = torch.linspace(0, 1, config.time_points, dtype=torch.float32, device=device)
        self.absolute = torch.tanh(self.totals.unsqueeze(1) / torch.tensor(config.time_scales, dtype=torch.float32, device=device) - 1)

    def __call__(self, clock: Tensor) -> Tensor:
        """The features before step k + 1, (G, time_points + len(time_scales)).

        Args:
            clock: (G,), k: the number of steps taken. Past K the features stay where they are at K.
        """
        progress = (clock / self.totals).clamp_(max=1).unsqueeze(1)
        return torch.cat([torch.tanh_((progress - self.points).mul_(self.slope)), self.absolute], dim=1)


class Averages:
    """The adaptive features: a <- g a + (1 - g) x for every factor g, bias-corrected.

    Args:
        values: (L, signals, factors), zeros before the first step; advanced in place.
        config: gives the factors g.
    """

    def __init__(self, values: Tensor, config: L3RSConfig) -> None:
        self.values = values
        self.factors = torch.tensor(config.ema_factors, device=values.device, dtype=values.dtype)
        self.log_factors = self.factors.log()  # -inf for the raw value, g = 0, which the correction below turns into 1

    def corrected(self, steps: Tensor) -> Tensor:
        """a / (1 - g^n) after n updates, (L, signals, factors); 0 before the first. `steps`: n, (L,)."""
        return self.values / -torch.expm1(steps.clamp(min=1).view(-1, 1, 1) * self.log_factors)

    def update(self, signals: Tensor, steps: Tensor, ok: Tensor) -> Tensor:
        """Takes in the signals, (L, signals), as update number `steps`, (L,), and gives the corrected averages.

        Where `ok` is false the signals are not to be trusted: every average then takes in itself, and stays where it was, which is at 0
        before the first good ones.
        """
        x = torch.where(ok, signals.unsqueeze(-1), self.corrected(steps - 1))
        self.values.lerp_(x, 1 - self.factors)
        return self.corrected(steps)
