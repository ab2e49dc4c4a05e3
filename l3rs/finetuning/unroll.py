"""Fine-tunes a network on a task with any optimizer, and reports. Meta-training and evaluation both use it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import update_bn

from l3rs.data.images import ImageSet
from l3rs.finetuning.tasks import Task
from l3rs.networks.head_start import HeadStartReport
from l3rs.networks.recent_statistics import RecentStatistics

PRECISIONS = ("float32", "bfloat16")
REFRESH = 20  # batches; running statistics with BatchNorm's momentum of 0.1 are as noisy as an average over 19


@dataclass
class Report:
    """The results of one run.

    Attributes:
        train_losses: cross entropy of each training batch, before its step.
        accuracy, loss: on the evaluation batch, by the number of steps taken. NaN after a run has diverged.
        seconds: wall-clock time of the run.
        peak_mib: the most memory in use; NaN if it was not measured.
        head_start: what the head in closed form was made of, if the run began with one.
    """

    train_losses: list[float] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = math.nan
    head_start: HeadStartReport | None = None


@contextmanager
def drawing(device: torch.device, seed: int, step: int) -> Iterator[None]:
    """Dropout and the like draw as a function of a task's seed and a step; afterwards torch's generators, of CPU and CUDA, are as
    they were."""
    gpus = [] if device.type != "cuda" else [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(gpus):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
            generator.manual_seed((seed * 1_000_003 + step) % 2**63)
        yield


def evaluate(network: nn.Module, inputs: Tensor, labels: Tensor, precision: str = "float32") -> tuple[float, float]:
    """Measures accuracy and cross entropy with BatchNorm's running statistics; leaves the network in train mode.

    Both are NaN where the cross entropy is not finite: the network has diverged, and its accuracy is that of any one class.
    """
    accuracy, loss = (t.item() for t in evaluated(network, inputs, labels, precision))
    return (accuracy, loss) if math.isfinite(loss) else (math.nan, math.nan)


def evaluated(network: nn.Module, inputs: Tensor, labels: Tensor, precision: str = "float32") -> tuple[Tensor, Tensor]:
    """The same as tensors, so that the device is not waited for; of a network that has diverged, as they are."""
    network.eval()
    with torch.no_grad(), autocast(inputs.device, precision):
        logits = network(inputs).float()
    network.train()
    return (logits.argmax(1) == labels).float().mean(), F.cross_entropy(logits, labels)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The forward passes of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@runtime_checkable
class ScheduleFree(Protocol):
    """An optimizer that trains at one point, and evaluates at another: an average of its weights."""

    def train(self) -> None:
        """Moves the weights to the point of training."""

    def eval(self) -> None:
        """Moves the weights to their average."""


@contextmanager
def where_evaluated(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Tensor] | None, refresh: bool = False
) -> Iterator[None]:
    """Puts the network into its state for evaluation, and restores it afterwards, to the bit.

    A schedule-free optimizer evaluates at the average of its weights. There, or with `refresh`, BatchNorm gets the mean statistics of
    `batches`, inputs: its running ones lag behind the weights. None leaves them as they are.
    """
    average = isinstance(optimizer, ScheduleFree) and any(optimizer.state.values())  # before the first step there is none
    if not (average or refresh):
        yield
        return
    before = {name: t.clone() for name, t in network.state_dict().items()}
    if average:
        optimizer.eval()  # type: ignore[attr-defined]
    try:
        if batches is not None:
            update_bn(batches, network)
        yield
    finally:
        if average:
            optimizer.train()  # type: ignore[attr-defined]
        network.load_state_dict(before)  # going to the average and back rounds


def unroll(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    task: Task,
    scheduler: LRScheduler | None = None,
    evaluate_at: Collection[int] = (),
    precision: str = "float32",
    refresh: bool = False,
    recent: bool = False,
    head_start: HeadStartReport | None = None,
) -> Report:
    """Fine-tunes `network`, in place and on its device, on all batches of `task`, with BatchNorm in train mode.

    What dropout draws is a function of the task's seed and the step, as the batches are.

    The optimizer gets the loss through a closure. If the loss is not finite, the run stops, and later evaluations are NaN. A schedule-free
    optimizer evaluates at the average of its weights, with BatchNorm statistics of the last `REFRESH` training batches; the network stays
    at the point of training.

    Args:
        network: to fine-tune.
        optimizer: of the network's parameters.
        images: of the task.
        task: gives the batches, and the evaluation batch.
        scheduler: of the learning rate, advanced once a step.
        evaluate_at: steps to evaluate after, besides the end; 0 is before the first step.
        precision: of the forward and backward pass: `float32`, or `bfloat16` by autocast.
        refresh: gives any optimizer those BatchNorm statistics in evaluations; training does not change.
        recent: evaluates with the statistics of `RecentStatistics`, which cost nothing; a schedule-free optimizer needs a refresh.
        head_start: what the network's head was made of, for the report. Before the first step, such a head is evaluated with the statistics
            of the first batches, unless that is to be with running ones.

    Returns:
        Accuracy and cross entropy of the evaluation batch after the steps that were asked for, each batch's loss, and the seconds of
        training alone.
    """
    started = time.perf_counter()
    report = Report(head_start=head_start)
    wanted = {s for s in evaluate_at if s <= len(task.batches)} | {len(task.batches)}
    device = next(network.parameters()).device
    held_out, held_out_labels = (t.to(device) for t in task.held_out(images))
    network.train()
    follower: RecentStatistics | None = None

    def record(step: int) -> None:
        if step in wanted:
            last = range(max(0, step - REFRESH), step) if step else range(min(REFRESH, len(task.batches)))
            seen = (task.batch(images, i)[0].to(device) for i in last)
            fresh = refresh if step else (refresh or recent) and head_start is not None
            lent = follower.applied() if follower else nullcontext()
            with drawing(device, task.seed, step), autocast(device, precision), where_evaluated(network, optimizer, seen, fresh), lent:
                report.accuracy[step], report.loss[step] = evaluate(network, held_out, held_out_labels, precision)

    # torch annotates closures as giving floats; they give, and `step` returns, the loss as a tensor
    step_with = cast("Callable[[Callable[[], Tensor]], Tensor]", optimizer.step)
    record(0)  # its passes over batches are not the run's
    if recent and not isinstance(optimizer, ScheduleFree):
        follower = RecentStatistics(network)
    with closing(follower) if follower else nullcontext():  # the network may be used again, also where a step fails
        for step in range(1, len(task.batches) + 1):
            inputs, targets = (t.to(device, non_blocking=True) for t in task.batch(images, step - 1))

            def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                optimizer.zero_grad()
                with autocast(device, precision):
                    loss = F.cross_entropy(network(inputs), targets)
                loss.backward()
                return loss

            with drawing(device, task.seed, step - 1):
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
