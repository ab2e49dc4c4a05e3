"""A workload: a network, and images to fine-tune it on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from l3rs.data import cache
from l3rs.data.decode import Decoder, check_channels, side_before_cut
from l3rs.data.embedded import SETS, load_embedded, read_split
from l3rs.data.images import ImageSet
from l3rs.data.splits import ClassSplit
from l3rs.data.transform import data_config, of_channels
from l3rs.data.trees import ImageTree, read_tree
from l3rs.finetuning.tasks import TaskConfig, check_sizes
from l3rs.networks.batch_norms import try_one_image
from l3rs.networks.create import draw_head, head_of, initialize
from l3rs.networks.pretrained import SHIPPED
from l3rs.networks.source import WIDTH, Source

EMBEDDED = tuple(SETS)
CROP = 224 / 256  # share of a stored image's side that a network sees, unless timm's data config says otherwise


@dataclass(frozen=True)
class Workload:
    """A pretrained network, and classes to fine-tune it on.

    Attributes:
        split: `icons`, `glyphs` or `emoji`, which are embedded; `imagenet25-0` or another shipped class split; or the JSON file of one.
        data: the folder of the images, unless the split is embedded.
        side: height and width, in pixels, of the network's input; None takes timm's data config, 224 for ResNets, or the size of an
            embedded set's images. Emoji, of 64 pixels, can be had in 32 and 128.
        channels: 3, colour, or 1, grey.
        augment: cuts out and mirrors training images at random.
        skip_broken: leaves out images that cannot be decoded.
        cache: folder for decoded images; None is `$L3RS_CACHE`, or `~/.cache/l3rs`.
        model: name of the network in timm.
        width: channels of the first stage, for `resnet18` and `resnet34`; None is timm's own width, or the width of a shipped network.
        weights: `icons` or `glyphs`, which are shipped, or a file; None is the shipped network of an embedded split, else timm's weights.
        from_scratch: starts from random weights instead, anew for each task.
        model_args: what else timm's `create_model` is given, as `{"depths": [2, 2, 4, 2]}`, for networks with weights from a file.

    Raises:
        ValueError: a value is wrong, or two contradict each other; the message names them.
    """

    split: str = "icons"
    data: str | None = None
    side: int | None = None
    channels: int = 3
    augment: bool = True
    skip_broken: bool = False
    cache: str | None = None
    model: str = "resnet34"
    width: int | None = None
    weights: str | None = None
    from_scratch: bool = False
    model_args: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.embedded and self.data is not None:
            raise ValueError(f"data is {self.data}, and the split {self.split} is embedded; with data it is the JSON file of a class split")
        if self.embedded and self.side not in (None, *SETS[self.split].sides):
            sizes = " or ".join(map(str, SETS[self.split].sides))
            raise ValueError(f"side is {self.side}, and the images of {self.split} have {sizes} pixels; leave it out")
        if not self.embedded and self.data is None:
            raise ValueError(f"the split {self.split} needs data, the folder of its images; embedded splits are {', '.join(EMBEDDED)}")
        self.source()  # checks model, width and weights
        if self.side is not None and self.side < 1:
            raise ValueError(f"side must be at least 1 pixel (got {self.side})")
        check_channels(self.channels)

    @property
    def embedded(self) -> bool:
        """Whether the images are shipped with the package."""
        return self.split in EMBEDDED

    def source(self) -> Source:
        """The network and the source of its weights."""
        shipped = self.model == "resnet34" and self.width in (None, WIDTH) and not self.model_args and not self.from_scratch
        weights = self.split if shipped and self.split in SHIPPED and self.weights is None else self.weights
        return Source(self.model, self.width, weights, self.from_scratch, self.model_args)

    @property
    def in_chans(self) -> int:
        """Channels of the network's input."""
        return SETS[self.split].channels if self.embedded else self.channels

    @cached_property
    def _data_config(self) -> dict[str, Any]:
        """timm's data config of the model."""
        return data_config(self.model) | ({} if self.source().from_hub else {"crop_pct": CROP, "interpolation": "bilinear"})

    @cached_property
    def input_side(self) -> int:
        """Height and width of the network's input, in pixels."""
        own = SETS[self.split].side if self.embedded else int(self._data_config["input_size"][-1])
        return self.side or own

    @cached_property
    def decoder(self) -> Decoder:
        """Decodes image files, with a margin around the network's input if training images are augmented."""
        share = float(self._data_config["crop_pct"]) if self.augment else 1.0
        return Decoder(side_before_cut(self.input_side, share), self.channels, str(self._data_config["interpolation"]))

    @cached_property
    def class_split(self) -> ClassSplit:
        """The classes by purpose. Raises ValueError if the file is no class split."""
        return read_split(self.split) if self.embedded else ClassSplit.find(self.split)

    def tree(self, purpose: str) -> ImageTree:
        """Finds the image files of a purpose's classes.

        Raises:
            ValueError: the folder holds no images in a known layout, or lacks classes of the split.
        """
        split, classes = self.class_split, self.class_split.classes[purpose]
        tree = read_tree(split.dataset, str(self.data), split.seed, classes)
        split.check([c for c, (train, held_out) in tree.counts().items() if train or held_out], f"the folder {self.data}", (purpose,))
        return tree

    def cache_folder(self, purpose: str) -> Path:
        """Names the folder of a purpose's decoded images, by their folder, their classes and the decoder."""
        split = self.class_split
        made_of = (str(Path(str(self.data)).resolve()), split.classes[purpose], split.dataset, split.seed, asdict(self.decoder))
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]
        root = Path(self.cache or os.environ.get("L3RS_CACHE") or "~/.cache/l3rs").expanduser()
        return root / f"{split.name}-{purpose}-{self.decoder.side}px-{key}"

    def contents(self, purposes: Collection[str]) -> list[Any]:
        """What it is, as JSON has it: its fields but for the places of files, the classes of these purposes, and which shipped weights.

        Raises:
            ValueError: the split cannot be read.
        """
        own = {name: value for name, value in asdict(self).items() if name not in ("split", "data", "cache", "weights")}
        split = self.class_split
        return [own, self.source().shipped, split.name, split.seed, [split.classes[purpose] for purpose in purposes]]

    def prepare(self, purposes: Collection[str], task: TaskConfig | None = None, progress: bool = True) -> None:
        """Decodes the images of these purposes, unless they are decoded or embedded.

        Args:
            task: the size of tasks that must be possible; None checks nothing.

        Raises:
            ValueError: as `tree`, `check_sizes` and `l3rs.data.cache.build`; or the network cannot learn from batches of one image.
        """
        split = self.class_split
        empty = [p for p in purposes if task is not None and not split.classes[p]]
        if empty:
            raise ValueError(f"the split {split.name} has no {empty[0]} classes")
        trees = {} if self.embedded else {p: self.tree(p) for p in purposes}
        for purpose, tree in trees.items():  # all are checked before the first is decoded
            if task is not None:
                check_sizes(tree.counts(), task, f"{purpose} of {split.name}")
        for purpose, tree in trees.items():
            cache.build(tree, self.decoder, self.cache_folder(purpose), self.skip_broken, progress=progress)
        for purpose in purposes:
            if task is not None and (self.embedded or self.skip_broken):
                broken = ", without broken images," if self.skip_broken else ""
                check_sizes(self.counts(purpose), task, f"{purpose} of {split.name}{broken}")
        if task is not None and task.batch_size == 1:
            network = self.network(task.classes)
            try:
                try_one_image(network, self.in_chans, self.input_side)
            except ValueError as error:
                raise ValueError(f"task.batch_size must be at least 2 for {self.model} at {self.input_side} px (got 1: {error})") from None

    def counts(self, purpose: str) -> dict[str, tuple[int, int]]:
        """The numbers of train and of validation images of each class of a purpose; call `prepare` before, as for `images`."""
        images = self.images(purpose)
        sides = dict(zip(images.classes, images.by_class, strict=True))
        return {c: (len(sides[c][0]), len(sides[c][1])) for c in self.class_split.classes[purpose]}

    def images(self, purpose: str) -> ImageSet:
        """Opens the decoded images of a purpose's classes, or more; call `prepare` before, for images of your own."""
        if self.embedded:
            return load_embedded(self.split, self.side)
        classes = self.class_split.classes[purpose]
        pixels, labels, validation = cache.open_cache(self.cache_folder(purpose), classes)
        mean, std = self.normalization
        side = self.input_side if self.augment else None
        return ImageSet(self.class_split.name, pixels, labels, classes, validation, mean, std, side, mirror=self.augment)

    @cached_property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel: timm's for its own weights, or else ImageNet's; their average for grey."""
        timms, config = self.source().from_hub, self._data_config
        values = (config["mean"], config["std"]) if timms else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        mean, std = (of_channels(v, self.channels) for v in values)
        return mean, std

    def network(self, num_classes: int) -> nn.Module:
        """Makes the pretrained network, with a head of `num_classes` classes to be drawn.

        Raises:
            ValueError: the weights are missing or do not fit.
        """
        network = self.source().network(self.in_chans, num_classes)
        if self.from_scratch:
            self.draw(network, 0)
        return network

    def draw(self, network: nn.Module, seed: int) -> None:
        """Draws what is new for each task, from its seed: the head, or all weights where the network starts from scratch."""
        if self.from_scratch:
            initialize(network, seed, lambda: self.source().network(self.in_chans, head_of(network).out_features))
        else:
            draw_head(network, seed)


C = TypeVar("C")


def from_flat(config: Callable[..., C], **values: Any) -> C:
    """Makes a config that holds a workload from flat values, as on a command line or in a YAML file."""
    own = {f.name: values.pop(f.name) for f in fields(Workload) if f.name in values}
    return config(workload=Workload(**own), **values)


def flat(config: Any) -> dict[str, Any]:
    """Gives the flat values of a config that holds a workload, as JSON has them."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    workload: dict[str, Any] = values.pop("workload")
    return workload | values
