"""Finds a schedule, or other learned weights, by shipped name, path or Hub id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from l3rs.schedules.hub import FILE, download, is_id
from l3rs.schedules.learned import Learned
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError
from l3rs.schedules.sizes import TOLERANCE
from l3rs.text import meant, printable

SPECIALISTS, GENERALIST = ("icons-resnet34",), "generalist"  # what `auto` chooses from
START = "start"  # learned nothing: where meta-training of a schedule for any network starts
PAPER_SPECIALIST = "icons-resnet34-paper"  # by the paper's protocol: random heads, running statistics, evolution strategies
OLDER_GENERALIST = "icons-generalist"  # met one network
_PAPERS = (PAPER_SPECIALIST, f"{PAPER_SPECIALIST}-seed1", f"{PAPER_SPECIALIST}-seed2", "icons-resnet34-six", OLDER_GENERALIST)
OTHER_SEEDS = tuple(f"{SPECIALISTS[0]}-seed{seed}" for seed in (1, 2))
SHIPPED = (*SPECIALISTS, GENERALIST, START, *OTHER_SEEDS, *_PAPERS)
SHIPPED_WEIGHTS = {"icons-celo2-base": "celo2-base"}  # of other learned optimizers, and which
FORMS = f"a learned schedule is one of {', '.join(SHIPPED)}, a path, or a Hub id, OWNER/NAME or OWNER/NAME@REVISION"
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def locate(given: str | Path, **hub: Any) -> Path:
    """Finds the file of a shipped name, a path, or a Hub id, in this order.

    Args:
        given: a shipped name; else an existing file, or a folder that `save_pretrained` wrote; else a Hub id, `owner/name` or
            `owner/name@revision`. A string that ends in `.safetensors` is always a path.
        hub: arguments of `hub.download`.

    Raises:
        CheckpointError: there is none; the message names the cure.
    """
    if given in SHIPPED or given in SHIPPED_WEIGHTS:
        return CHECKPOINTS / f"{given}.safetensors"
    path = Path(given)
    try:
        folder, file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name that no file can have: one of 300 characters, or with a zero byte
        folder = file = False
    if folder:
        if not (path / FILE).is_file():
            names = sorted(file.name for file in path.glob("*.safetensors"))
            names.sort(key=lambda name: name.startswith(("state-", "theta-")))  # those on the way of a meta-training come last
            found = ", ".join(names[:5]) or "none"
            raise CheckpointError(f"{path} is a folder without {FILE}, which save_pretrained writes; give a file of it ({found})")
        return path / FILE
    if not file and isinstance(given, str) and is_id(given):
        return download(given, **hub)
    if not file:
        raise CheckpointError(f"{printable(str(given))} is not a file{meant(str(given), SHIPPED) or ';'} {FORMS}")
    return path


def load(
    name_or_path: str | Path,
    *,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
) -> LearnedSchedule:
    """Loads a learned schedule: a shipped one, from a path, or from the Hub or its cache. Nothing in the file is executed.

    Args:
        name_or_path: a shipped name, a file, a folder that `save_pretrained` wrote, or a Hub id: `owner/name` or `owner/name@revision`.
        force_download: downloads again, even if the cache has it.
        token: for the Hub; None takes the token of `HF_TOKEN` or `hf auth login`.
        cache_dir: None takes the Hub's own, `HF_HUB_CACHE`.
        local_files_only: looks at the cache alone, like `HF_HUB_OFFLINE=1`.
        revision: a branch, tag, or commit; None takes the revision of the id, or `main`.

    Raises:
        CheckpointError: there is none, it cannot be fetched, or it has another kind or version; the message names the cure.
    """
    path = locate(
        name_or_path,
        force_download=force_download,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        revision=revision,
    )
    try:
        learned = LearnedSchedule.read(path)
        if not learned.theta.isfinite().all():  # `read` accepts them: meta-training may meet such, and goes on
            raise CheckpointError(f"{path} holds meta-parameters that are not finite; it may be damaged")
    except CheckpointError as error:
        raise explained(error, name_or_path) from None
    return learned


def explained(error: CheckpointError, given: str | Path) -> CheckpointError:
    """Adds the cure to an error, if the file came from the Hub."""
    if not is_id(given) or Path(given).exists():
        return error
    return CheckpointError(
        f"{given} on the Hub cannot be used: {error}. Choose another repository or revision; if the download was damaged, "
        "load(..., force_download=True) repeats it"
    )


def save(learned: Learned, path: str | Path) -> None:
    """Writes a learned schedule, or the weights of another learned optimizer, as a safetensors file.

    `l3rs.load` reads a schedule, `l3rs.learners.load` reads both.

    Args:
        learned: with finite meta-parameters.
        path: of the file, which is replaced as a whole if it is there.

    Raises:
        OSError: the file cannot be written.
    """
    learned.write(path)


class Chosen(NamedTuple):
    """A schedule, and why `auto` took it; empty where it was asked for."""

    schedule: LearnedSchedule
    why: str = ""

    def __str__(self) -> str:
        """Its name, and why."""
        return f"{self.schedule.name}: {self.why}" if self.why else self.schedule.name


def resolve(learned: str | Path | LearnedSchedule | Chosen, named: Sequence[tuple[str, Tensor]], match: str = "name") -> Chosen:
    """Finds the schedule of `L3RS(learned=...)`.

    `"auto"` takes a shipped specialist only for the network that it was meta-trained on: where all names are known to it, and the sizes of
    the weights are those of its network, see `l3rs.schedules.sizes.TOLERANCE`; of several the nearest. Else it takes the generalist. So it
    never takes a specialist whose file keeps no sizes, as those of older versions.

    Args:
        named: the parameters with their names; empty if they have none.
        match: as in `L3RS`.

    Raises:
        ValueError: `learned` is none of these, or cannot be loaded.
    """
    if isinstance(learned, Chosen):
        return learned
    if isinstance(learned, LearnedSchedule):
        return Chosen(learned)
    if not isinstance(learned, str | os.PathLike):
        raise ValueError(f"learned must be 'auto', a name, a file or a LearnedSchedule (got {learned!r})")
    if learned != "auto":
        return Chosen(load(learned))
    if not named or match != "name":
        why = "there are none" if match == "name" else f"match is {match!r}"
        return Chosen(load(GENERALIST), f"only names tell a network, and {why}")
    known = [specialist for specialist in map(load, SPECIALISTS) if specialist.knows([name for name, _ in named])]
    if not known:
        return Chosen(load(GENERALIST), "no specialist knows all names")
    gaps = [(gap, specialist) for specialist in known if (gap := specialist.apart(named)) is not None]
    if not gaps:
        return Chosen(load(GENERALIST), f"names agree with {known[0].name}, sizes cannot be compared")
    gap, nearest = min(gaps, key=lambda pair: pair[0])
    if gap <= TOLERANCE:
        return Chosen(nearest, "names and sizes agree")
    return Chosen(load(GENERALIST), f"names agree with {nearest.name}, sizes do not (median {gap:.2g} nats apart)")
