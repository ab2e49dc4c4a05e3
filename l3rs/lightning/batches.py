"""The batches of a folder of images: which images each has, and how they are read, where some cannot be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from l3rs.data.decode import BrokenImage
from l3rs.data.loader import Loader
from l3rs.data.transform import Transform
from l3rs.data.trees import ImageTree
from l3rs.text import printable

Draw = tuple[int, int | None]  # an image's number, and the seed of how it is cut out; None is the middle


class Batches(DistributedSampler[list[Draw]]):
    """Training batches as lists of draws: an endless stream of shuffled passes over the images, cut into epochs.

    A batch is a function of the seed and its number; images that do not fill a batch at the end of a pass are left to the next pass,
    which has another order. It is a DistributedSampler, so that Lightning leaves it as it is: each process gets its share of a batch.

    Args:
        members: numbers of the training images, (n,).
        batch_size: images a batch in each process.
        length: batches an epoch; None is once through the images.
        augment: whether draws have seeds.
        chances: how likely each image is to be drawn, (n,); then a pass has some images several times, and others not. None is each once.
    """

    def __init__(
        self,
        members: np.ndarray,
        batch_size: int,
        seed: int = 0,
        length: int | None = None,
        augment: bool = True,
        ranks: int = 1,
        rank: int = 0,
        chances: np.ndarray | None = None,
    ) -> None:
        if ranks > len(members):
            raise ValueError(f"there are {len(members)} training images, fewer than the {ranks} processes")
        super().__init__(range(len(members)), ranks, rank, seed=seed)  # type: ignore[arg-type]
        self.members, self.augment, self.chances = members, augment, chances
        self.share = min(batch_size, len(members) // ranks)
        self.per_pass = len(members) // (self.share * ranks)
        self.length = length or self.per_pass
        self.start = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.epoch * self.length
        for number in range(first + self.start, first + self.length):
            yield self.batch(number)

    def batch(self, number: int) -> list[Draw]:
        """This process's share of a batch."""
        through, place = divmod(number, self.per_pass)
        if self._order[0] != through:
            rng = np.random.default_rng([self.seed, through])
            drawn = rng.permutation(self.members) if self.chances is None else rng.choice(self.members, len(self.members), p=self.chances)
            self._order = (through, drawn)
        begin = (place * self.num_replicas + self.rank) * self.share
        chosen = self._order[1][begin : begin + self.share].tolist()
        if not self.augment:
            return [(i, None) for i in chosen]
        seeds = np.random.SeedSequence([self.seed, number, self.rank]).generate_state(len(chosen), np.uint64) >> np.uint64(1)
        return list(zip(chosen, seeds.tolist(), strict=True))

    _order: tuple[int, np.ndarray] = (-1, np.empty(0))  # the pass that the last batch was of


class Decodable(Loader):
    """A loader of `Images` that passes over batches of which nothing can be decoded."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        found = False
        for batch in super().__iter__():
            if batch is not None:
                found = True
                yield batch
        if not found and len(self):
            images: Images = self.dataset  # type: ignore[assignment]
            raise BrokenImage(f"none of the images in {images.tree.root} that were to be read can be decoded")


class Resumable(Loader):
    """A loader whose place is kept in Lightning's checkpoints: of an epoch that was stopped, only the rest is made."""

    place = 0  # batches of this epoch that were handed out

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Batches = self.sampler  # type: ignore[assignment]
        if self.place >= len(batches):  # the next epoch, or one more
            self.place = 0
        batches.start = self.place
        for batch in super().__iter__():
            self.place += 1
            if batch is None:
                images: Images = self.dataset  # type: ignore[assignment]
                raise BrokenImage(f"none of the training images in {images.tree.root} can be decoded")
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the run is."""
        return {"epoch": self.sampler.epoch, "place": self.place}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on there."""
        ended = state["place"] >= len(self.sampler)  # type: ignore[arg-type]
        self.place = 0 if ended else state["place"]
        self.sampler.set_epoch(state["epoch"] + ended)  # type: ignore[attr-defined]


class Images(Dataset[tuple[Tensor, Tensor] | None]):
    """Batches of images, by their draws. Those that cannot be decoded are left out.

    Where none of a batch can be, the next training images take the places of training ones, so that all processes go on together; of
    others there is no batch, None.
    """

    def __init__(self, tree: ImageTree, transform: Transform, augment: str, broken_log: Path | None) -> None:
        self.tree, self.transform, self.augment, self.broken_log = tree, transform, augment, broken_log
        self.reported: set[str] = set()

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor] | None:
        found = self._decoded(draws)
        last, seeds = draws[-1][0], [seed for _, seed in draws]
        if found is None and not self.tree.validation[last]:
            members = np.flatnonzero(~self.tree.validation)
            others = np.roll(members, -1 - int(np.searchsorted(members, last))).tolist()
            places = range(0, len(others), len(draws))
            tried = (self._decoded(list(zip(others[place:], seeds, strict=False))) for place in places)
            found = next((batch for batch in tried if batch is not None), None)
        return found

    def _decoded(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor] | None:
        inputs, labels = [], []
        for index, seed in draws:
            path = self.tree.root / self.tree.files[index]
            try:
                inputs.append(self.transform.evaluation(path) if seed is None else self.transform.training(path, seed, self.augment))
            except BrokenImage as error:
                self._report(self.tree.files[index], error)
                continue
            labels.append(self.tree.labels[index])
        return (torch.stack(inputs), torch.from_numpy(np.stack(labels))) if inputs else None

    def _report(self, file: str, error: BrokenImage) -> None:
        if file in self.reported:
            return
        self.reported.add(file)
        if self.broken_log is None:
            warnings.warn(printable(f"{error}; it is left out"), stacklevel=3)
        else:
            line = f"{printable(str(error))}\n"
            with self.broken_log.open("a", encoding="utf-8") as log:  # appended at once, as others may write there too
                log.write(line)
