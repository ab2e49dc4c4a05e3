"""Finding what was learned: by the name of what is shipped, by path, or by Hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l3rs.schedules.hub import FILE, download, is_id
from l3rs.schedules.learned import Learned
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError

SPECIALISTS, GENERALIST = ("icons-resnet34",), "icons-generalist"  # what `auto` chooses from
SHIPPED = (*SPECIALISTS, GENERALIST, "icons-resnet34-seed1", "icons-resnet34-seed2", "icons-resnet34-six")
SHIPPED_WEIGHTS = {"icons-celo2-base": "celo2-base"}  # of other learned optimizers, and which
FORMS = f"a learned schedule is one of {', '.join(SHIPPED)}, a path, or a Hub id, OWNER/NAME or OWNER/NAME@REVISION"
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def locate(given: str | Path, **hub: Any) -> Path:
    """The file that a shipped name, a path, or a Hub id means, in this order.

    Args:
        given: a shipped name; else an existing file, or a folder that `save_pretrained` wrote; else a Hub id, `owner/name` or
            `owner/name@revision`. A string that ends in `.safetensors` is always a path.
        hub: arguments of `hub.download`.

    Raises:
        CheckpointError: there is none; the message says what to do.
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
            found = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))[:5]) or "none"
            raise CheckpointError(f"{path} is a folder without {FILE}, which save_pretrained writes; give a file of it ({found})")
        return path / FILE
    if not file and isinstance(given, str) and is_id(given):
        return download(given, **hub)
    if not file:
        raise CheckpointError(f"{given} is not a file; {FORMS}")
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
    """A learned schedule that is shipped, from a path, or from the Hub or its cache on this machine. Nothing in the file is executed.

    Args:
        name_or_path: as of `locate`.
        force_download: whether to download again what is in the cache.
        token: for the Hub; None is that of `HF_TOKEN` or `hf auth login`.
        cache_dir: None is the Hub's own, `HF_HUB_CACHE`.
        local_files_only: whether to look at the cache alone, as `HF_HUB_OFFLINE=1` does.
        revision: a branch, tag, or commit; None is that of the id, or `main`.

    Raises:
        CheckpointError: there is no such one, it cannot be fetched, or is not of this kind or version; the message says what to do.
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
        if not learned.theta.isfinite().all():  # `read` itself takes them: meta-training may come by such, and goes on
            raise CheckpointError(f"{path} holds meta-parameters that are not finite; it may be damaged")
    except CheckpointError as error:
        raise explained(error, name_or_path) from None
    return learned


def explained(error: CheckpointError, given: str | Path) -> CheckpointError:
    """An error of a file, with what to do about it where the file is one of the Hub's."""
    if not is_id(given) or Path(given).exists():
        return error
    return CheckpointError(
        f"{given} on the Hub cannot be used: {error}. Choose another repository or revision; if the download was damaged, "
        "load(..., force_download=True) repeats it"
    )


def save(learned: Learned, path: str | Path) -> None:
    """Writes a learned schedule, or the weights of another learned optimizer, as a safetensors file that `load` reads."""
    learned.write(path)


def resolve(learned: str | Path, names: Sequence[str], match: str = "name") -> LearnedSchedule:
    """What `L3RS(learned=...)` means for parameters with these names: `"auto"` is the specialist that fits, else the generalist."""
    if learned != "auto":
        return load(learned)
    if names and match == "name":
        for name in SPECIALISTS:
            specialist = load(name)
            try:
                specialist.slots(len(names), names)
            except ValueError:
                continue
            return specialist
    return load(GENERALIST)
