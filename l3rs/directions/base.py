"""The base class of directions, and the formulas that several of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
HALF = (torch.float16, torch.bfloat16)
NOTHING = 1e-17  # the l2 norm up to which a direction counts as 0: below it, sums of squares in float32 are noise (decide.h has it too)


class Direction(ABC):
    """A base optimizer without its learning rate.

    A direction points uphill; a step goes along its negative. It reads parameters and gradients, and never writes them.

    Attributes:
        hyperparameters: names of its meta-learned hyperparameters. Their form is unconstrained, and 0 is the usual value.
        scale_free: whether it stays the same, but for eps, when the weights are multiplied by a number and their gradients divided by it.
        lazy: whether `update` adds entries to the states that `init` did not make.
    """

    hyperparameters: tuple[str, ...] = ()
    scale_free = False
    lazy = False

    def constants(self, raw: Mapping[str, float]) -> tuple[float, ...]:
        """Gives the hyperparameters in their usual form, from the unconstrained one."""
        return ()

    def init(self, param: Tensor) -> State:
        """Gives the state of one parameter before its first step."""
        return {}

    @abstractmethod
    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        """Advances `states` in place by one step, and gives a direction for each parameter.

        Args:
            grads, params: of any shapes, gradients and parameters pairwise alike; float32 or float64.
            states: of each parameter.
            steps: (L,), the number of this step for each parameter, counted from 1.
            constants: the result of `constants`.

        Returns:
            One tensor a parameter. It may be a gradient or a parameter itself: the caller only reads it.
        """

    def trust(self, norms: Tensor, weight_norms: Tensor) -> Tensor | None:
        """Gives a factor of each layer, (L,), that belongs to the direction, from the norms of the result of `update`; None for 1.

        Normalizing a direction removes the factor. Only one feature shows it: the direction's norm, as the controller sees it.
        """
        return None


def moment(param: Tensor) -> Tensor:
    """A zero moment of a parameter: float32 for half-precision parameters, whose own dtype would round small changes away."""
    return torch.zeros_like(param, dtype=torch.float32 if param.dtype in HALF else param.dtype, memory_format=torch.preserve_format)


def shifted_sigmoid(usual: float, raw: float) -> float:
    """A number in (0, 1) that is `usual` at raw = 0: sigmoid(logit(usual) + raw)."""
    z = math.log(usual / (1 - usual)) + raw
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))  # neither form overflows


def bias_correction(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^step for each parameter, (L,), exact for beta near 1."""
    return -torch.expm1(steps * math.log(beta)) if beta > 0 else torch.ones_like(steps)


def numbers(values: Tensor) -> list[float] | list[Tensor]:
    """A vector's numbers for foreach operations: Python's on the CPU, where a tensor of each costs more than the operation."""
    return values.tolist() if values.device.type == "cpu" else list(values.unbind())


def average_(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float) -> None:
    """a <- beta a + (1 - beta) x, in place."""
    torch._foreach_lerp_(list(averages), list(values), 1 - beta)


def average_squares_(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float) -> None:
    """a <- beta a + (1 - beta) x^2, in place."""
    torch._foreach_mul_(list(averages), beta)
    torch._foreach_addcmul_(list(averages), list(values), list(values), 1 - beta)


def adam_ratio(m: Sequence[Tensor], v: Sequence[Tensor], steps: Tensor, beta1: float, beta2: float, eps: float) -> list[Tensor]:
    """m_hat / (sqrt(v_hat) + eps) with m_hat = m / c1, v_hat = v / c2, c = 1 - beta^step.

    Computed as sqrt(c2) / c1 * m / (sqrt(v) + eps sqrt(c2)): two numbers a layer instead of two more passes.
    """
    root = bias_correction(beta2, steps).sqrt()
    ratio = list(torch._foreach_sqrt(list(v)))
    torch._foreach_add_(ratio, numbers(eps * root))
    torch._foreach_reciprocal_(ratio)
    torch._foreach_mul_(ratio, list(m))
    torch._foreach_mul_(ratio, numbers(root / bias_correction(beta1, steps)))
    return ratio
