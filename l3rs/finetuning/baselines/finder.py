"""A learning-rate finder: Smith's range test (arXiv 1506.01186), as fastai's `lr_find` does it (fastai 2.8.12, `callback/schedule.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST, LAST, STEPS = 1e-7, 10.0, 100  # `start_lr`, `end_lr` and `num_it` of lr_find
SMOOTH = 0.98  # beta of AvgSmoothLoss
STOP = 4.0  # times the best smooth loss: the end of the test


def find_rate(
    network: nn.Module, optimizer_at: Callable[[float], torch.optim.Optimizer], batches: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Trains with a learning rate that grows exponentially, picks one from the losses, and puts the network back as it was.

    It takes up to `STEPS` steps, on `batches` of inputs and labels.

    Raises:
        ValueError: the losses show nothing, since they are infinite too early.
    """
    before = {name: t.clone() for name, t in network.state_dict().items()}
    optimizer = optimizer_at(FIRST)
    rates: list[float] = []
    losses: list[float] = []
    average, best = 0.0, math.inf
    network.train()
    for step, (inputs, labels) in enumerate(islice(batches, STEPS)):
        rate = FIRST * (LAST / FIRST) ** (step / STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
        average = SMOOTH * average + (1 - SMOOTH) * loss.item()
        rates.append(rate)
        losses.append(average / (1 - SMOOTH ** (step + 1)))
        best = min(best, losses[-1])
        if not losses[-1] <= STOP * best:  # also if it is not a number
            break
    optimizer.zero_grad()
    network.load_state_dict(before)
    shown = [(r, x) for r, x in zip(rates, losses, strict=True)][STEPS // 10 : -5]
    shown = shown[: next((i for i, (_, x) in enumerate(shown) if math.isnan(x)), len(shown))]
    if not shown:
        raise ValueError(f"the learning-rate finder saw {len(losses)} losses, too few to choose from")
    return shown[valley([x for _, x in shown])][0]


def valley(losses: Sequence[float]) -> int:
    """Picks a place in the longest fall of the losses, which may skip some: half way, by fastai's rule `valley`."""
    lengths: list[int] = []  # of the longest falling subsequence that ends at each
    for i, loss in enumerate(losses):
        lengths.append(1 + max((lengths[j] for j in range(i) if losses[j] > loss), default=0))
    end = lengths.index(max(lengths))
    start = end - max(lengths) if end else 0
    third = (end - start) / 3
    return start + int(third) + int(third / 2)
