"""Which axes of a torch tensor the JAX originals mean, where they say "the last two" or "the two largest".

JAX stores a convolution's kernel as HWIO and a dense one as (in, out); torch as OIHW and (out, in). Nothing is permuted: axes are named
in torch's order.
"""

from __future__ import annotations

from collections.abc import Sequence


def jax_order(ndim: int) -> tuple[int, ...]:
    """The torch axes in the order in which JAX has them: spatial ones, then input, then output channels."""
    return (*range(2, ndim), 1, 0) if ndim > 1 else tuple(range(ndim))


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """(d1, d0), the torch axes of the second largest and of the largest dimension, or None for tensors of fewer than two axes.

    Dimensions that are equal keep JAX's order, as a stable ascending sort leaves them.
    """
    if len(shape) < 2:
        return None
    order = jax_order(len(shape))
    ascending = sorted(order, key=lambda axis: shape[axis])  # Python's sort is stable
    return ascending[-2], ascending[-1]


def matrix_axes(ndim: int) -> tuple[int, ...]:
    """The torch axes of JAX's last two, input and output channels; of a vector, its only one."""
    return (0, 1) if ndim > 1 else tuple(range(ndim))
