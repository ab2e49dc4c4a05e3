"""The shipped network and the Icons tasks, loaded once a process and put back to their start for each run."""

from __future__ import annotations

from functools import lru_cache

import torch
from timm.models.resnet import ResNet

from l3rs.data.icons import icons_split, load_icons
from l3rs.networks import draw_head, pretrained
from l3rs.tasks import TaskConfig, TaskDistribution


class Workbench:
    """One pretrained network, put back to its start for each task: cheaper than building it anew.

    Args:
        num_classes: outputs of the head.
    """

    def __init__(self, num_classes: int) -> None:
        self.network = pretrained(num_classes).to(memory_format=torch.channels_last)  # 10 to 15% faster on CPU
        self._start = {name: t.clone() for name, t in self.network.state_dict().items()}

    def network_for(self, head_seed: int) -> ResNet:
        """The network as pretrained, buffers included, with the head of this seed. It is the same object every time."""
        self.network.load_state_dict(self._start)
        self.network.zero_grad()
        draw_head(self.network, head_seed)
        return self.network


@lru_cache(maxsize=2)
def workbench(num_classes: int) -> Workbench:
    """This process's workbench."""
    return Workbench(num_classes)


@lru_cache(maxsize=4)
def icons_tasks(purpose: str, config: TaskConfig) -> TaskDistribution:
    """The tasks over the Icons classes of this purpose."""
    return TaskDistribution(load_icons(), icons_split().classes[purpose], config)
