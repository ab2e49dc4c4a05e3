"""The BatchNorm layers of a network."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> Iterator[_BatchNorm]:
    """All of them, of any number of axes, synchronized or not."""
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


__all__ = ["batch_norms"]
