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

from l3rs.directions.base import HALF
from l3rs.optimizer.distributed import local

LONGEST = 2**63  # no run has as many steps, and no checkpoint or table of torch holds more
SMALL = 0.01  # a multiplier of this or less was meant as a learning rate [choice]


def whole_or_zero(value: Any) -> int:
    """Converts a whole number of any library, such as numpy, to Python's int; 0 if it is none."""
    try:
        return 0 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return 0


def _number(value: Any) -> float:
    """Converts a number of any library to Python's float; NaN if it is none."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)  # a tensor of two elements has none, nor has a complex one
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def multiplier(lr: Any) -> float | Tensor:
    """Converts a number of any library to Python's float, and keeps a tensor; NaN if it is no number, negative or not finite."""
    number = _number(lr)
    if not 0 <= number < math.inf:
        return math.nan
    return lr if isinstance(lr, Tensor) else number


def at_least_zero(name: str, value: Any) -> float:
    """Converts an option, a number of any library, to Python's float. Raises ValueError if it is no number, negative or not finite."""
    number = float(multiplier(value))
    if math.isnan(number):
        raise ValueError(f"{name} must be a finite number of at least 0 (got {value!r})")
    return number


def run_length(steps: Any) -> int:
    """Converts `total_steps` of any library to Python's int. Raises ValueError if it is no whole number of at least 1."""
    if not 1 <= whole_or_zero(steps) < LONGEST:
        raise ValueError(f"total_steps must be a whole number of at least 1, the steps of the whole run (got {steps!r})")
    return whole_or_zero(steps)


def uphill(maximize: Any) -> bool:
    """Converts `maximize` to Python's bool. Raises ValueError if it is neither True nor False, as a string is."""
    if isinstance(maximize, str) or maximize not in (False, True):
        raise ValueError(f"maximize must be True or False (got {maximize!r})")
    return bool(maximize)


def plain(groups: Iterable[dict[str, Any]]) -> None:
    """Replaces numpy's numbers in the groups by Python's, so that checkpoints load with `weights_only=True`."""
    for group in groups:
        group.update({key: value.item() for key, value in group.items() if isinstance(value, np.generic)})


def check_group(group: dict[str, Any]) -> None:
    """Checks what users and saved states write into a group of L3RS, and makes plain numbers of it.

    Raises:
        ValueError, TypeError: a value cannot be; the message says which, and what it must be.
    """
    steps, lr = run_length(group["total_steps"]), group["lr"]
    number = multiplier(lr)
    if not isinstance(number, Tensor) and math.isnan(number):
        raise ValueError(f"lr must be a finite number of at least 0 (got {lr!r}): it multiplies the learned steps, and is 1 by default")
    decay = at_least_zero("weight_decay", group["weight_decay"])
    for p in group["params"]:
        if p.dtype not in (*HALF, torch.float32, torch.float64):
            raise TypeError(f"a parameter of shape {tuple(p.shape)} is {p.dtype}; L3RS steps real floating ones of 16, 32 or 64 bits")
        if any(size > 1 and stride == 0 for size, stride in zip(p.shape, local(p).stride(), strict=True)):
            raise ValueError(f"a parameter of shape {tuple(p.shape)} is expanded: several of its elements are one number in memory")
    for name, what in (("step", "taken"), ("skipped", "skipped"), ("late", "taken before the group came")):
        if not whole_or_zero(group[name]) == group[name] >= 0:
            raise ValueError(f"{name} must be a whole number of at least 0, the steps that were {what} (got {group[name]!r})")
    cut = _number(group["cut"])
    if not 0 < cut <= 1:
        raise ValueError(f"cut must be a number above 0 and at most 1, by which the guard shortens all steps (got {group['cut']!r})")
    first = None if group["first_loss"] is None else _number(group["first_loss"])
    if first is not None and not math.isfinite(first):
        raise ValueError(f"first_loss must be a finite number, the loss of the first step, or None (got {group['first_loss']!r})")
    maximize = uphill(group["maximize"])
    names = group.get("param_names")
    if names is not None and len(names) != len(group["params"]):
        raise ValueError(
            f"a group has {len(names)} names and {len(group['params'])} parameters: one was put into a group by hand, or taken out: use "
            "add_param_group, or requires_grad_(False) to leave one as it is, or make a new optimizer"
        )
    group.update(total_steps=steps, lr=number, weight_decay=decay, cut=cut, first_loss=first, maximize=maximize)


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
            said = f"lr is {largest:g}: it multiplies the step that {self.name} has learned, and is 1 by default: leave it out"
            warnings.warn(said, stacklevel=stacklevel)


def call_closure(closure: Callable[[], Any] | None, name: str) -> Any:
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
        seen = (loss if isinstance(loss, Tensor) else torch.as_tensor(loss, dtype=torch.float32, device="cpu")).detach()
        if seen.layout != torch.strided or seen.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"the loss must be one number, which a closure returns alone (got {type(loss).__name__})") from None
    if seen.numel() != 1:
        raise ValueError(f"the loss must be one number, its mean over the batch (got shape {tuple(seen.shape)})")
    return seen.reshape(())


__all__ = [
    "LONGEST",
    "Multipliers",
    "at_least_zero",
    "call_closure",
    "multiplier",
    "one_number",
    "plain",
    "run_length",
    "uphill",
    "whole_or_zero",
]
