"""Fine-tuning runs of a learned optimizer side by side on one device: what `unroll` does, in an order in which a GPU need not wait.

A lane has a network of its own. Its forward and backward pass is captured once, the step of L3RS once a run; nothing is asked of the device
before the end of the run. On a CPU a run gives what `unroll` gives, to the bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from l3rs.data.images import ImageSet
from l3rs.directions import DIRECTIONS
from l3rs.finetuning.captured import Captured, Failed, OnStream, Steps, finish, side_by_side
from l3rs.finetuning.tasks import Task, TaskConfig
from l3rs.finetuning.unroll import REFRESH, Report, autocast, evaluated
from l3rs.finetuning.workbench import Workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS
from l3rs.networks.batch_norms import batch_norms
from l3rs.optimizer.l3rs import L3RS
from l3rs.schedules.learned import Learned

AT_ONCE = 8  # runs on a GPU [choice]
REMEMBERED = 4  # tasks that stay on the device; those of a generation, which every candidate has


@dataclass(frozen=True)
class LoadedTask:
    """A task's data on a device.

    Attributes:
        inputs, labels: of the training batches, (K, B, channels, height, width) and (K, B).
        held_out: inputs and labels of the evaluation batch.
    """

    inputs: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, task: Task, images: ImageSet, device: torch.device) -> LoadedTask:
        """Loads it."""
        inputs, labels = zip(*(task.batch(images, k) for k in range(len(task.batches))), strict=True)
        seen, answers = task.held_out(images)
        return cls(torch.stack(inputs).to(device), torch.stack(labels).to(device), (seen.to(device), answers.to(device)))


class Lane(OnStream):
    """One network on a device, for runs that follow each other.

    Args:
        bench: has the network, which stays the same object in the same memory, and resets it.
        precision: of forward and backward pass.
    """

    def __init__(self, bench: Workbench, precision: str = "float32") -> None:
        self.bench, self.network, self.precision = bench, bench.network, precision
        for module in self.network.modules():
            if (isinstance(module, _DropoutNd) and module.p) or getattr(module, "drop_prob", 0):  # as timm's DropPath
                kind = type(module).__name__
                raise ValueError(f"the network has {kind}, whose draws captured steps do not repeat: use device cpu, or set its rate to 0")
        self.params = list(self.network.parameters())
        super().__init__(self.params[0].device)
        self.normalizations = [norm for norm in batch_norms(self.network) if norm.track_running_stats]
        self.passes: Captured | None = None  # until the first task says how large a batch is
        self.sizes: object = None
        self.sights: list[Captured] = []

    def run(
        self, make: Callable[[nn.Module], Optimizer], ready: Callable[[], nn.Module], task: LoadedTask, refresh: bool = False
    ) -> Steps[Callable[[], Report]]:
        """Fine-tunes the network on all batches of a task.

        Args:
            make: builds the optimizer of the network.
            ready: resets the network, and gives it the head of the task.
            task: gives the batches.
            refresh: gives BatchNorm the statistics of the last batches before the evaluation.

        Returns:
            What reads the report: `accuracy` and `loss` at the end, NaN if the run diverged.
        """
        passes = self._prepare(task, refresh)
        ready().train()
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad
        optimizer, steps = make(self.network), len(task.inputs)
        step = cast("Callable[..., object]", optimizer.step)  # those that learn take the loss
        update = Captured(lambda: step(loss=self.loss), self.device, passes)
        losses = torch.empty(steps, device=self.device)
        for k in range(steps):
            self._load(task, k)
            passes()
            if k == 1 and _capturable(optimizer):  # the first step makes the tables
                update.capture(warm_ups=0)
            update()
            losses[k] = self.loss
            yield
        if refresh:
            for m in self.normalizations:
                m.reset_running_stats()
            for i, k in enumerate(range(max(0, steps - REFRESH), steps)):
                self._load(task, k)
                self.sights[i]()
                yield
        self.held_out.copy_(task.held_out[0])
        self.answers.copy_(task.held_out[1])
        self.evaluation()
        accuracy, loss = (t.clone() for t in self.found)

        def read() -> Report:
            update.graph = None  # which was to live until all its launches are done
            train_losses: list[float] = losses.tolist()
            end = next((i for i, x in enumerate(train_losses, 1) if not math.isfinite(x)), None)
            if end is not None or not math.isfinite(loss.item()):  # the last step has no training loss after it
                return Report(train_losses[:end], {steps: math.nan}, {steps: math.nan})
            return Report(train_losses, {steps: accuracy.item()}, {steps: loss.item()})

        return read

    def _load(self, task: LoadedTask, k: int) -> None:
        self.inputs.copy_(task.inputs[k])
        self.labels.copy_(task.labels[k])

    def _prepare(self, task: LoadedTask, refresh: bool) -> Captured:
        """Captures what is done in every run, for tasks of these sizes; the network's numbers are others afterwards."""
        sizes = task.inputs.shape[1:], task.held_out[0].shape
        if self.passes is not None and self.sizes == sizes and (self.sights or not refresh):
            return self.passes
        finish(self.device)
        self.sizes = sizes
        self.inputs, self.labels = task.inputs[0].clone(), task.labels[0].clone()
        self.held_out, self.answers = (t.clone() for t in task.held_out)
        self.passes = passes = Captured(self._passes, self.device)
        self.evaluation = Captured(self._evaluate, self.device, passes)
        self.sights = [Captured(partial(self._see, i), self.device, passes) for i in range(REFRESH)] if refresh else []
        self.network.train()
        if all(m.momentum is not None for m in self.normalizations):  # a mean over all batches asks for their number
            passes.capture()
            self.evaluation.capture()
            for sight in self.sights:
                sight.capture(warm_ups=0)
        self.grads = [p.grad for p in self.params]
        return passes

    def _passes(self) -> None:
        self.network.zero_grad()
        with autocast(self.device, self.precision):
            loss = F.cross_entropy(self.network(self.inputs), self.labels)
        loss.backward()
        self.loss = loss.detach()

    def _evaluate(self) -> None:
        with autocast(self.device, self.precision):
            self.found = evaluated(self.network, self.held_out, self.answers, self.precision)

    def _see(self, i: int) -> None:
        """Takes the statistics of batch number i into the mean of those before."""
        before = [m.momentum for m in self.normalizations]
        for m in self.normalizations:
            m.momentum = 1 / (i + 1)
        with torch.no_grad(), autocast(self.device, self.precision):
            self.network(self.inputs)
        for m, momentum in zip(self.normalizations, before, strict=True):
            m.momentum = momentum


