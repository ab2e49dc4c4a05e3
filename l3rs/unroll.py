"""Fine-tune a network on a task with any optimizer, and report. Meta-training and evaluation both go through here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from l3rs.data.images import ImageSet
from l3rs.tasks import Task

PRECISIONS = ("float32", "bfloat16")


@dataclass
class Report:
    """What happened in one run.

    Attributes:
        train_losses: cross entropy of each training batch, before its step.
        accuracy, loss: on the evaluation batch, by the number of steps taken. NaN after a run has diverged.
        seconds: wall-clock time of the run.
        peak_mib: the most memory in use, where it was measured.
    """

    train_losses: list[float] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = math.nan


def evaluate(network: nn.Module, inputs: Tensor, labels: Tensor, precision: str = "float32") -> tuple[float, float]:
    """Accuracy and cross entropy with BatchNorm's running statistics; the network is left in train mode."""
    network.eval()
    with torch.no_grad(), _autocast(inputs.device, precision):
        logits = network(inputs).float()
    network.train()
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(logits, labels).item()


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def unroll(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    task: Task,
    scheduler: LRScheduler | None = None,
    evaluate_at: Collection[int] = (),
    precision: str = "float32",
) -> Report:
    """Fine-tunes `network`, in place, where it is, on all batches of `task`, BatchNorm in train mode.

    The optimizer gets the loss through a closure, as any optimizer may. A run whose loss is not finite stops there; what is
    still to be evaluated is NaN.

    Args:
        evaluate_at: after how many steps to evaluate, besides the end. 0 is before the first.
        precision: of forward and backward pass: `float32`, or `bfloat16`, autocast.
    """
    started = time.perf_counter()
    report = Report()
    wanted = {s for s in evaluate_at if s <= len(task.batches)} | {len(task.batches)}
    device = next(network.parameters()).device
    held_out, held_out_labels = (t.to(device) for t in task.held_out(images))

    def record(step: int) -> None:
        if step in wanted:
            report.accuracy[step], report.loss[step] = evaluate(network, held_out, held_out_labels, precision)

    # torch annotates closures as giving floats; they give, and `step` returns, the loss as a tensor
    step_with = cast("Callable[[Callable[[], Tensor]], Tensor]", optimizer.step)
    network.train()
    record(0)
    for step in range(1, len(task.batches) + 1):
        inputs, targets = (t.to(device, non_blocking=True) for t in task.batch(images, step - 1))

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            with _autocast(device, precision):
                loss = F.cross_entropy(network(inputs), targets)
            loss.backward()
            return loss

        loss = float(step_with(closure).item())
        report.train_losses.append(loss)
        if loss != loss or loss in (float("inf"), float("-inf")):
            break
        if scheduler is not None:
            scheduler.step()
        record(step)
    for step in wanted - report.loss.keys():
        report.accuracy[step] = report.loss[step] = float("nan")
    report.seconds = time.perf_counter() - started
    return report
