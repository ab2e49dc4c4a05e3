"""Fixtures: one thread, a fixed seed, a small network with convolution, BatchNorm and dense layers, a random schedule for it, folders
of image files, and commands that must fail."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from l3rs.cli import main
from l3rs.controller.config import L3RSConfig
from l3rs.controller.initial import initial_theta
from l3rs.data.images import ImageSet
from l3rs.schedules.schedule import LearnedSchedule

torch.set_num_threads(1)  # also for fixtures of a module: the bits of a run depend on it


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


def noise(key: str, width: int, height: int) -> Image.Image:
    """An RGB image that only the key decides."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_tree(root: Path, counts: Mapping[str, int], width: int = 5, height: int = 4, suffix: str = ".png") -> Path:
    """Image files `root/<class>/<class>-<number>.png`, so many a class; gives `root`."""
    for folder, number in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            file = root / folder / f"{Path(folder).name}-{i:03d}{suffix}"
            noise(f"{folder} {i}", width, height).save(file)
    return root


def image_set(classes: int, each: int, height: int = 12, width: int = 12, side: int | None = None, mirror: bool = False) -> ImageSet:
    """Random colour images, classes one after the other; the last quarter of each class is for validation."""
    number = classes * each
    pixels = torch.randint(256, (number, 3, height, width), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    labels = torch.arange(classes).repeat_interleave(each)
    validation = torch.arange(number) % each >= each - each // 4
    names = tuple(map(str, range(classes)))
    return ImageSet("made up", pixels, labels, names, validation, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), side, mirror)


def backward(network: nn.Module, k: int) -> torch.Tensor:
    """The loss of batch k, whose gradients the network has then."""
    inputs, labels = batch(k, next(network.parameters()).dtype)
    network.zero_grad()
    loss = functional.cross_entropy(network(inputs).float(), labels)
    loss.backward()
    return loss


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """By an optimizer that takes the loss."""
    for k in steps:
        optimizer.step(loss=backward(network, k))  # type: ignore[call-arg]


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def fails_at_last(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr of a command that must fail; progress bars may come before it."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that must fail."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line