def _capturable(optimizer: Optimizer) -> bool:
    """Whether a step asks the device nothing: that of L3RS, unless it mixes directions that are other optimizers."""
    return isinstance(optimizer, L3RS) and optimizer.learned is not None and set(optimizer.learned.config.directions) <= DIRECTIONS.keys()


def as_drawn(bench: Workbench, purpose: str, seed: int, steps: int) -> nn.Module:
    """The network of a task, with its random head."""
    return bench.network_for(bench.tasks(purpose).draw(seed, steps).head_seed)


class Lanes:
    """Runs of learned optimizers on one workload, several at once.

    Args:
        workload, task: the network, the images, and the size of a task.
        device: where.
        number: of runs at once, each with a network of its own.
        precision: of forward and backward pass.
        ready: resets the network of a workbench for a task, by its purpose, seed and steps, and gives it its head.
    """

    def __init__(
        self,
        workload: Workload,
        task: TaskConfig,
        device: str,
        number: int = AT_ONCE,
        precision: str = "float32",
        ready: Callable[[Workbench, str, int, int], nn.Module] = as_drawn,
    ) -> None:
        self.lanes, self.ready = [Lane(Workbench(workload, task, device), precision) for _ in range(number)], ready
        self._loaded: OrderedDict[tuple[str, int, int], LoadedTask] = OrderedDict()

    def reports(
        self, learned: Learned, wanted: Sequence[tuple[Tensor, int, int]], purpose: str, refresh: bool = False
    ) -> list[Report | Failed[Report]]:
        """One run for each of (theta, task's seed, steps); the best order is task by task."""

        def job(theta: Tensor, seed: int, steps: int) -> Callable[[Lane], Steps[Callable[[], Report]]]:
            def on(lane: Lane) -> Steps[Callable[[], Report]]:
                def make(network: nn.Module) -> Optimizer:
                    return LEARNERS[learned.kind].build(learned, theta, network.named_parameters(), steps, guard=False)

                return lane.run(make, self.begin(lane.network, purpose, seed, steps), self.load(purpose, seed, steps), refresh)

            return on

        return side_by_side(self.lanes, (job(*run) for run in wanted))

    def begin(self, network: nn.Module, purpose: str, seed: int, steps: int) -> Callable[[], nn.Module]:
        """What makes the network of a lane ready for a task."""
        (bench,) = (lane.bench for lane in self.lanes if lane.network is network)
        return lambda: self.ready(bench, purpose, seed, steps)

    def load(self, purpose: str, seed: int, steps: int) -> LoadedTask:
        """A task on the device."""
        key = purpose, seed, steps
        if key not in self._loaded:
            tasks = self.lanes[0].bench.tasks(purpose)
            self._loaded[key] = LoadedTask.of(tasks.draw(seed, steps), tasks.images, self.lanes[0].device)
            if len(self._loaded) > REMEMBERED:
                finish(self.lanes[0].device)
                self._loaded.popitem(last=False)
        return self._loaded[key]
