"""The variants of L3RS in the paper's Tables 2 to 4, by name. Each is a config, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch

from l3rs.controller.config import L3RSConfig
from l3rs.controller.decide import meta_shapes
from l3rs.schedules.schedule import LearnedSchedule

_SETS = {"SGD": ("sgd",), "Adam": ("adam",), "SGD + Adam": ("sgd", "adam")}
_CONTROLLERS: dict[str, dict[str, str | int]] = {
    "shared MLP with embeddings": {},
    "shared MLP": {"embedding": 0},
    "an MLP per layer": {"embedding": 0, "controller": "layerwise"},
    "global": {"embedding": 0, "controller": "global"},
}

TABLE_2: Mapping[str, L3RSConfig] = MappingProxyType(
    {
        f"{controller}, {name}": L3RSConfig(directions=directions, **changes)  # type: ignore[arg-type]
        for controller, changes in _CONTROLLERS.items()
        for name, directions in _SETS.items()
    }
)
"""Controllers and base directions."""

TABLE_3: Mapping[str, L3RSConfig] = MappingProxyType(
    {
        f"EMA factors {', '.join(map(str, factors)) if factors else 'none'}": L3RSConfig(ema_factors=factors)
        for factors in ((0.5, 0.9, 0.99), (0.0, 0.9, 0.99), (0.9, 0.99, 0.999), (0.9,), (0.0,), ())
    }
)
"""Adaptive features: triples, one factor, the raw values (0), and none. The paper does not give its factors; these are ours."""

TABLE_4: Mapping[str, L3RSConfig] = MappingProxyType(
    {
        name: L3RSConfig(directions=directions)
        for name, directions in {
            "SGD, Adam": ("sgd", "adam"),
            "Adam, Lion, LAMB": ("adam", "lion", "lamb"),
            "Adamax, SGD, LAMB": ("adamax", "sgd", "lamb"),
            "SGD, Adam, Adamax, Lion, LAMB, WeightDecay": ("sgd", "adam", "adamax", "lion", "lamb", "weight_decay"),
        }.items()
    }
)
"""Larger sets of base directions."""

NAMES: Mapping[L3RSConfig, str] = MappingProxyType(
    {config: name for table in (TABLE_2, TABLE_3, TABLE_4) for name, config in table.items()}
)
"""One name for each variant, from the last table that has it. All three tables compare with `SGD, Adam`."""


def fixed_mix(shares: Mapping[str, float], lr: float = 1e-3) -> LearnedSchedule:
    """Makes a schedule that learned nothing: every layer takes the same mix of directions at every step.

    With Adam and SGD this is ATMO (Landro et al. 2021, "Combining optimization methods using an adaptive meta optimizer"), except that each
    direction is normalized, layer by layer: p <- p - lr sqrt(numel) sum_d share_d d / ||d||.

    Args:
        shares: of each base direction, positive, with sum 1.
        lr: step size per element, as Adam's.

    Raises:
        ValueError: a share is not positive, or they do not sum to 1.
    """
    if not all(share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, rel_tol=1e-6):
        raise ValueError(f"shares must be positive and sum to 1 (got {dict(shares)})")
    config = L3RSConfig(directions=tuple(shares), embedding=0, controller="global", lr0=lr)
    meta = {name: torch.zeros(shape) for name, shape in meta_shapes(config, ()).items()}
    meta["b3"][1:] = torch.tensor([math.log(share) for share in shares.values()])
    return LearnedSchedule(config, (), torch.cat([t.flatten() for t in meta.values()]), f"fixed-mix-{'-'.join(shares)}")
