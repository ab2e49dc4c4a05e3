"""The metadata of a safetensors file of l3rs, with a checksum: whether the file holds what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DAMAGED = "is damaged, or was changed by hand: its contents are not those of its checksum"


def sealed(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata: `about` as JSON, and the SHA-256 of it and of all tensors."""
    text = json.dumps(about)
    return {"l3rs": text, "sha256": _digest(text, tensors)}


def intact(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's contents are those of its checksum. One without a checksum is taken as it is."""
    return "sha256" not in metadata or metadata["sha256"] == _digest(metadata["l3rs"], tensors)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode(errors="surrogatepass"))
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode(errors="surrogatepass"))
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
