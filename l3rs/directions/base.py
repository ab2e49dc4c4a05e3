"""What a base direction is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

State = dict[str, Tensor]


class Direction(Protocol):
    """A base optimizer without its learning rate.

    A direction points uphill, so that a step is its negative. It reads parameters and gradients and never writes them.
    Its hyperparameters are meta-learned in an unconstrained form in which 0 is the usual value; `defaults` names them.
    """

    hyperparameters: tuple[str, ...]

    def init(self, param: Tensor) -> State:
        """The state of one parameter before its first step."""
        ...

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], step: int, raw: Mapping[str, float]
    ) -> list[Tensor]:
        """Advances `states` in place to step number `step`, counted from 1, and gives a direction for each parameter.

        `raw` holds the unconstrained hyperparameters. A returned tensor may be a gradient itself: the caller only reads it.
        """
        ...
