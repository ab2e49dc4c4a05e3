"""SGD without momentum: the gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from l3rs.directions.base import Direction, State


class SGD(Direction):
    """d = g. No state, no hyperparameters."""

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        return list(grads)
