"""Tasks: short fine-tuning problems, drawn as pure functions of a seed.

A task is data only: class ids, indices of images, and a seed for the head. It depends on its arguments alone, so it is the same on any
worker. The task of 25 steps is the beginning of the task of 100.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from l3rs.data.images import ImageSet
from l3rs.networks.head_start import HEAD_BATCHES as HEAD_BATCHES

HEADS = ("random", "start")


def check_head(head: str, head_batches: int) -> None:
    """Raises ValueError unless a run can begin with this head, from this many batches."""
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)} (got {head!r})")
    if head_batches < 1:
        raise ValueError(f"head_batches must be at least 1 (got {head_batches})")


@dataclass(frozen=True)
class TaskConfig:
    """The size of a task.

    Attributes:
        classes: classes of a task.
        batch_size: images in a training batch.
        evaluation_size: images in the evaluation batch.
    """

    classes: int = 25
    batch_size: int = 64
    evaluation_size: int = 200

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 (got {value})")


def check_sizes(counts: Mapping[str, tuple[int, int]], task: TaskConfig, what: str) -> None:
    """Checks that every task of this size can be drawn: even the smallest classes together fill a batch, and none is empty.

    Args:
        counts: class to its numbers of train and of validation images; no classes at all pass.
        what: name of the classes in the message.

    Raises:
        ValueError: some task cannot be drawn.
    """
    if counts and len(counts) < task.classes:
        raise ValueError(f"{what} has {len(counts)} classes, and a task has {task.classes}: give it more, or draw tasks of fewer classes")
    for side, name, size in ((0, "train", task.batch_size), (1, "validation", task.evaluation_size)):
        smallest = sorted(n[side] for n in counts.values())[: task.classes]
        if counts and (sum(smallest) < size or not smallest[0]):
            needed = -(-size // task.classes)  # of each, if all had as many
            few = [f"{c} ({n[side]})" for c, n in counts.items() if n[side] < needed]
            more = f" and {len(few) - 10} more" if len(few) > 10 else ""
            raise ValueError(
                f"{len(few)} classes of {what} have fewer than {needed} {name} images, which batches of {size} from {task.classes} classes "
                f"need: {', '.join(few[:10])}{more}; leave these classes out, add images, or make the {name} batch smaller"
            )


@dataclass(frozen=True, eq=False)
class Task:
    """One fine-tuning task.

    Attributes:
        classes: int64 (C,), class ids of the image set; a class's label in the task is its place here.
        batches: int64 (K, B), image indices of the K training batches, from the train side.
        evaluation: int64 (E,), image indices of the evaluation batch, from the validation side.
        crops: int64 (K, B, 3), the top and left edge of each training image's crop, and whether it is mirrored; None without
            augmentation.
        head_seed: seed of the fresh head.
        seed: of the task itself.
    """

    classes: Tensor
    batches: Tensor
    evaluation: Tensor
    crops: Tensor | None
    head_seed: int
    seed: int

    def batch(self, images: ImageSet, step: int) -> tuple[Tensor, Tensor]:
        """Training batch `step`, counted from 0: normalized inputs (B, channels, height, width), and labels, int64 (B,)."""
        indices = self.batches[step]
        return images.inputs(indices, None if self.crops is None else self.crops[step]), self.labels(images, indices)

    def held_out(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """The evaluation batch: inputs, cut out of the middle, and labels."""
        return images.inputs(self.evaluation), self.labels(images, self.evaluation)

    def labels(self, images: ImageSet, indices: Tensor) -> Tensor:
        """Labels in this task of the images at `indices`, int64; -1 for images of other classes."""
        place = torch.full((len(images.classes) + 1,), -1)  # the last place is for images of no class, labelled -1
        place[self.classes] = torch.arange(len(self.classes))
        return place[images.labels[indices]]


@dataclass(frozen=True, eq=False)
class TaskDistribution:
    """All tasks over some classes of an image set.

    Attributes:
        images: the set.
        classes: names of the classes to draw from, such as a split's meta-train classes.
        config: the size of a task.

    Raises:
        ValueError: too few classes, or an unknown one.
    """

    images: ImageSet
    classes: tuple[str, ...]
    config: TaskConfig = TaskConfig()

    def __post_init__(self) -> None:
        unknown = [c for c in self.classes if c not in self.images.classes]
        if unknown:
            raise ValueError(f"no such class in {self.images.name}: {unknown[0]!r}")
        if len(self.classes) < self.config.classes:
            raise ValueError(f"a task needs {self.config.classes} classes; there are {len(self.classes)}")

    def draw(self, seed: int, steps: int) -> Task:
        """Draws the task of this seed with `steps` training batches.

        It draws images without replacement, and reshuffles training images when fewer than a batch are left.

        Raises:
            ValueError: `steps` is below 1, or the drawn classes have fewer images than a batch.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1 (got {steps})")
        c = self.config
        streams = [np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence([seed, self._content]).spawn(5)]
        ids = [self._ids[i] for i in streams[0].permutation(len(self._ids))[: c.classes]]
        train = np.concatenate([self.images.by_class[i][0] for i in ids])
        held_out = np.concatenate([self.images.by_class[i][1] for i in ids])
        for what, wanted, there in (("train", c.batch_size, len(train)), ("validation", c.evaluation_size, len(held_out))):
            if there < wanted:
                raise ValueError(f"task {seed} wants {wanted} {what} images at once; its {c.classes} classes have {there}")
        per_epoch = len(train) // c.batch_size
        epochs = [streams[1].permutation(train)[: per_epoch * c.batch_size] for _ in range(-(-steps // per_epoch))]
        return Task(
            classes=torch.tensor(ids),
            batches=torch.from_numpy(np.concatenate(epochs)[: steps * c.batch_size].reshape(steps, c.batch_size)),
            evaluation=torch.from_numpy(streams[2].permutation(held_out)[: c.evaluation_size]),
            crops=self._crops(streams[4], steps) if self.images.augmented else None,
            head_seed=int(streams[3].integers(2**31)),
            seed=seed,
        )

    @cached_property
    def _content(self) -> int:
        """Makes the classes part of the seed, so that splits of one data set never share a stream."""
        return zlib.crc32("\n".join((self.images.name, *sorted(self.classes))).encode(errors="surrogateescape"))

    @cached_property
    def _ids(self) -> list[int]:
        """Class ids of the image set, in the order of the classes' names."""
        number = {name: i for i, name in enumerate(self.images.classes)}
        return [number[name] for name in sorted(self.classes)]

    def _crops(self, stream: np.random.Generator, steps: int) -> Tensor:
        """Draws top, left and mirrored of each training image; a longer task begins like a shorter one."""
        choices = np.array([self.images.margin[0] + 1, self.images.margin[1] + 1, 1 + self.images.mirror])
        return torch.from_numpy((stream.random((steps, self.config.batch_size, 3)) * choices).astype(np.int64))


def task_seed(*key: int) -> int:
    """Makes a task seed, below 2**31, from several numbers, such as (run seed, generation, index)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)
