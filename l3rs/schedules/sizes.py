"""How large the weights of a network's layers are: by that, and by names, `auto` knows the network that a specialist was made for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 0.05
"""Nats that the median layer may differ by, and still be of the same network.

From the shipped weights of Icons, 25 to 250 steps of fine-tuning on new classes move the median by 0.003 to 0.025, the most by Adam at
the rate that is tuned for 100 steps. Other weights of the same ResNet-34 at width 16 are 0.11 (of Emoji), 0.23 (of Glyphs) and 0.8 (random)
apart from them, and random ones at width 64 1.5. 0.05 is halfway in logs (tests/schedules/test_sizes.py)."""
FLOOR = 1e-8  # of a root mean square, before its logarithm: a layer may start at 0


def log_sizes(params: Sequence[Tensor]) -> list[float] | None:
    """The log of the root mean square of each tensor; None where they have no values yet (the meta device).

    One norm for all tensors of a device, for which it is waited once. Sharded tensors (DTensor) are gathered, by all ranks.
    """
    if any(p.is_meta for p in params):
        return None
    whole = [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for p in params]
    sizes = [0.0] * len(whole)
    for device in dict.fromkeys(p.device for p in whole):
        here = [i for i, p in enumerate(whole) if p.device == device]
        norms = torch.stack([norm.float() for norm in torch._foreach_norm([whole[i] for i in here])]).tolist()
        for i, norm in zip(here, norms, strict=True):
            sizes[i] = math.log(norm / math.sqrt(max(whole[i].numel(), 1)) + FLOOR)
    return sizes
