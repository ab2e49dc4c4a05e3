"""What users give to learned optimizers, L3RS and the others: numbers of groups, and the loss."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 2**63  # no run has as many steps, and no checkpoint or table of torch holds more
SMALL = 0.01  # a multiplier below this was meant as a learning rate


def whole(value: Any) -> int:
    """A whole number of any library, numpy's too, as Python's own; 0 for what is none."""
    try:
        return 0 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return 0


def multiplier(lr: Any) -> float | Tensor:
    """A number of any library as Python's own, or a tensor as it is; NaN for what is no number, is negative or not finite."""
    try:
        number = math.nan if isinstance(lr, str | bytes) else float(lr)  # a tensor of two elements has none, nor has a complex one
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        return math.nan
    return lr if isinstance(lr, Tensor) else number


def plain(groups: Iterable[dict[str, Any]]) -> None:
    """Turns what schedulers and users have put into the groups as numpy's numbers into Python's: files are read without numpy."""
    for group in groups:
        group.update({key: value.item() for key, value in group.items() if isinstance(value, np.generic)})


class Multipliers:
    """Reads the `lr` of all groups, as they are given and before each step.

    Says once that it multiplies the learned step, if no step has had more than a hundredth. Where a scheduler warms up from there, its
    `initial_lr` is what was meant.

    Args:
        name: of the optimizer.
        learned: whether `lr` is such a multiplier; else it is a learning rate, of which nothing is said.
    """

    def __init__(self, name: str, learned: bool = True) -> None:
        self.name, self.told = name, not learned
        self.largest = 0.0  # of all steps

    def read(self, groups: Sequence[dict[str, Any]], stacklevel: int, step: bool = True) -> None:
        """Raises ValueError for an lr that is no number of at least 0."""
        largest = self.largest
        for group in groups:
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.numel() == 1 and lr.device.type != "cpu":  # was looked at when it came: to look waits for it
                largest = math.inf
                continue
            if type(lr) is not float or not 0 <= lr < math.inf:
                number = multiplier(lr)
                if not isinstance(number, Tensor) and math.isnan(number):
                    raise ValueError(f"lr must be a number of at least 0 (got {lr!r})")
                group["lr"] = lr = number
            largest = math.inf if isinstance(lr, Tensor) else max(largest, lr, float(group.get("initial_lr", 0.0)))
        if step:
            self.largest = largest
        if 0 < largest < SMALL and not self.told:
            self.told = True
            said = f"lr is {largest:g}: it multiplies the step that {self.name} has learned, and is 1 by default"
            warnings.warn(said, stacklevel=stacklevel)


def evaluate(closure: Callable[[], Any] | None, name: str) -> Any:
    """What the closure of `step` returns; None without one. Raises TypeError where it is the loss itself."""
    if closure is None:
        return None
    if not callable(closure):
        raise TypeError(f"step takes a closure, and {name} the loss by its name: use step(loss=loss) (got {type(closure).__name__})")
    with torch.enable_grad():
        return closure()


def one_number(loss: Any) -> Tensor:
    """The loss as a detached tensor of no axes. Raises ValueError if it is anything but one number."""
    try:
        if isinstance(loss, str | bytes):
            raise TypeError
        seen = (loss if isinstance(loss, Tensor) else torch.as_tensor(loss, dtype=torch.float32)).detach()
        if seen.layout != torch.strided or seen.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"the loss must be one number, which a closure returns alone (got {type(loss).__name__})") from None
    if seen.numel() != 1:
        raise ValueError(f"the loss must be one number, its mean over the batch (got shape {tuple(seen.shape)})")
    return seen.reshape(())


__all__ = ["LONGEST", "Multipliers", "evaluate", "multiplier", "one_number", "plain", "whole"]
