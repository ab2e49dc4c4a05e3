"""Adam (Kingma and Ba, arXiv 1412.6980)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from l3rs.directions.base import Direction, State, adam_ratio, average_, average_squares_, moment, shifted_sigmoid

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # the paper's values, at zero in the unconstrained form


class Adam(Direction):
    """d = m_hat / (sqrt(v_hat) + eps), m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, both bias-corrected.

    As in `torch.optim.Adam`, eps is added after the square root and after the bias correction.
    """

    hyperparameters = ("beta1", "beta2", "eps")
    scale_free = True

    def constants(self, raw: Mapping[str, float]) -> tuple[float, ...]:
        return shifted_sigmoid(BETA1, raw["beta1"]), shifted_sigmoid(BETA2, raw["beta2"]), EPS * math.exp(raw["eps"])

    def init(self, param: Tensor) -> State:
        return {"exp_avg": moment(param), "exp_avg_sq": moment(param)}

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        beta1, beta2, eps = constants
        m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        average_(m, grads, beta1)
        average_squares_(v, grads, beta2)
        return adam_ratio(m, v, steps, beta1, beta2, eps)
