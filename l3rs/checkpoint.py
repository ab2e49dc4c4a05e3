"""Learned schedules on disk: safetensors with metadata, and the ones that are shipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from l3rs.config import L3RSConfig
from l3rs.controller import meta_shapes, unflatten
from l3rs.features import feature_names
from l3rs.schedule import LearnedSchedule

SCHEMA = 1
SPECIALISTS, GENERALIST = ("icons-resnet34",), "icons-generalist"
SHIPPED = (*SPECIALISTS, GENERALIST)


class CheckpointError(ValueError):
    """A file that is not a learned schedule that this version can use; the message says which and why."""


def save(learned: LearnedSchedule, path: str | Path) -> None:
    """Writes a schedule: each meta-parameter as a tensor of its own, everything else as JSON in the metadata."""
    meta = unflatten(learned.theta, meta_shapes(learned.config, learned.layers))
    about = {
        "schema": SCHEMA,
        "name": learned.name,
        "config": asdict(learned.config),
        "features": feature_names(learned.config),
        "layers": learned.layers,
        "training": learned.training,
    }
    save_file({k: v.clone() for k, v in meta.items()}, path, metadata={"l3rs": json.dumps(about)})


def read(path: str | Path) -> LearnedSchedule:
    """Reads a schedule; nothing in the file is executed.

    Raises:
        CheckpointError: there is no such file, it is truncated, not of l3rs, of another schema version, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a learned schedule is a path or one of {', '.join(SHIPPED)}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); it may be truncated") from None
    if "l3rs" not in metadata:
        raise CheckpointError(f"{path} holds no l3rs metadata: it is some other safetensors file")
    try:
        about = json.loads(metadata["l3rs"])
        schema = about["schema"]
        if schema != SCHEMA:
            raise CheckpointError(f"{path} has schema version {schema}; this version of l3rs reads {SCHEMA}")
        if "kind" in about:
            raise CheckpointError(f"{path} holds a {about['kind']}, not a schedule of L3RS; l3rs.learned.weights.read reads it")
        config = L3RSConfig(**about["config"])
        layers = tuple(about["layers"])
        expected = feature_names(config)
        if tuple(about["features"]) != expected:
            different = sorted(set(about["features"]) ^ set(expected))
            raise CheckpointError(f"{path} was meta-trained on other features; those that differ: {', '.join(different[:3])}")
        shapes = meta_shapes(config, layers)
        found = {name: tuple(t.shape) for name, t in tensors.items()}
        if found != shapes:
            wrong = next(n for n in sorted({*shapes, *found}) if shapes.get(n) != found.get(n))
            raise CheckpointError(f"{path} holds {wrong} of shape {found.get(wrong)}; its config asks for {shapes.get(wrong)}")
        theta = torch.cat([tensors[name].float().flatten() for name in shapes])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has l3rs metadata that this version cannot read: {error}") from None
    return LearnedSchedule(config, layers, theta, str(about.get("name", path.stem)), about.get("training", {}))


def load(name_or_path: str | Path) -> LearnedSchedule:
    """A shipped schedule by name, or one from a path. Raises `CheckpointError`."""
    if name_or_path in SHIPPED:
        with resources.as_file(resources.files("l3rs") / "checkpoints" / f"{name_or_path}.safetensors") as path:
            return read(path)
    return read(name_or_path)


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


__all__ = ["GENERALIST", "SCHEMA", "SHIPPED", "SPECIALISTS", "CheckpointError", "load", "read", "resolve", "save"]
