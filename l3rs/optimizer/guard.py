"""The guard: a run whose loss rises in its first steps goes on with shorter ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WATCHED = 20  # the first steps of a run
CUT = 0.3  # what lengths are multiplied by, once
RISE, SHARE = 1.5, 0.5  # nats that the loss may rise above the first step's, or this share of it if that is more


class Guard:
    """Watches the loss of the first steps, and cuts all lengths, once, where two steps in turn have far more than the first.

    What it has seen stands in the groups, as the losses so far, `losses`, and the cut, `cut`; so a run that is resumed goes on as it would
    have. A run that is not cut has the same bits as one that is not watched.

    The loss of a step counts in this step where it lies on the CPU. On another device it counts in the next, which never waits for the
    device to be idle: a step behind that loss, it has a forward and a backward pass to do. Steps that are captured in a CUDA graph are not
    watched.
    """

    def __init__(self) -> None:
        self._told: tuple[Tensor, torch.cuda.Event | None] | None = None  # the last loss, on its way

    def watch(self, loss: Tensor | None, groups: Sequence[dict[str, Any]], sign: float, stacklevel: int) -> None:
        """Takes in the loss of a step, (), before the step is taken.

        Args:
            groups: of the optimizer.
            sign: -1 where the loss is maximized.
        """
        if groups[0]["cut"] < 1 or groups[0]["step"] >= WATCHED:
            if groups[0]["losses"]:
                _note(groups, losses=())
            self._told = None
            return
        self.settle(groups)
        if loss is not None and not (loss.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._told = _sent(sign * loss.detach().float())
            if loss.device.type == "cpu":
                self.settle(groups)
        losses = groups[0]["losses"]
        if rises(losses):
            _note(groups, cut=CUT)
            warnings.warn(
                f"the loss rose from {losses[0]:.3g} to {losses[-2]:.3g} and {losses[-1]:.3g} within {len(losses)} steps: L3RS goes on with "
                f"{CUT} of its lengths; guard=False leaves them as they are",
                stacklevel=stacklevel,
            )

    def settle(self, groups: Sequence[dict[str, Any]]) -> None:
        """Writes the loss that is on its way into the groups."""
        if self._told is not None:
            cell, arrived = self._told
            if arrived is not None:
                arrived.synchronize()
            self._told, loss = None, float(cell)
            if math.isfinite(loss):  # else nothing moves
                _note(groups, losses=(*groups[0]["losses"], loss))


def rises(losses: Sequence[float]) -> bool:
    """Whether the last two of these losses are, in the mean, far above the first."""
    return len(losses) > 2 and (losses[-1] + losses[-2]) / 2 > losses[0] + max(RISE, SHARE * abs(losses[0]))


def _sent(loss: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
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
