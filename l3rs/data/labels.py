"""Images of several classes each, from a table of labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from l3rs.data.names import one_form
from l3rs.data.trees import ImageTree, TreeError

SEPARATOR = ";"


def read_labels(
    table: str | Path, root: str | Path, seed: int = 0, validation_share: float = 0.2, classes: Sequence[str] | None = None
) -> ImageTree:
    """Reads a CSV file of labels, an image a row, each image once.

    The first column is the file, relative to `root`. Then either a column `labels` has the names of its classes, parted by `;`, or each
    other column is a class, with 1 or 0. A column `side` may say `train` or `val`; without one, the seed draws validation images, and
    leaves each class one to train on.

    Args:
        classes: those of a model, to judge it: by the images of the side `val`, or by all where there is no `val`; some classes may have
            none.

    Raises:
        TreeError: there is no such file, it has neither form, or an image in it is not there; the message has the line.
    """
    root = Path(root)
    try:
        with Path(table).open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            (_, header), *numbered = [(lines.line_num, row) for row in lines if row] or [(1, [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TreeError(f"the labels {table} cannot be read ({error})") from None
    columns = [one_form(name.strip()) for name in header]
    rows = [row for _, row in numbered]
    if len(columns) < 2 or not rows:
        got = ", ".join(columns)[:80]
        raise TreeError(
            f"the labels {table} must have a column of files, one or more of labels, and a row an image; commas part columns "
            f"(got {len(rows)} rows, and the first line {got!r})"
        )
    twice = next((name for i, name in enumerate(columns) if name in columns[:i]), None)
    if twice is not None:
        raise TreeError(f"the labels {table} have two columns called {twice!r}")
    side = columns.index("side") if "side" in columns else None
    named = columns.index("labels") if "labels" in columns else None
    numbers = [i for i in range(1, len(columns)) if i != side] if named is None else []
    own: list[list[str]] = []
    validation: list[bool] = []
    seen: dict[str, int] = {}
    for line, row in numbered:
        where = f"the labels {table}, line {line}"
        if len(row) != len(columns):
            raise TreeError(f"{where}: {len(row)} cells, and the first line has {len(columns)}")
        if ".." in Path(row[0]).parts or not (root / row[0]).is_file():
            raise TreeError(f"{where}: {row[0]!r} is no file in {root}")
        first = seen.setdefault(os.path.normpath(row[0]), line)
        if first != line:
            raise TreeError(f"{where}: {row[0]!r} is in line {first} already; give all labels of an image in one row")
        if side is not None and row[side].strip() not in ("train", "val"):
            raise TreeError(f"{where}: side must be train or val (got {row[side]!r})")
        if named is None and any(row[i].strip() not in ("0", "1") for i in numbers):
            raise TreeError(f"{where}: a column of a class must have 0 or 1; or give one column labels, with names parted by {SEPARATOR}")
        names = [one_form(name.strip()) for name in row[named].split(SEPARATOR)] if named is not None else []
        own.append([n for n in names if n] if named is not None else [columns[i] for i in numbers if row[i].strip() == "1"])
        validation.append(side is not None and row[side].strip() == "val")
    found = sorted({name for names in own for name in names}) if named is not None else sorted(columns[i] for i in numbers)
    if classes is not None:
        strange = [name for name in found if name not in classes]
        if strange:
            raise TreeError(f"the labels {table} have {strange[0]!r}, which is none of the {len(classes)} classes, such as {classes[0]!r}")
        judged = np.array(validation) if any(validation) else np.ones(len(rows), bool)
        return ImageTree(root, tuple(classes), tuple(row[0] for row in rows), _one_hot(own, classes), judged)
    classes = found
    labels = _one_hot(own, classes)
    held_out = np.array(validation) if side is not None else _drawn(labels, seed, validation_share)
    tree = ImageTree(root, tuple(classes), tuple(row[0] for row in rows), labels, held_out)
    check_labels(table, tree)
    return tree


def check_labels(table: str | Path, tree: ImageTree, which: str = "") -> None:
    """Raises TreeError where a class has no training image, or a side none. `which`: what they lack, for the message."""
    for name, (train, _) in tree.counts().items():
        if not train:
            raise TreeError(f"the labels {table} have no training image of {name!r}{which}")
    held_out = tree.validation
    if not held_out.any() or held_out.all():
        raise TreeError(f"the labels {table} have no images to {'train' if held_out.all() else 'validate'}{which}")


def _drawn(labels: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Draws the images to validate: a share of all; of a class of which none would be left to train on, the first one goes back."""
    number = len(labels)
    order = np.random.default_rng(seed).permutation(number)
    chosen = np.zeros(number, dtype=bool)
    chosen[order[: max(1, round(share * number))]] = True
    for of_class in labels.T > 0:
        if of_class.any() and not (of_class & ~chosen).any():
            chosen[order[of_class[order]][0]] = False
    return chosen


def _one_hot(own: Sequence[Sequence[str]], classes: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(classes)}
    labels = np.zeros((len(own), len(classes)), dtype=np.float32)
    for row, names in zip(labels, own, strict=True):
        row[[place[name] for name in names]] = 1
    return labels
