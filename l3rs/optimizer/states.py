"""Checks the states of parameters before anything is loaded, and before a kernel takes an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l3rs.schedules.schedule import without_wrappers

Group = Mapping[str, Any]


def meta(p: Tensor) -> Tensor:
    """Makes a stand-in for a parameter that takes no memory."""
    return torch.empty(p.shape, dtype=p.dtype, device="meta")


def differences(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    """Lists the keys that only one of them has, or whose shapes differ."""
    shapes = ({key: getattr(t, "shape", None) for key, t in each.items()} for each in (state, expected))
    mine, right = shapes
    return sorted({key for key, _ in mine.items() ^ right.items()})


def fit(p: Tensor, state: dict[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Casts a state to the dtypes of a fresh one, and moves it to the device of its parameter.

    Raises:
        ValueError: a tensor is missing or has another shape, as after a layer was resized.
    """
    for key, like in expected.items():
        t = state.get(key)
        if not isinstance(t, Tensor) or t.shape != like.shape:
            found = f"of shape {tuple(t.shape)}" if isinstance(t, Tensor) else "missing"
            raise ValueError(
                f"{key} of a parameter of shape {tuple(p.shape)} must have shape {tuple(like.shape)} (it is {found}): "
                "a layer that was resized needs a new optimizer, or `del optimizer.state[parameter]`"
            )
        if t.dtype != like.dtype or t.device != p.device:
            state[key] = t.to(p.device, like.dtype)


def check_names(saved: Sequence[Group], own: Sequence[Group]) -> None:
    """Compares parameters by name, if both have names; prefixes of wrappers do not count.

    Raises:
        ValueError: the names or their order differ; the message says where first.
    """
    theirs, mine = _names(saved), _names(own)
    if theirs is None or mine is None or len(theirs) != len(mine):  # torch compares the numbers
        return
    forms = [tuple(form) for form in without_wrappers(mine)]
    if any(tuple(form) in forms for form in without_wrappers(theirs)):
        return
    first = next(i for i, pair in enumerate(zip(theirs, mine, strict=True)) if pair[0] != pair[1])
    how = "in another order" if sorted(theirs) == sorted(mine) else "of another network"
    raise ValueError(f"this state is of parameters {how}: number {first} is {theirs[first]!r} there and {mine[first]!r} here")


def name_of(i: int, own: Sequence[Group]) -> str:
    """Names the parameter at place i, for a message."""
    names = _names(own)
    return names[i] if names else f"parameter {i}"


def _names(groups: Sequence[Group]) -> list[str] | None:
    if any("param_names" not in group for group in groups):
        return None
    return [name for group in groups for name in group["param_names"]]


__all__ = ["check_names", "differences", "fit", "meta", "name_of"]
