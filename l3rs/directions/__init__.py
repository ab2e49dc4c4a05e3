"""Base directions: the optimizers without their learning rate, one a file, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from l3rs.directions.adam import Adam
from l3rs.directions.adamax import Adamax
from l3rs.directions.base import Direction
from l3rs.directions.lamb import LAMB
from l3rs.directions.lion import Lion
from l3rs.directions.sgd import SGD
from l3rs.directions.torch_optimizer import TorchOptimizerDirection
from l3rs.directions.weight_decay import WeightDecay

DIRECTIONS: Mapping[str, Direction] = MappingProxyType(
    {"sgd": SGD(), "adam": Adam(), "lion": Lion(), "lamb": LAMB(), "adamax": Adamax(), "weight_decay": WeightDecay()}
)
_registered: dict[str, Direction] = {}


def register(name: str, direction: Direction) -> None:
    """Registers a direction of your own under a name, which configs in this process may then use.

    Raises:
        ValueError: another direction has this name.
        TypeError: it is not a `Direction`.
    """
    if not isinstance(direction, Direction):
        raise TypeError(f"{name!r} is a {type(direction).__name__}; make a Direction of it, as TorchOptimizerDirection(torch.optim.NAdam)")
    if name in DIRECTIONS or name in _registered or name.startswith("torch.optim."):
        raise ValueError(f"there is a direction {name!r} already")
    _registered[name] = direction


def direction(name: str) -> Direction:
    """Finds a direction by name: one of `DIRECTIONS`, a registered one, or an optimizer of torch such as `"torch.optim.NAdam"`.

    Optimizers of torch keep their default hyperparameters.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    known = {**DIRECTIONS, **_registered}
    if name in known:
        return known[name]
    found = getattr(torch.optim, name.removeprefix("torch.optim."), None) if name.startswith("torch.optim.") else None
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return TorchOptimizerDirection(found, as_matrices=found is torch.optim.Muon)
    raise ValueError(f"no direction is called {name!r}; there are {', '.join(known)}, torch.optim.NAME, and what you register()")


__all__ = [
    "DIRECTIONS",
    "LAMB",
    "SGD",
    "Adam",
    "Adamax",
    "Direction",
    "Lion",
    "TorchOptimizerDirection",
    "WeightDecay",
    "direction",
    "register",
]
