"""Checks the states of parameters before anything is loaded, and before a kernel takes an address."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l3rs.directions import DIRECTIONS
from l3rs.optimizer.distributed import local
from l3rs.schedules.schedule import LearnedSchedule, without_wrappers
from l3rs.schedules.seal import fingerprint
from l3rs.text import printable

Group = Mapping[str, Any]
SCHEDULE = "l3rs_schedule"  # a key of the groups of a state dict: what `schedule_mark` gave
MATCH, HEAD, GUARD = "l3rs_match", "l3rs_head", "l3rs_guard"  # others: `match`, `head` and `guard` of the run
MATCHES = ("name", "position")
LONGEST_MARK = 300  # characters
NEW: dict[str, Any] = {  # of groups: the clock, what `Guard` keeps, and the step at which one was added
    "step": 0, "skipped": 0, "first_loss": None, "cut": 1.0, "late": 0,
}  # fmt: skip


def stand_in(p: Tensor) -> Tensor:
    """Makes a stand-in for a parameter that takes no memory."""
    return torch.empty(p.shape, dtype=p.dtype, device="meta")


def differences(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    """Lists the keys that only one of them has, or whose shapes differ."""
    mine, right = ({key: shape_of(t) for key, t in each.items()} for each in (state, expected))
    return sorted({key for key, _ in mine.items() ^ right.items()})


def shape_of(t: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None of anything else."""
    return tuple(t.shape) if isinstance(t, Tensor) else None


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


def schedule_mark(learned: LearnedSchedule) -> str:
    """The name of a schedule, and a fingerprint of its numbers and its config, by which a saved run knows it. Wrappers rename layers."""
    config = json.dumps(vars(learned.config), default=str)
    digest = fingerprint(config, learned.theta.float())[:12]
    return f"{learned.name[: LONGEST_MARK - len(digest) - 1]} {digest}"


def same_schedule(mark: str, other: str) -> bool:
    """Whether two marks are of one schedule: names may change."""
    return mark.rpartition(" ")[2] == other.rpartition(" ")[2]


def saved_mark(groups: Sequence[Group]) -> str:
    """Reads the mark in the groups of a state dict.

    Raises:
        ValueError: it is none, or groups have different ones.
    """
    found = [group.get(SCHEDULE) for group in groups]
    if not all(isinstance(mark, str) and mark == found[0] and len(mark) <= LONGEST_MARK for mark in found):
        said = printable(str(found)[:LONGEST_MARK])
        raise ValueError(f"{SCHEDULE} must be the same in all groups of a state, a name and a fingerprint (got {said})")
    return printable(str(found[0]))


def saved_options(groups: Sequence[Group]) -> tuple[str, str | None, bool]:
    """Reads the run's `match`, `head` and `guard` in the groups of a state dict. Raises ValueError if they are wrong or differ."""
    match, head, guard = (groups[0][key] for key in (MATCH, HEAD, GUARD))
    for key, good in ((MATCH, match in MATCHES), (HEAD, head is None or isinstance(head, str)), (GUARD, isinstance(guard, bool))):
        found = [group[key] for group in groups]
        if not good or any(value != found[0] for value in found):
            said = printable(str(found)[:LONGEST_MARK])
            raise ValueError(f"{key} must be the same in all groups of a state, as it was saved (got {said})")
    return match, head, guard


def check_groups(saved: Sequence[Group], own: Sequence[Group]) -> None:
    """Raises ValueError if the groups are of another optimizer."""
    if len(saved) != len(own):
        raise ValueError(f"this state has a different number of parameter groups: {len(saved)}, and {len(own)} here")
    for key in ("total_steps", "lr", "maximize", "weight_decay", *NEW, SCHEDULE, MATCH, HEAD, GUARD):
        if any(key not in group for group in saved):
            raise ValueError(f"this state is of another optimizer: its groups have no {key!r}, and have {', '.join(map(str, saved[0]))}")


def check_states(
    saved: Mapping[Any, Mapping[str, Any]],
    fresh: Mapping[Any, Mapping[str, Tensor]],
    own: Sequence[Group],
    lazy: tuple[str, ...],
    under: str,
) -> None:
    """Compares the states of parameters with fresh ones. A parameter without a state gets a fresh one.

    Args:
        own: the groups here, for names.
        lazy: how the keys begin that come with the steps, of which nothing is known.
        under: the end of the message where the schedules differ.

    Raises:
        ValueError: a state has other keys or shapes, or numbers that cannot be.
    """
    for place, (i, expected) in enumerate(fresh.items()):
        ours = {key: t for key, t in saved[i].items() if key in (*expected, "ema") or "/" in key}  # a wrapper may keep its own there
        state = {key: t for key, t in ours.items() if not key.startswith(lazy)}
        differ = differences(state, expected) if state else []
        if differ and state.keys() == expected.keys() and differ != ["ema"]:
            shapes = f"{shape_of(state[differ[0]])}, and would be {shape_of(expected[differ[0]])} here"
            raise ValueError(f"this state is of another network: {differ[0]} of {name_of(place, own)} has shape {shapes}")
        if differ:
            raise ValueError(f"this state is of another kind of schedule; what differs: {', '.join(differ[:3])}{under}")
        for key, t in state.items():
            direction, of_a_direction, kept = key.partition("/")
            if t.is_meta or (of_a_direction and direction not in DIRECTIONS):  # one of your own may keep any numbers
                continue
            least = (kept or key) in ("exp_avg_sq", "exp_inf", "step")
            if not local(t).isfinite().all() or (least and (local(t) < 0).any()):
                what = "finite numbers of at least 0" if least else "finite numbers"
                raise ValueError(f"{key} of {name_of(place, own)} must be {what} in this state; it is damaged, or was changed by hand")


def check_names(saved: Sequence[Group], own: Sequence[Group]) -> None:
    """Compares parameters by name, if both have names; prefixes of wrappers do not count.

    Raises:
        ValueError: the names or their order differ; the message says where first.
    """
    theirs, mine = names_of(saved), names_of(own)
    if theirs is None or mine is None or len(theirs) != len(mine):  # torch compares the numbers
        return
    forms = [tuple(form) for form in without_wrappers(mine)]
    if any(tuple(form) in forms for form in without_wrappers(theirs)):
        return
    first = next(i for i, pair in enumerate(zip(theirs, mine, strict=True)) if pair[0] != pair[1])
    how = "in another order" if sorted(theirs) == sorted(mine) else "of another network"
    raise ValueError(f"this state is of parameters {how}: number {first} is {theirs[first]!r} there and {mine[first]!r} here")


def check_unlike(names: Sequence[str] | None) -> None:
    """Raises ValueError if two parameters have one name: what a layer is, and what was learned for it, is told by its name."""
    twice = next((name for name, number in Counter(names or ()).items() if number > 1), None)
    if twice is not None:
        raise ValueError(
            f"two parameters are called {twice!r}: give named_parameters() of the whole network, or names that tell its modules apart"
        )


def name_of(i: int, own: Sequence[Group]) -> str:
    """Names the parameter at place i, for a message."""
    names = names_of(own)
    return names[i] if names else f"parameter {i}"


def names_of(groups: Sequence[Group]) -> list[str] | None:
    """The names of the parameters of groups; None if some have none."""
    if any("param_names" not in group for group in groups):
        return None
    return [name for group in groups for name in group["param_names"]]
