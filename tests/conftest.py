"""Fixtures: one thread, a fixed seed, a small network with convolution, BatchNorm and dense layers, and a random schedule for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from l3rs.config import L3RSConfig
from l3rs.controller import initial_theta
from l3rs.schedule import LearnedSchedule


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def small_network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    # no bias before BatchNorm, as in a ResNet: its gradient is rounding noise, which normalization would blow up to a full step
    layers = [
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ]
    return nn.Sequential(*layers).to(dtype)


def random_schedule(network: nn.Module, specialist: bool = True, scale: float = 0.3, **config: object) -> LearnedSchedule:
    """A schedule whose every meta-parameter matters: the initial one with noise on all of it."""
    c = L3RSConfig(**{"embedding": 16 if specialist else 0, **config})  # type: ignore[arg-type]
    layers = tuple(n for n, _ in network.named_parameters()) if specialist else ()
    theta = initial_theta(c, layers, seed=0)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2))
    return LearnedSchedule(c, layers, theta + scale * noise, "random")


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(16, 1, 8, 8, generator=generator, dtype=dtype), torch.randint(3, (16,), generator=generator)
