"""What every trainer must come to: 20 steps in a plain loop. And what they train: a small network, on batches that are numbered."""

from __future__ import annotations

import torch
from conftest import batch, random_schedule, small_network
from torch import Tensor, nn
from torch.nn import functional as F

from l3rs import L3RS, LearnedSchedule

STEPS = 20
SIGNALS = {"sees the loss": ("log_weight_norm", "log_grad_norm", "loss"), "sees no loss": ("log_weight_norm", "log_grad_norm")}


def learned(network: nn.Module, sees: str = "sees the loss") -> LearnedSchedule:
    return random_schedule(network, scale=0.1, lr0=2e-3, signals=SIGNALS[sees])


def batches(parts: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [batch(k) for k in range(STEPS * parts)]


def data() -> tuple[Tensor, Tensor]:
    """All batches, one after the other."""
    inputs, labels = zip(*batches(), strict=True)
    return torch.cat(inputs), torch.cat(labels)


def plain_loop(sees: str = "sees the loss", parts: int = 1, clip: float | None = None, bf16: bool = False) -> nn.Module:
    """The network after 20 steps, each on so many batches; gradients may be clipped to a norm."""
    network = small_network()
    optimizer = L3RS(network.named_parameters(), STEPS, learned(network, sees))
    for k in range(STEPS):
        optimizer.zero_grad()
        losses = []
        for inputs, labels in batches(parts)[k * parts : (k + 1) * parts]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = network(inputs)
            losses.append(F.cross_entropy(logits.float(), labels))
            (losses[-1] / parts).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step(loss=torch.stack(losses).mean())
    return network


def same(a: nn.Module, b: nn.Module) -> bool:
    """To the bit, buffers too."""
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
