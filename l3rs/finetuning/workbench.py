"""A workload, loaded in one process: its tasks, and its network, reset for each task."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from l3rs.finetuning.tasks import TaskConfig, TaskDistribution
from l3rs.finetuning.workload import Workload
from l3rs.networks.convolution import use_matmuls
from l3rs.networks.create import draw_head, initialize


class Workbench:
    """A loaded workload. It resets its network for each task, which is cheaper than building it anew.

    Args:
        workload: what to load.
        task: the size of its tasks, and so of the head.
        device: of the network.
    """

    def __init__(self, workload: Workload, task: TaskConfig, device: str = "cpu") -> None:
        self.workload, self.task = workload, task
        network = workload.network(task.classes)
        if device == "cpu":  # where it is faster; on a GPU more, smaller kernels need not be
            use_matmuls(network)
        self.network: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._start = {name: t.clone() for name, t in self.network.state_dict().items()}
        self._tasks: dict[str, TaskDistribution] = {}

    def network_for(self, head_seed: int) -> nn.Module:
        """Resets the network, buffers included, and draws its head from this seed. It is the same object every time."""
        self.network.load_state_dict(self._start)
        self.network.zero_grad()
        if self.workload.from_scratch:
            initialize(self.network, head_seed)
        else:
            draw_head(self.network, head_seed)
        return self.network

    def tasks(self, purpose: str) -> TaskDistribution:
        """The tasks over the classes of this purpose."""
        if purpose not in self._tasks:
            classes = self.workload.class_split.classes[purpose]
            self._tasks[purpose] = TaskDistribution(self.workload.images(purpose), classes, self.task)
        return self._tasks[purpose]


@lru_cache(maxsize=2)
def workbench(workload: Workload | None = None, task: TaskConfig | None = None, device: str = "cpu") -> Workbench:
    """This process's workbench; by default the shipped network on Icons, in tasks of 25 classes."""
    return Workbench(workload or Workload(), task or TaskConfig(), device)
