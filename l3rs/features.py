"""What the controller sees of each layer (section 3.2 of the paper), and the names of its inputs, which define their number."""

from __future__ import annotations

import torch
from torch import Tensor

from l3rs.config import L3RSConfig

EMA_SIGNALS = ("log_weight_norm", "log_grad_norm", "loss")


def feature_names(config: L3RSConfig) -> tuple[str, ...]:
    """The controller's inputs in order. A checkpoint stores them, and is refused where they differ."""
    return (
        *(f"ema/{signal}/{factor}" for signal in EMA_SIGNALS for factor in config.ema_factors),
        *(f"relative_time/{i / (config.time_points - 1):.3f}" for i in range(config.time_points)),
        *(f"absolute_time/{scale:.0f}" for scale in config.time_scales),
        *(f"log_direction_norm/{name}" for name in config.directions),
        *(f"embedding/{i}" for i in range(config.embedding)),
    )


def log_rms(norms: Tensor, numel: Tensor, config: L3RSConfig) -> Tensor:
    """log(norm / sqrt(numel) + floor) / scale: a layer's log l2-norm, comparable across layer sizes. Shapes (L,)."""
    return (norms / numel.sqrt() + config.norm_floor).log() / config.norm_scale


def time_features(step: int, total_steps: int, config: L3RSConfig) -> Tensor:
    """Relative time tanh(a (k/K - t_i)), then absolute time tanh(K/s_i - 1); (time_points + len(time_scales),).

    `step` is k, the number of steps taken before this one; past K the features stay where they are at K.
    """
    points = torch.linspace(0, 1, config.time_points)
    relative = torch.tanh(config.time_slope * (min(step, total_steps) / total_steps - points))
    absolute = torch.tanh(total_steps / torch.tensor(config.time_scales) - 1)
    return torch.cat([relative, absolute])


def update_emas(emas: Tensor, signals: Tensor, step: int, config: L3RSConfig) -> tuple[Tensor, Tensor]:
    """One step of a <- g a + (1 - g) x.

    Args:
        emas: (L, signals, factors), zeros before the first step.
        signals: (L, signals).
        step: the number of this step, counted from 1.

    Returns:
        The new averages, and the same bias-corrected, a / (1 - g^step); both (L, signals, factors).
    """
    factors = torch.tensor(config.ema_factors, device=emas.device)
    emas = factors * emas + (1 - factors) * signals.unsqueeze(-1)
    return emas, emas / (1 - factors**step)
