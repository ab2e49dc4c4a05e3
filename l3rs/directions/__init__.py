"""Base directions: the optimizers without their learning rate, one a file, by name."""

from __future__ import annotations

from types import MappingProxyType

from l3rs.directions.adam import Adam
from l3rs.directions.base import Direction
from l3rs.directions.sgd import SGD

DIRECTIONS: MappingProxyType[str, Direction] = MappingProxyType({"sgd": SGD(), "adam": Adam()})


def direction(name: str) -> Direction:
    """The direction called `name`; raises ValueError with the names there are."""
    if name not in DIRECTIONS:
        raise ValueError(f"no direction is called {name!r}; there are {', '.join(DIRECTIONS)}")
    return DIRECTIONS[name]


__all__ = ["DIRECTIONS", "SGD", "Adam", "Direction", "direction"]
