"""Many networks and many sizes of task, as users have them: what a task of meta-training is, as a function of its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.workload import Workload
from l3rs.finetuning.zoo import read_zoo

META_PURPOSES = ("meta-train", "meta-validation")


@dataclass(frozen=True)
class ZooConfig:
    """Networks to meta-train on in the place of one, and how tasks vary [choice: every number].

    Numbers of classes and batch sizes are drawn log-uniformly. They shrink to what a set's smallest classes have.

    Attributes:
        file: the YAML file of a zoo, such as `configs/zoo.yaml`; its networks that are held out are left alone. None is one workload.
        weights: folder of the weights that are not shipped.
        classes: fewest and most classes of a task.
        batch_size: smallest and largest training batch.
        evaluation_size: smallest and largest evaluation batch; a task has as many classes as the smallest needs.
        random_heads: share of the tasks that begin with a random head, whatever `head` is.
        frozen: share of the tasks that leave the network's stem, what comes before its first stage, as it is.
    """

    file: str | None = None
    weights: str = "runs/zoo"
    classes: tuple[int, int] = (2, 50)
    batch_size: tuple[int, int] = (8, 128)
    evaluation_size: tuple[int, int] = (16, 200)
    random_heads: float = 0.25
    frozen: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("batch_size", 2), ("evaluation_size", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"{name} must be two whole numbers of at least {least}, the smaller first (got {[low, high]})")
        for name in ("random_heads", "frozen"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share between 0 and 1 (got {getattr(self, name)})")


class Setting(NamedTuple):
    """What a task is, but for its images.

    Attributes:
        workload: the network, and the set of the images.
        task: numbers of classes and images.
        head: `random` or `start`.
        frozen: whether the stem stays as it is.
    """

    workload: Workload
    task: TaskConfig
    head: str
    frozen: bool = False


class Variety:
    """The settings of all tasks.

    Task `seed` has the network number `seed` modulo their number, so `seed_for` can give each network as many tasks as the others.

    Args:
        config: of the zoo; it must have a file.
        head: of the runs that do not begin with a random one.

    Raises:
        ValueError: the file is no zoo, or has no network to meta-train on.
    """

    def __init__(self, config: ZooConfig, head: str) -> None:
        self.config, self.head = config, head
        self._counts: dict[tuple[Workload, str], tuple[list[int], list[int]]] = {}  # by network and purpose
        zoo = read_zoo(str(config.file), config.weights)
        self.workloads = tuple(with_classes(network.workload) for network in zoo.values() if not network.held_out)
        if not self.workloads:
            raise ValueError(f"{config.file} has no network to meta-train on: all are held out")

    def prepare(self, progress: bool = True) -> None:
        """Finds the weights of every network, and decodes the images, before work is lost. Raises ValueError if that cannot be."""
        for workload in self.workloads:
            workload.prepare(META_PURPOSES, progress=progress)
            workload.network(self.config.classes[0])

    def seed_for(self, seed: int, place: int) -> int:
        """The seed next to `seed`, or itself, whose task has the network at this place; places begin anew behind the last."""
        number = len(self.workloads)
        return seed // number * number + place % number

    def setting(self, purpose: str, seed: int) -> Setting:
        """The setting of the task of this seed over the classes of this purpose."""
        c, rng = self.config, np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
        sizes, shares = rng.random(2), rng.random(2)
        workload = self.workloads[seed % len(self.workloads)]
        train, held_out = self._smallest(workload, purpose)
        least = next((n for n in range(c.classes[0], len(held_out)) if sum(held_out[:n]) >= c.evaluation_size[0]), len(held_out))
        classes = min(max(whole_number(c.classes, sizes[0]), least), len(held_out))
        batch = min(whole_number(c.batch_size, sizes[1]), sum(train[:classes]))
        task = TaskConfig(classes, batch, min(c.evaluation_size[1], sum(held_out[:classes])))
        return Setting(workload, task, "random" if shares[0] < c.random_heads else self.head, bool(shares[1] < c.frozen))

    def _smallest(self, workload: Workload, purpose: str) -> tuple[list[int], list[int]]:
        """Numbers of train and of validation images of the classes, each from the smallest."""
        key = workload, purpose
        if key not in self._counts:
            train, held_out = zip(*workload.counts(purpose).values(), strict=True)
            self._counts[key] = sorted(train), sorted(held_out)
        return self._counts[key]


def whole_number(ends: tuple[int, int], share: float, logarithmic: bool = True) -> int:
    """The whole number at this share of the way between the ends, both included, or of the way between their logarithms.

    Each stands for the cell half around it, so that shares drawn uniformly reach both ends as often as their neighbours.
    """
    low, high = ends[0] - 0.5, ends[1] + 0.5
    found = low * math.exp(share * math.log(high / low)) if logarithmic else low + share * (high - low)
    return min(max(round(found), ends[0]), ends[1])


def with_classes(workload: Workload) -> Workload:
    """The network, on a set that has classes to meta-train on: Glyphs has none, and takes those of Icons, which are drawn alike."""
    split = workload.class_split
    return workload if split.classes["meta-train"] else replace(workload, split="icons")
