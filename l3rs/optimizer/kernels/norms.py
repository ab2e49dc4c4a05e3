"""What the first pass finds."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Norms(NamedTuple):
    """l2 norms by layer, in float32.

    Attributes:
        weights, grads: (L,).
        directions: (L, P), of what `Direction.update` gives.
        ok: a bool on the same device: loss and gradients are finite. If not, all was measured with gradients of zero.
    """

    weights: Tensor
    grads: Tensor
    directions: Tensor
    ok: Tensor
