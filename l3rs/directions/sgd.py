"""SGD without momentum: the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from l3rs.directions.base import State


class SGD:
    """d = g. No state, no hyperparameters."""

    hyperparameters: tuple[str, ...] = ()

    def init(self, param: Tensor) -> State:
        return {}

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], step: int, raw: Mapping[str, float]
    ) -> list[Tensor]:
        return list(grads)
