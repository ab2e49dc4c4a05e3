"""The variants of L3RS that the paper compares in Tables 2 to 4, by name: each is a config, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from l3rs.config import L3RSConfig

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
"""Adaptive features: triples, one factor, the raw values (0), and none. Which factors the paper compares is lost; these are ours."""

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
