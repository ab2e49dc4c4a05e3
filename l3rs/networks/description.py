"""What each layer of a network is, in numbers, for the controller."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l3rs.controller.initial import DEPTHS
from l3rs.networks.create import head_names


def description_of(network: nn.Module) -> Tensor:
    """What each layer of a network is, (L, 9), in numbers from 0 to 1, as `l3rs.controller.initial.DESCRIPTION` names them.

    The depth of a layer of the body is shared between the two nearest of five depths, from the first convolution to the last.
    One-dimensional tensors of the body are shifts where they are called bias, and scales elsewhere.
    """
    head, named = set(head_names(network)), list(network.named_parameters())
    matrices = sum(p.ndim > 1 and name not in head for name, p in named)
    rows, passed = [], 0
    for name, p in named:
        bias = name.rpartition(".")[2] == "bias"
        if name in head:
            rows.append([1.0] + [0.0] * DEPTHS + [0.0, 0.0, float(bias)])
            continue
        passed += p.ndim > 1
        at = (DEPTHS - 1) * max(passed - 1, 0) / max(matrices - 1, 1)
        depths = [max(0.0, 1 - abs(at - i)) for i in range(DEPTHS)]
        rows.append([0.0, *depths, float(p.ndim <= 1 and not bias), float(p.ndim <= 1 and bias), 0.0])
    return torch.tensor(rows)
