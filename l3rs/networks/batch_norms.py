"""The BatchNorm layers of a network."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> Iterator[_BatchNorm]:
    """All of them, of any number of axes, synchronized or not."""
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def try_one_image(network: nn.Module, channels: int, side: int) -> None:
    """Raises torch's ValueError if a network cannot be trained on one image at a time, as BatchNorm cannot on maps of one pixel."""
    with torch.no_grad():
        deepcopy(network).train()(torch.zeros(1, channels, side, side))


__all__ = ["batch_norms", "try_one_image"]
