"""LAMB (You et al., arXiv 1904.00962)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from l3rs.directions.base import Direction, State, adam_ratio, average_, average_squares_, moment, shifted_sigmoid

BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-6, 0.01  # the paper's values, at zero in the unconstrained form


class LAMB(Direction):
    """d = trust * r, r = m_hat / (sqrt(v_hat) + eps) + decay * theta, trust = ||theta|| / ||r|| (1 where either is 0).

    `update` gives r, which is d once both are normalized. At weight decay 0 r would be Adam's direction; here the decay is meta-learned
    and positive. timm's `Lamb` clips `p.grad` in place by default, and drops the trust ratio at weight decay 0. This class does neither.
    """

    hyperparameters = ("beta1", "beta2", "eps", "weight_decay")

    def constants(self, raw: Mapping[str, float]) -> tuple[float, ...]:
        betas = shifted_sigmoid(BETA1, raw["beta1"]), shifted_sigmoid(BETA2, raw["beta2"])
        return *betas, EPS * math.exp(raw["eps"]), WEIGHT_DECAY * math.exp(raw["weight_decay"])

    def init(self, param: Tensor) -> State:
        return {"exp_avg": moment(param), "exp_avg_sq": moment(param)}

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        beta1, beta2, eps, decay = constants
        m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        average_(m, grads, beta1)
        average_squares_(v, grads, beta2)
        direction = adam_ratio(m, v, steps, beta1, beta2, eps)
        torch._foreach_add_(direction, list(params), alpha=decay)
        return direction

    def trust(self, norms: Tensor, weight_norms: Tensor) -> Tensor:
        return torch.where((norms > 0) & (weight_norms > 0), weight_norms / norms, torch.ones_like(norms))
