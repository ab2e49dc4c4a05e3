"""A sealed file: tensors as safetensors, and everything else as JSON in its metadata, with a checksum of both.

Nothing in a file is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from l3rs.files import replacing

SCHEMA = 1
LARGEST = 2**30  # bytes: the largest meta-parameters here take millions; a sparse file claims any size at no cost
DEEPEST = 50  # lists in lists: what Python reads it may not be able to print, compare or write again
OF_STATES = {"generation"}  # what the metadata of a state have, see l3rs.meta.folder
DAMAGED = "is damaged, or was changed by hand: its contents do not match its checksum"


class CheckpointError(ValueError):
    """A learned schedule cannot be found, fetched, read or written; the message says why, and names the cure."""


def write_sealed(path: str | Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a sealed file of a learned schedule, or of the weights of another learned optimizer."""
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=sealed({"schema": SCHEMA, **about}, tensors))


def is_sealed(path: str | Path) -> bool:
    """Whether there is a file with the metadata of `write_sealed`, intact or not."""
    try:
        with safe_open(path, framework="pt") as file:
            return "l3rs" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_sealed(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a file of `write_sealed`: its description and its tensors.

    Raises:
        CheckpointError: there is no such file, or it is truncated, damaged, not of l3rs, or of another schema version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    if (size := path.stat().st_size) > LARGEST:
        raise CheckpointError(f"{path} has {size:,} bytes, and a learned schedule at most {LARGEST:,}: it is some other file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # another file may hold many
            tensors = {name: file.get_tensor(name) for name in file.keys()} if "l3rs" in metadata else {}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); it may be truncated") from None
    if "l3rs" not in metadata:
        raise CheckpointError(f"{path} holds no l3rs metadata: it is some other safetensors file")
    if not intact(metadata, tensors):
        raise CheckpointError(f"{path} {DAMAGED}")
    try:
        about = json.loads(metadata["l3rs"])
        if _is_deep(about, DEEPEST):
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        schema = None if about.keys() == OF_STATES else about["schema"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has l3rs metadata that this version cannot read: {error}") from None
    if schema is None:
        raise CheckpointError(f"{path} is a state that a meta-training resumes from; give the schedule in its folder")
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema version {schema}; this version of l3rs reads {SCHEMA}")
    return about, tensors


def _is_deep(value: object, left: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not left or any(_is_deep(part, left - 1) for part in parts)


def sealed(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Makes the metadata: `about` as JSON, and the SHA-256 of it and all tensors."""
    return sealed_text(json.dumps(about), tensors)


def sealed_text(text: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The same, of JSON."""
    return {"l3rs": text, "sha256": _digest(text, tensors)}


def intact(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the contents of a file match its checksum, which it must have."""
    return metadata.get("sha256") == _digest(metadata["l3rs"], tensors)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    parts: list[str | Tensor] = [text]
    for name, t in sorted(tensors.items()):
        parts += [f"{name} {t.dtype} {tuple(t.shape)}", t]
    return fingerprint(*parts)


def fingerprint(*parts: str | bytes | Tensor) -> str:
    """The SHA-256 of texts, bytes and tensors' values, one after the other."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(part if isinstance(part, bytes) else part.encode(errors="surrogatepass"))
    return sha.hexdigest()
