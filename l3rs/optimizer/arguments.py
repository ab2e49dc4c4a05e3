"""Checks the arguments of learned optimizers, L3RS and the others: the numbers of groups, and the loss."""

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
SMALL = 0.01  # a multiplier of this or less was meant as a learning rate


def whole(value: Any) -> int:
    """Converts a whole number of any library, such as numpy, to Python's int; 0 if it is none."""
    try:
        return 0 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return 0


def multiplier(lr: Any) -> float | Tensor:
    """Converts a number of any library to Python's float, and keeps a tensor; NaN if it is no number, negative or not finite."""
    try:
        number = math.nan if isinstance(lr, str | bytes) else float(lr)  # a tensor of two elements has none, nor has a complex one
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        return math.nan
    return lr if isinstance(lr, Tensor) else number


def plain(groups: Iterable[dict[str, Any]]) -> None:
    """Replaces numpy's numbers in the groups by Python's, so that checkpoints load with `weights_only=True`."""
    for group in groups:
        group.update({key: value.item() for key, value in group.items() if isinstance(value, np.generic)})


class Multipliers:
    """Reads the `lr` of all groups, at the start and before each step.

    It warns once if `lr` looks like a learning rate: if no step so far had more than 0.01. A scheduler that warms up counts by its
    `initial_lr`.

    Args:
        name: of the optimizer.
        learned: whether `lr` multiplies a learned step; if not, it is a learning rate, and nothing warns.
    """

    def __init__(self, name: str, learned: bool = True) -> None:
        self.name, self.told = name, not learned
        self.largest = 0.0  # of all steps

    def read(self, groups: Sequence[dict[str, Any]], stacklevel: int, step: bool = True) -> None:
        """Raises ValueError if an lr is no number of at least 0."""
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
        if 0 < largest <= SMALL and not self.told:
            self.told = True
            said = f"lr is {largest:g}: it multiplies the step that {self.name} has learned, and is 1 by default"
            warnings.warn(said, stacklevel=stacklevel)


def evaluate(closure: Callable[[], Any] | None, name: str) -> Any:
    """Calls the closure of `step` and returns its loss; None without one. Raises TypeError if it is the loss itself."""
    if closure is None:
        return None
    if not callable(closure):
        raise TypeError(f"{name} takes the loss by name: use step(loss=loss) (got {type(closure).__name__} in the closure's place)")
    with torch.enable_grad():
        return closure()


def one_number(loss: Any) -> Tensor:
    """Detaches the loss and drops its axes. Raises ValueError unless it is one number."""
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
