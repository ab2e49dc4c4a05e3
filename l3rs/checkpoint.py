"""Learned schedules on disk: safetensors with metadata; the ones that are shipped, and where others are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from l3rs.config import L3RSConfig
from l3rs.controller import meta_shapes, unflatten
from l3rs.errors import CheckpointError
from l3rs.features import feature_names
from l3rs.hub import FILE, download, is_id
from l3rs.schedule import LearnedSchedule
from l3rs.seal import DAMAGED, intact, sealed

SCHEMA = 1
SPECIALISTS, GENERALIST = ("icons-resnet34",), "icons-generalist"  # what `auto` chooses from
SHIPPED = (*SPECIALISTS, GENERALIST, "icons-resnet34-seed1", "icons-resnet34-seed2", "icons-resnet34-six")
SHIPPED_WEIGHTS = {"icons-celo2-base": "celo2-base"}  # of other learned optimizers, and which
FORMS = f"a learned schedule is one of {', '.join(SHIPPED)}, a path, or a Hub id, OWNER/NAME or OWNER/NAME@REVISION"


def save(learned: LearnedSchedule, path: str | Path) -> None:
    """Writes a schedule: each meta-parameter as a tensor of its own, everything else as JSON in the metadata."""
    meta = {k: v.clone() for k, v in unflatten(learned.theta, meta_shapes(learned.config, learned.layers)).items()}
    about = {
        "schema": SCHEMA,
        "name": learned.name,
        "config": asdict(learned.config),
        "features": feature_names(learned.config),
        "layers": learned.layers,
        "training": learned.training,
    }
    save_file(meta, path, metadata=sealed(about, meta))


def read(path: str | Path) -> LearnedSchedule:
    """Reads a schedule; nothing in the file is executed.

    Raises:
        CheckpointError: there is no such file, it is truncated, damaged, not of l3rs, of another schema version, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; {FORMS}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # those of some other file may be many
            tensors = {name: file.get_tensor(name) for name in file.keys()} if "l3rs" in metadata else {}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); it may be truncated") from None
    if "l3rs" not in metadata:
        raise CheckpointError(f"{path} holds no l3rs metadata: it is some other safetensors file")
    if not intact(metadata, tensors):
        raise CheckpointError(f"{path} {DAMAGED}")
    try:
        about = json.loads(metadata["l3rs"])
        schema = about["schema"]
        if schema != SCHEMA:
            raise CheckpointError(f"{path} has schema version {schema}; this version of l3rs reads {SCHEMA}")
        if "kind" in about:
            raise CheckpointError(f"{path} holds a {about['kind']}, not a schedule of L3RS; LearnedWeights.from_pretrained reads it")
        config = L3RSConfig(**about["config"])
        layers, training = tuple(about["layers"]), about.get("training", {})
        if not all(isinstance(layer, str) for layer in layers) or not isinstance(training, dict):
            raise ValueError("layers or training are not a list of names and a mapping")
        expected = feature_names(config)
        if tuple(about["features"]) != expected:
            different = sorted(set(about["features"]) ^ set(expected))
            raise CheckpointError(f"{path} was meta-trained on other features; those that differ: {', '.join(different[:3])}")
        shapes = meta_shapes(config, layers)
        found = {name: tuple(t.shape) for name, t in tensors.items()}
        if found != shapes:
            wrong = next(n for n in sorted({*shapes, *found}) if shapes.get(n) != found.get(n))
            raise CheckpointError(f"{path} holds {wrong} of shape {found.get(wrong)}; its config asks for {shapes.get(wrong)}")
        strange = next((n for n in shapes if not tensors[n].is_floating_point()), None)
        if strange is not None:
            raise ValueError(f"{strange} is of {tensors[strange].dtype}, and floating ones are read")
        theta = torch.cat([tensors[name].float().flatten() for name in shapes])
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} has l3rs metadata that this version cannot read: {error}") from None
    return LearnedSchedule(config, layers, theta, str(about.get("name", path.stem)), training)


def locate(given: str | Path, **hub: Any) -> Path:
    """The file that a shipped name, a path, or a Hub id means, in this order; `hub` are the arguments of `hub.download`.

    Raises:
        CheckpointError: there is none; the message says what to do.
    """
    if given in SHIPPED or given in SHIPPED_WEIGHTS:
        return Path(__file__).parent / "checkpoints" / f"{given}.safetensors"
    path = Path(given)
    if path.is_dir():
        if not (path / FILE).is_file():
            found = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))[:5]) or "none"
            raise CheckpointError(f"{path} is a folder without {FILE}, which save_pretrained writes; give a file of it ({found})")
        return path / FILE
    if not path.is_file() and isinstance(given, str) and is_id(given):
        return download(given, **hub)
    if not path.is_file():
        raise CheckpointError(f"{given} is not a file; {FORMS}")
    return path


def load(name_or_path: str | Path) -> LearnedSchedule:
    """A shipped schedule by name, one from a path, or one from the Hub by its id, as `LearnedSchedule.from_pretrained`.

    Raises:
        CheckpointError: there is none, or it cannot be used; the message says what to do.
    """
    return LearnedSchedule.from_pretrained(name_or_path)


def resolve(learned: str | Path, names: Sequence[str], match: str = "name") -> LearnedSchedule:
    """What `L3RS(learned=...)` means for parameters with these names: `"auto"` is the specialist that fits, else the generalist."""
    if learned != "auto":
        return load(learned)
    for name in SPECIALISTS if names and match == "name" else ():
        specialist = load(name)
        try:
            specialist.slots(len(names), names)
        except ValueError:
            continue
        return specialist
    return load(GENERALIST)


__all__ = ["FORMS", "GENERALIST", "SCHEMA", "SHIPPED", "SHIPPED_WEIGHTS", "SPECIALISTS"]
__all__ += ["CheckpointError", "load", "locate", "read", "resolve", "save"]
