"""A fine-tuned classifier on disk: safetensors, with its model, classes and transform as JSON in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from l3rs.data.transform import LARGEST, Transform
from l3rs.files import check_name, replacing
from l3rs.networks.create import create
from l3rs.schedules.seal import DAMAGED, intact, sealed
from l3rs.text import first_line, printable

SCHEMA, KIND, FILE = 1, "image classifier", "model.safetensors"


class ClassifierError(ValueError):
    """This version cannot use the file as a classifier; the message says why."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Everything that it takes to classify an image, except the weights.

    Attributes:
        model: its name in timm.
        width: see `l3rs.networks.create.create`.
        classes: their names, in the order of the logits.
        transform: makes its inputs.
        training: record of its training; free-form, for people.
        img_size: see `l3rs.networks.source.Source`.
        multilabel: an image may be of several classes: probabilities are each class's own.

    Raises:
        ValueError: a value is wrong.
    """

    model: str
    width: int | None
    classes: tuple[str, ...]
    transform: Transform
    training: dict[str, Any] = field(default_factory=dict)
    img_size: int | None = None
    multilabel: bool = False

    def __post_init__(self) -> None:
        named = all(isinstance(name, str) and name for name in self.classes)
        if not named or len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            odd = [name for name in self.classes if not (isinstance(name, str) and name) or self.classes.count(name) > 1]
            raise ValueError(f"classes must be two or more different names (got {printable(repr(odd[:2] or list(self.classes)))})")
        for name in self.classes:
            check_name(name, "a class")

    def network(self) -> nn.Module:
        """Makes the network, with random weights."""
        size = None if self.img_size is None else {"img_size": self.img_size}
        return create(self.model, self.width, self.transform.channels, len(self.classes), size)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turns logits, (n, classes), into probabilities."""
        return logits.float().sigmoid() if self.multilabel else logits.float().softmax(dim=1)


def save(classifier: Classifier, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a classifier and its weights; the old file or the new one is there, whole."""
    about = {"schema": SCHEMA, "kind": KIND, **asdict(classifier)}
    copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(copies, temporary, metadata=sealed(about, copies))


def describe(path: str | Path) -> Classifier:
    """Reads the description in a file, or in the folder of a run. It executes nothing and reads no tensor.

    Raises:
        ClassifierError: there is no such file; it is truncated, not of l3rs, or of another schema version; or a value is wrong.
    """
    path = _file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, MemoryError, RuntimeError) as error:  # a sparse file may be of any size
        raise ClassifierError(f"{path} cannot be read as safetensors ({error}); it may be truncated") from None
    try:
        about = json.loads(metadata["l3rs"])
        kind = about.get("kind")
    except (KeyError, ValueError, AttributeError, RecursionError):
        raise ClassifierError(f"{path} holds no l3rs metadata: it is some other safetensors file, not the model of a run") from None
    if kind != KIND:
        raise ClassifierError(f"{path} holds {kind or 'a learned schedule'}, and not an {KIND}; give the {FILE} of a run, or its folder")
    if about.get("schema") != SCHEMA:
        raise ClassifierError(f"{path} has schema version {about.get('schema')}; this version of l3rs reads {SCHEMA}")
    try:
        model, width, classes = about["model"], about["width"], about["classes"]
        if not isinstance(model, str) or not (width is None or type(width) is int) or not isinstance(classes, list):
            got = f"{model!r}, {width!r} and {type(classes).__name__}"
            raise ValueError(f"model, width and classes must be a name, a number and a list (got {got})")
        training, size, several = about.get("training", {}), about.get("img_size"), about.get("multilabel", False)
        if not (size is None or (type(size) is int and 1 <= size <= LARGEST)) or not isinstance(several, bool):
            raise ValueError(f"img_size and multilabel must be a number of pixels and true or false (got {size!r} and {several!r})")
        transform = Transform(**about["transform"])
        return Classifier(model, width, tuple(classes), transform, training if isinstance(training, dict) else {}, size, several)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ClassifierError(f"{path} has l3rs metadata that this version cannot use: {error}") from None


def load(path: str | Path) -> tuple[Classifier, nn.Module]:
    """Loads a classifier and its network, in evaluation mode, on CPU.

    Raises:
        ClassifierError: as `describe`; or timm has no such model, or the tensors do not fit it.
    """
    path = _file(path)
    classifier = describe(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (not a dict)
            _check_sizes(classifier, found)
            wanted = _tensors_of(classifier)
            wrong = next((n for n in sorted({*wanted, *found}) if n not in wanted or found.get(n) != wanted[n][0]), None)
            if wrong is not None:
                wants = wanted[wrong][0] if wrong in wanted else "no such tensor"
                has = found.get(wrong, "no such tensor")
                raise ValueError(f"for {wrong} it has {has}, and {classifier.model} with {len(classifier.classes)} classes has {wants}")
            tensors = {name: file.get_tensor(name) for name in wanted}
            whole = intact(file.metadata(), tensors)
        if not whole:
            raise ValueError(f"it {DAMAGED}")
        other = next((n for n, t in tensors.items() if t.dtype != wanted[n][1]), None)
        if other is not None:
            raise ValueError(f"{other} is {tensors[other].dtype}, and not {wanted[other][1]}")
        bad = next((n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
        if bad is not None:
            raise ValueError(f"{bad} holds values that are not finite")
    except (ValueError, SafetensorError) as error:
        raise ClassifierError(f"{path} does not hold the classifier that its metadata describe: {error}") from None
    network = classifier.network()  # no larger than the file
    network.load_state_dict(tensors)
    return classifier, network.eval()


def _tensors_of(classifier: Classifier) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Lists the shapes and dtypes of the network, which may claim any size: it takes no memory."""
    try:
        with torch.device("meta"):
            network = classifier.network()
    except ValueError:
        raise
    except Exception as error:  # timm's models raise anything
        raise ValueError(f"{classifier.model} cannot be made: {first_line(error)}") from None
    return {name: (tuple(t.shape), t.dtype) for name, t in network.state_dict().items()}


def _check_sizes(classifier: Classifier, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError if no tensor has the width or the number of classes."""
    if not any(shape[:1] == (len(classifier.classes),) for shape in shapes.values()):
        raise ValueError(f"no tensor is of {len(classifier.classes)} classes")
    if classifier.width is not None and shapes.get("conv1.weight", ())[:1] != (classifier.width,):
        raise ValueError(f"conv1.weight is not of width {classifier.width}")


def _file(path: str | Path) -> Path:
    is_run = os.path.isdir(path)  # unlike pathlib's, without an error for a name of 300 characters
    file = Path(path) / FILE if is_run else Path(path)
    if not os.path.isfile(file):
        what = f"{path} has no {FILE}" if is_run else f"{path} is not there"
        raise ClassifierError(f"{what}; give the folder of a run of `l3rs finetune --data`, or its {FILE}")
    return file
