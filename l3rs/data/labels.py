"""Images of several classes each, from a table of labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from l3rs.data.names import one_form
from l3rs.data.trees import ImageTree, TreeError

SEPARATOR = ";"


def read_labels(
    table: str | Path, root: str | Path, seed: int = 0, validation_share: float = 0.2, classes: Sequence[str] | None = None
) -> ImageTree:
    """Reads a CSV file of labels, an image a row.

    The first column is the file, relative to `root`. Then either a column `labels` has the names of its classes, parted by `;`, or each
    other column is a class, with 1 or 0. A column `side` may say `train` or `val`; without one, the seed draws validation images.

    Args:
        classes: those of a model, to judge it: all images are then of the validation side, and some classes may have none.

    Raises:
        TreeError: there is no such file, it has neither form, or an image in it is not there; the message has the line.
    """
    root = Path(root)
    try:
        with Path(table).open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TreeError(f"the labels {table} cannot be read ({error})") from None
    columns = [one_form(name.strip()) for name in header]
    if len(columns) < 2 or not rows:
        raise TreeError(f"the labels {table} must have a column of files, one or more of labels, and a row an image")
    side = columns.index("side") if "side" in columns else None
    named = columns.index("labels") if "labels" in columns else None
    numbers = [i for i in range(1, len(columns)) if i != side] if named is None else []
    own: list[list[str]] = []
    validation: list[bool] = []
    for line, row in enumerate(rows, start=2):
        where = f"the labels {table}, line {line}"
        if len(row) != len(columns):
            raise TreeError(f"{where}: {len(row)} cells, and the first line has {len(columns)}")
        if ".." in Path(row[0]).parts or not (root / row[0]).is_file():
            raise TreeError(f"{where}: {row[0]!r} is no file in {root}")
        if side is not None and row[side] not in ("train", "val"):
            raise TreeError(f"{where}: side must be train or val (got {row[side]!r})")
        if named is None and any(row[i].strip() not in ("0", "1") for i in numbers):
            raise TreeError(f"{where}: a column of a class must have 0 or 1; or give one column labels, with names parted by {SEPARATOR}")
        names = [one_form(name.strip()) for name in row[named].split(SEPARATOR)] if named is not None else []
        own.append([n for n in names if n] if named is not None else [columns[i] for i in numbers if row[i].strip() == "1"])
        validation.append(side is not None and row[side] == "val")
    found = sorted({name for names in own for name in names})
    if classes is not None:
        strange = [name for name in found if name not in classes]
        if strange:
            raise TreeError(f"the labels {table} have {strange[0]!r}, which is none of the {len(classes)} classes, such as {classes[0]!r}")
        return ImageTree(root, tuple(classes), tuple(row[0] for row in rows), _one_hot(own, classes), np.ones(len(rows), bool))
    classes = found
    held_out = np.array(validation) if side is not None else _drawn(len(rows), seed, validation_share)
    tree = ImageTree(root, tuple(classes), tuple(row[0] for row in rows), _one_hot(own, classes), held_out)
    for name, (train, _) in tree.counts().items():
        if not train:
            raise TreeError(f"the labels {table} have no training image of {name!r}")
    if not held_out.any() or held_out.all():
        raise TreeError(f"the labels {table} have no images to {'train' if held_out.all() else 'validate'}")
    return tree


def _drawn(number: int, seed: int, share: float) -> np.ndarray:
    chosen = np.zeros(number, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(number)[: max(1, round(share * number))]] = True
    return chosen


def _one_hot(own: Sequence[Sequence[str]], classes: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(classes)}
    labels = np.zeros((len(own), len(classes)), dtype=np.float32)
    for row, names in zip(labels, own, strict=True):
        row[[place[name] for name in names]] = 1
    return labels
