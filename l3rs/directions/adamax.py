"""Adamax (Kingma and Ba, arXiv 1412.6980, section 7.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from l3rs.directions.base import Direction, State, average_, bias_correction, moment, numbers, shifted_sigmoid

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # the paper's values (eps: torch's), at zero in the unconstrained form


class Adamax(Direction):
    """d = m_hat / u, m <- beta1 m + (1 - beta1) g, bias-corrected, u <- max(beta2 u, |g| + eps).

    As in `torch.optim.Adamax`, eps is added to |g| inside the maximum.
    """

    hyperparameters = ("beta1", "beta2", "eps")
    scale_free = True

    def constants(self, raw: Mapping[str, float]) -> tuple[float, ...]:
        return shifted_sigmoid(BETA1, raw["beta1"]), shifted_sigmoid(BETA2, raw["beta2"]), EPS * math.exp(raw["eps"])

    def init(self, param: Tensor) -> State:
        return {"exp_avg": moment(param), "exp_inf": moment(param)}

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        beta1, beta2, eps = constants
        m, u = [s["exp_avg"] for s in states], [s["exp_inf"] for s in states]
        average_(m, grads, beta1)
        sizes = torch._foreach_abs(list(grads))
        torch._foreach_add_(sizes, eps)
        torch._foreach_mul_(u, beta2)
        torch._foreach_maximum_(u, list(sizes))
        direction = list(torch._foreach_div(m, u))
        torch._foreach_div_(direction, numbers(bias_correction(beta1, steps)))
        return direction
