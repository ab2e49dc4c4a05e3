"""The guard: a run whose loss leaps in its first steps goes on with shorter ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# [choice], such that sound runs on the networks of configs/zoo.yaml that are not held out are left alone (evaluate/guard.py).
WATCHED = 20  # the first steps of a run
CUT = 0.3  # what all further steps are multiplied by, once
LEAP, SHARE = 3.0, 1.0  # nats by which a loss may be above the first one, or this share of the first one where that is more


class Guard:
    """Watches the loss of the first steps, and shortens all further ones, once, where one is far above the first.

    What it knows stands in the groups, the loss of the first step, `first_loss`, and the multiplier of all further steps, `cut`: so a run
    that is resumed goes on as it would have. A run that is not cut has the same bits as one that is not watched.

    Only the loss tells: gradients' norms grew more in some sound runs than in some lost ones.

    A loss on the CPU counts at once. One on a GPU counts in the next step, when the device has long had it, and still has the backward pass
    behind it to do: so it never idles. Steps that are captured in a CUDA graph are not watched.
    """

    def __init__(self) -> None:
        self._sent: tuple[Tensor, torch.cuda.Event | None] | None = None  # the last loss, on its way

    def watch(self, loss: Tensor | None, groups: Sequence[dict[str, Any]], sign: float, stacklevel: int) -> None:
        """Takes in the loss of a step, (), before the step is taken.

        Args:
            groups: of the optimizer.
            sign: -1 where the loss is maximized.
            stacklevel: of the warning, for the caller.
        """
        on_gpu = (loss is not None and loss.is_cuda) or (self._sent is not None and self._sent[1] is not None)
        if on_gpu and torch.cuda.is_current_stream_capturing():
            return
        self.settle(groups, stacklevel + 1)
        if loss is not None and groups[0]["cut"] == 1 and groups[0]["step"] < WATCHED:
            self._sent = _send(sign * loss.detach().float())
            if loss.device.type == "cpu":
                self.settle(groups, stacklevel + 1)

    def settle(self, groups: Sequence[dict[str, Any]], stacklevel: int) -> None:
        """Judges the loss that is on its way."""
        if self._sent is None:
            return
        cell, arrived = self._sent
        if arrived is not None:
            arrived.synchronize()
        self._sent, loss = None, float(cell)
        first = groups[0]["first_loss"]
        if not math.isfinite(loss):  # nothing moves then
            return
        if first is None:
            _note(groups, first_loss=loss)
        elif loss > first + max(LEAP, SHARE * abs(first)):
            _note(groups, cut=CUT)
            warnings.warn(
                f"the loss leapt from {first:.3g} to {loss:.3g}: L3RS multiplies all further steps by {CUT} (guard=False lets it be; in "
                "L3RSMixin, l3rs_guard = False)",
                stacklevel=stacklevel,
            )


def _send(loss: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on its way to where it can be read, and what tells that it is there."""
    if not loss.is_cuda:
        return loss, None
    cell, arrived = torch.empty((), dtype=torch.float32, pin_memory=True), torch.cuda.Event()
    cell.copy_(loss, non_blocking=True)
    arrived.record(torch.cuda.current_stream(loss.device))
    return cell, arrived


def _note(groups: Sequence[dict[str, Any]], **values: Any) -> None:
    for group in groups:
        group.update(values)
