"""Lion (Chen et al., arXiv 2302.06675)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from l3rs.directions.base import Direction, State, average_, moment, shifted_sigmoid

BETA1, BETA2 = 0.9, 0.99  # the paper's values, at zero in the unconstrained form


class Lion(Direction):
    """d = sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g; without its weight decay."""

    hyperparameters = ("beta1", "beta2")
    scale_free = True

    def constants(self, raw: Mapping[str, float]) -> tuple[float, ...]:
        return shifted_sigmoid(BETA1, raw["beta1"]), shifted_sigmoid(BETA2, raw["beta2"])

    def init(self, param: Tensor) -> State:
        return {"exp_avg": moment(param)}

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        beta1, beta2 = constants
        m = [s["exp_avg"] for s in states]
        direction = list(torch._foreach_lerp(m, list(grads), 1 - beta1))
        torch._foreach_sign_(direction)
        average_(m, grads, beta2)
        return direction
