"""What may surround a step and must not change it: autocast, and a default device of torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

KINDS = ("cpu", "cuda", "mps", "xpu")  # of devices


@contextmanager
def undisturbed() -> Iterator[None]:
    """Switches autocast off, which would round products, and has tensors that name no device made on the CPU, where tables belong."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in KINDS:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
