"""A folder of images as a LightningDataModule: batches that a seed decides, decoded as they are needed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from timm.data import Mixup
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from l3rs.data.decode import BrokenImage, open_image
from l3rs.data.labels import check_labels, read_labels
from l3rs.data.loader import workers_that_fit
from l3rs.data.names import in_words
from l3rs.data.transform import AUGMENTATIONS, Transform, seeded
from l3rs.data.trees import ImageTree, TreeError, read_folder, read_test, tell_passed_over
from l3rs.files import is_endless
from l3rs.lightning.batches import Batches, Decodable, Images, Resumable
from l3rs.processes import cores

DECODED_FIRST = 1000  # images; a tree that has no more is decoded once before training, to find those that are broken


class ImageFolderDataModule(pl.LightningDataModule):
    """Images in folders, one a class, for training and validation.

    The folder is `root/train/<class>/*` with `root/val/<class>/*`, or `root/<class>/*`: then a share of each class's images, drawn by the
    seed and at least one, is for validation. Any format that Pillow reads, in any size and mode.

    Training batches are a function of the seed and their number alone, whatever the number of workers, and a run that goes on sees the
    batches that it would have seen. Nothing is decoded before it is needed, but for trees of no more than 1,000 images, which are decoded
    once to find broken ones. Of larger ones only empty files are found beforehand; others are left out of their batches when they come,
    with a warning, or a line in `broken_log`.

    Args:
        root: the folder.
        model: a model of timm, whose data config says how images are made for it.
        batch_size: images a step, in each process; no more than there are training images.
        transform: how images are made, in place of what `model` says.
        augment: what happens to training images: `none`; `crop` cuts them out and mirrors them at random; `randaugment` also changes their
            colours and shape.
        mixup, cutmix: strength with which images of a batch are blended, or pasted into one another, by timm's `Mixup`; 0 is not at all.
        balance: draws all classes equally often in training.
        labels: a CSV file where images may be of several classes, see `l3rs.data.labels`; then folders mean nothing.
        seed: of the validation images where there is no folder of them, of the order, and of the augmentation.
        validation_share: of each class, where there is no validation folder.
        workers: processes that decode; None is up to 8 for large trees and where there is a GPU, else none.
        batches_per_epoch: None is once through the training images.
        broken_log: a file that gets a line for each broken image that comes up during training.

    Attributes:
        tree: the images that are used.
        broken: file to reason, of images that were found broken beforehand.

    Raises:
        TreeError: there is no such folder, or too few classes or images in it; the message names the class.
        ValueError: an argument is not what it should be.

    Example:
        >>> data = ImageFolderDataModule("photos", model="resnet34")
        >>> trainer.fit(L3RSModule("resnet34", data.num_classes), datamodule=data)
    """

    def __init__(
        self,
        root: str | Path,
        model: str = "resnet34",
        batch_size: int = 64,
        *,
        transform: Transform | None = None,
        augment: str = "crop",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        balance: bool = False,
        labels: str | Path | None = None,
        seed: int = 0,
        validation_share: float = 0.2,
        workers: int | None = None,
        batches_per_epoch: int | None = None,
        broken_log: Path | None = None,
    ) -> None:
        super().__init__()
        least: tuple[tuple[str, int | None, int], ...] = (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
            ("batches_per_epoch", batches_per_epoch, 1),
        )
        for name, value, smallest in least:
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be at least {smallest} (got {value})")
        if not 0 < validation_share < 1:
            raise ValueError(f"validation_share must be between 0 and 1 (got {validation_share})")
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)} (got {augment!r})")
        for name, strength in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= strength < math.inf:
                raise ValueError(f"{name} must be a number of at least 0 (got {strength})")
        self.tree, self.broken = usable(Path(root), seed, validation_share, labels)
        self.multilabel = labels is not None
        if balance and self.multilabel:
            raise ValueError("balance must be False with labels: images of several classes each have no one class to balance (got True)")
        self.mix = None
        if mixup or cutmix:
            dense = {"multi_label": True} if self.multilabel else {}
            self.mix = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=len(self.tree.classes), **dense)
        self.balance = balance
        self.transform = transform or Transform.of(model)
        self.augment, self.seed, self.batches_per_epoch, self.broken_log = augment, seed, batches_per_epoch, broken_log
        self.train_images = int((~self.tree.validation).sum())
        self.batch_size = min(batch_size, self.train_images)
        if self.mix is not None and self.batch_size < 2:
            raise ValueError("batch_size must be at least 2 with mixup or cutmix, which mix pairs of images (got 1)")
        wanted = _workers(len(self.tree.files)) if workers is None else workers
        seen = 4 * self.transform.channels * self.transform.side**2  # bytes of an image, as float32
        self.workers = workers_that_fit(wanted, self.batch_size * seen, loaders=2)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of their numbers."""
        return self.tree.classes

    @property
    def num_classes(self) -> int:
        """How many there are."""
        return len(self.tree.classes)

    @property
    def imbalance(self) -> float:
        """How many times as many training images the largest class has as the smallest."""
        counts = [train for train, _ in self.tree.counts().values()]
        return max(counts) / max(1, min(counts))

    @cached_property
    def _images(self) -> Images:
        return Images(self.tree, self.transform, self.augment, self.broken_log)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Mixes the images of a training batch; labels are then shares of classes, (B, classes). Of an odd number the last one stays."""
        if self.mix is None or self.trainer is None or not self.trainer.training or len(batch[0]) < 2:
            return batch
        inputs, labels = batch
        even = len(inputs) - len(inputs) % 2  # timm takes pairs
        with seeded(int(np.random.SeedSequence([self.seed, self.trainer.global_step]).generate_state(1)[0])):
            mixed, shares = self.mix(inputs[:even], labels[:even])
        alone = labels[even:].to(shares) if self.multilabel else F.one_hot(labels[even:], self.num_classes).to(shares)
        return torch.cat([mixed, inputs[even:]]), torch.cat([shares, alone])

    @contextmanager
    def unmixed(self) -> Iterator[None]:
        """Within, no images are mixed."""
        mix, self.mix = self.mix, None
        try:
            yield
        finally:
            self.mix = mix

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches (inputs, labels): float32 (B, channels, side, side), and int64 (B,)."""
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        members = np.flatnonzero(~self.tree.validation)
        share = None
        if self.balance:
            of = self.tree.labels[members]
            share = 1 / np.bincount(of)[of] / len(set(of.tolist()))
        sampler = Batches(members, self.batch_size, self.seed, self.batches_per_epoch, self.augment != "none", ranks, rank, share)
        return Resumable(self._images, sampler=sampler, **self._options)

    def batches(self, numbers: Iterable[int]) -> DataLoader[Any]:
        """The training batches of these numbers, from the first step on, as this process gets them; none are mixed."""
        batches: Batches = self.train_dataloader().sampler  # type: ignore[assignment]
        options = {**self._options, "persistent_workers": False}
        return Decodable(self._images, sampler=[batches.batch(number) for number in numbers], **options)

    def test_dataloader(self) -> Any:
        """The images of the folder `test/`, their middle; none if there is no such folder."""
        tree = read_test(self.tree.root, self.classes) if not self.multilabel else None
        if tree is None:
            return []
        draws = [(i, None) for i in range(len(tree.files))]
        batches = [draws[a : a + self.batch_size] for a in range(0, len(draws), self.batch_size)]
        return Decodable(Images(tree, self.transform, self.augment, self.broken_log), sampler=batches, **self._options)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images, their middle, in the order of the tree."""
        members = np.flatnonzero(self.tree.validation).tolist()
        batches = [[(i, None) for i in members[a : a + self.batch_size]] for a in range(0, len(members), self.batch_size)]
        return Decodable(self._images, sampler=batches, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        """What both loaders share. A batch is an item: the images make it themselves."""
        return {
            "batch_size": None,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def usable(root: Path, seed: int = 0, validation_share: float = 0.2, labels: str | Path | None = None) -> tuple[ImageTree, dict[str, str]]:
    """The images of a folder that can be trained on, and those that cannot: file to reason.

    Raises:
        TreeError: there is no such folder, it has fewer than two classes, or a class too few images.
    """
    if labels is None:
        tree = read_folder(root, seed, validation_share=validation_share)
    else:
        tree = read_labels(labels, root, seed, validation_share)
    if len(tree.classes) < 2:
        raise TreeError(f"{root} has one class, {tree.classes[0]!r}; to tell images apart takes at least two")
    check = _check if labels is None else partial(check_labels, labels)
    check(tree, "")
    broken = find_broken(tree)
    if broken:
        keep = np.array([file not in broken for file in tree.files])
        files = tuple(file for file in tree.files if file not in broken)
        tree = replace(tree, files=files, labels=tree.labels[keep], validation=tree.validation[keep])
        check(tree, f" that can be decoded ({next(iter(broken.values()))})")
    tell_passed_over(root, tree.passed_over)
    return (_both_sides(tree, seed) if tree.divided else tree), broken


def _check(tree: ImageTree, which: str) -> None:
    """Raises TreeError where a class has too few images. `which`: of what they are few, for the message."""
    if tree.passed_over:
        which = f"{which} (passed over: {in_words(tree.passed_over)})"
    for name, (train, held_out) in tree.counts().items():
        if tree.divided and train + held_out < 2:
            has = f"{train + held_out} image{'s' if train + held_out != 1 else ''}{which}"
            raise TreeError(f"the class {name!r} in {tree.root} has {has}; it takes one to train and one to validate, or a folder val/")
        if not train and not tree.divided:
            raise TreeError(f"the class {name!r} in {tree.root} has no training images{which}")
    if not tree.divided and not tree.validation.any():
        raise TreeError(f"the validation folder in {tree.root} has no images{which}")


def _both_sides(tree: ImageTree, seed: int) -> ImageTree:
    """The tree with at least one image of each class on each side."""
    validation = tree.validation.copy()
    for label, (name, (train, held_out)) in enumerate(tree.counts().items()):
        if not train or not held_out:
            rng = np.random.default_rng([seed, zlib.crc32(name.encode(errors="surrogateescape"))])
            validation[rng.choice(np.flatnonzero(tree.labels == label))] = not held_out
    return replace(tree, validation=validation)


def find_broken(tree: ImageTree, decoded: int = DECODED_FIRST) -> dict[str, str]:
    """File to reason: of empty files, pipes and devices, and of all that cannot be decoded if there are no more than `decoded` images.

    Where there are more, those of a class are decoded up to the first that can be: all that cannot come up in training.
    """
    few = len(tree.files) <= decoded

    def wrong(file: str, decode: bool = few) -> str | None:
        path = tree.root / file
        try:
            if decode or is_endless(path):  # a named pipe among images
                open_image(path)
            elif not path.stat().st_size:
                return f"{path}: it is empty"
        except OSError as error:
            return f"{path}: {error.strerror}"
        except BrokenImage as error:
            return str(error)
        return None

    if few:
        threads = min(8, cores())
        found = thread_map(wrong, tree.files, max_workers=threads, desc="looking for broken images", leave=False, disable=None)
        return {file: why for file, why in zip(tree.files, found, strict=True) if why is not None}
    broken = {file: why for file in tree.files if (why := wrong(file)) is not None}
    with_one = np.zeros(len(tree.classes), dtype=bool)
    files = tqdm(tree.files, desc="looking for classes of broken images", leave=False, disable=None)
    for file, label in zip(files, tree.labels, strict=True):
        of = label > 0 if tree.labels.ndim == 2 else label
        if file not in broken and not with_one[of].all():
            why = wrong(file, decode=True)
            if why is None:
                with_one[of] = True
            else:
                broken[file] = why
    return broken


def _workers(images: int) -> int:
    return min(8, cores() // 2) if images > DECODED_FIRST or torch.cuda.is_available() else 0
