"""A workload, loaded in one process: its tasks, and its network, reset for each task."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

import torch
from torch import nn

from l3rs.finetuning.tasks import HEAD_BATCHES, Task, TaskConfig, TaskDistribution, check_head
from l3rs.finetuning.unroll import autocast
from l3rs.finetuning.workload import Workload
from l3rs.networks.convolution import use_matmuls
from l3rs.networks.create import head_of
from l3rs.networks.head_start import HeadStartReport, head_start

REMEMBERED = 64  # head starts; the candidates of a generation share theirs


class Workbench:
    """A loaded workload. It resets its network for each task, which is cheaper than building it anew.

    Args:
        workload: what to load.
        task: the size of its tasks, and so of the head.
        device: of the network.

    Attributes:
        network: it is the same object every time.
        head_start: what the last one chose; None after a random head.
    """

    def __init__(self, workload: Workload, task: TaskConfig, device: str = "cpu") -> None:
        self.workload, self.task = workload, task
        network = workload.network(task.classes)
        if device == "cpu":  # where it is faster; on a GPU more, smaller kernels need not be
            use_matmuls(network)
        self.network: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._start = {name: t.clone() for name, t in self.network.state_dict().items()}
        self._tasks: dict[str, TaskDistribution] = {}
        self.head_start: HeadStartReport | None = None
        self._heads: OrderedDict[tuple[str, int, int, str], tuple[HeadStartReport, dict[str, torch.Tensor]]] = OrderedDict()

    def network_for(self, head_seed: int) -> nn.Module:
        """Resets the network, buffers included, and draws its head from this seed. It is the same object every time."""
        self.network.load_state_dict(self._start)
        self.network.zero_grad()
        self.workload.draw(self.network, head_seed)
        return self.network

    def ready(
        self, purpose: str, seed: int, steps: int, head: str = "random", head_batches: int = HEAD_BATCHES, precision: str = "float32"
    ) -> tuple[TaskDistribution, Task, nn.Module]:
        """Draws a task over the classes of this purpose, and resets the network for it.

        Args:
            seed, steps: of the task.
            head: `random`, or `start`, in closed form, see `l3rs.head_start`.
            head_batches: a head start looks at no more than this many batches, the first ones of the run.
            precision: of its forward pass.
        """
        check_head(head, head_batches)
        tasks = self.tasks(purpose)
        task = tasks.draw(seed, steps)
        network = self.network_for(task.head_seed).train()
        self.head_start = self._start_head(purpose, tasks, task, min(steps, head_batches), precision) if head == "start" else None
        return tasks, task, network

    def _start_head(self, purpose: str, tasks: TaskDistribution, task: Task, batches: int, precision: str) -> HeadStartReport:
        """Gives the network of a task its head in closed form, from at most this many batches; it is remembered."""
        head, key = head_of(self.network), (purpose, task.seed, batches, precision)
        if key not in self._heads:
            with autocast(head.weight.device, precision):
                found = head_start(self.network, ((*task.batch(tasks.images, i), task.batches[i]) for i in range(batches)))
            self._heads[key] = found, {name: t.clone() for name, t in head.state_dict().items()}
            if len(self._heads) > REMEMBERED:
                self._heads.popitem(last=False)
        found, state = self._heads[key]
        head.load_state_dict(state)
        return found

    def tasks(self, purpose: str) -> TaskDistribution:
        """The tasks over the classes of this purpose."""
        if purpose not in self._tasks:
            classes = self.workload.class_split.classes[purpose]
            self._tasks[purpose] = TaskDistribution(self.workload.images(purpose), classes, self.task)
        return self._tasks[purpose]


@lru_cache(maxsize=8)  # tasks of a zoo are of several
def workbench(workload: Workload | None = None, task: TaskConfig | None = None, device: str = "cpu") -> Workbench:
    """This process's workbench; by default the shipped network on Icons, in tasks of 25 classes."""
    return Workbench(workload or Workload(), task or TaskConfig(), device)
