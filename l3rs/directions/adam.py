"""Adam (Kingma and Ba, arXiv 1412.6980)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from l3rs.directions.base import State

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # the paper's values, at zero in the unconstrained form


def shifted_sigmoid(usual: float, raw: float) -> float:
    """A number in (0, 1) that is `usual` at raw = 0: sigmoid(logit(usual) + raw)."""
    return 1 / (1 + math.exp(-(math.log(usual / (1 - usual)) + raw)))


class Adam:
    """d = m_hat / (sqrt(v_hat) + eps), m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, both bias-corrected.

    As in `torch.optim.Adam`, eps is added after the square root and after the bias correction.
    """

    hyperparameters: tuple[str, ...] = ("beta1", "beta2", "eps")

    def init(self, param: Tensor) -> State:
        return {
            "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(param, memory_format=torch.preserve_format),
        }

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], step: int, raw: Mapping[str, float]
    ) -> list[Tensor]:
        beta1, beta2 = shifted_sigmoid(BETA1, raw["beta1"]), shifted_sigmoid(BETA2, raw["beta2"])
        eps = EPS * math.exp(raw["eps"])
        m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_lerp_(m, list(grads), 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, list(grads), list(grads), 1 - beta2)
        # m_hat / (sqrt(v_hat) + eps) = (m / c1) / ((sqrt(v) + eps sqrt(c2)) / sqrt(c2)), with c = 1 - beta^step
        root_c2 = math.sqrt(1 - beta2**step)
        direction = torch._foreach_sqrt(v)
        torch._foreach_add_(direction, eps * root_c2)
        torch._foreach_reciprocal_(direction)
        torch._foreach_mul_(direction, m)
        torch._foreach_mul_(direction, root_c2 / (1 - beta1**step))
        return list(direction)
