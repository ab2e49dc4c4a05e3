"""Weight decay: the parameters, so that a step along their negative shrinks them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from l3rs.directions.base import Direction, State


class WeightDecay(Direction):
    """d = theta. No state, no hyperparameters: lambda and mu set the strength."""

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        return list(params)
