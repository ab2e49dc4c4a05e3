"""How good a classifier is on labelled images: in all, class by class, image by image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multilabel_average_precision

from l3rs.data.trees import ImageTree
from l3rs.files import write_atomically
from l3rs.own_images.classifier import Classifier
from l3rs.own_images.pictures import confusion, plot_confusion
from l3rs.own_images.predict import logits_of
from l3rs.text import csv_table, printable, table

REPORT = ("class", "images", "precision", "recall", "f1")  # columns of per_class.csv
SHOWN = 30  # classes in the terminal's table


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a classifier says of labelled images.

    Attributes:
        classifier: its classes.
        files: of the images.
        labels: int64 (N,), or float32 (N, classes) where an image may be of several.
        logits: float32 (N, classes).
        broken: why the images that cannot be decoded were left out.
    """

    classifier: Classifier
    files: tuple[str, ...]
    labels: Tensor
    logits: Tensor
    broken: tuple[str, ...] = ()

    @cached_property
    def counts(self) -> np.ndarray:
        """Of each class: right ones, images of the class, images taken for it; int64 (classes, 3)."""
        n = len(self.classifier.classes)
        if self.classifier.multilabel:
            is_, taken = self.labels > 0.5, self.logits > 0
        else:
            is_, taken = F.one_hot(self.labels, n).bool(), F.one_hot(self.logits.argmax(dim=1), n).bool()
        return torch.stack([(is_ & taken).sum(0), is_.sum(0), taken.sum(0)], dim=1).numpy()

    @property
    def right(self) -> int:
        """Images whose class, or all of whose classes, are right."""
        if self.classifier.multilabel:
            return int(((self.logits > 0) == (self.labels > 0.5)).all(dim=1).sum())
        return int(self.counts[:, 0].sum())

    @property
    def accuracy(self) -> float:
        """Their share."""
        return self.right / len(self.files)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy on other images like these (Wilson 1927)."""
        found = binomtest(self.right, len(self.files)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    @property
    def second(self) -> float:
        """Balanced accuracy, the mean of the classes' recall; of images of several classes, the mean average precision."""
        if self.classifier.multilabel:
            n = len(self.classifier.classes)
            return float(multilabel_average_precision(self.logits.sigmoid(), self.labels.long(), n))
        right, of, _ = self.counts.T
        return float((right[of > 0] / of[of > 0]).mean())

    @property
    def second_name(self) -> str:
        """What `second` is called in a row."""
        return "mean_precision" if self.classifier.multilabel else "balanced_accuracy"

    @property
    def loss(self) -> float:
        """The mean cross entropy."""
        if self.classifier.multilabel:
            return F.binary_cross_entropy_with_logits(self.logits, self.labels).item()
        return F.cross_entropy(self.logits, self.labels).item()

    def per_class(self) -> pd.DataFrame:
        """Precision, recall and F1 of each class; NaN where nothing says."""
        right, of, taken = self.counts.T
        with np.errstate(invalid="ignore", divide="ignore"):
            report = {"precision": right / taken, "recall": right / of, "f1": 2 * right / (of + taken)}
        return pd.DataFrame({"class": [printable(c) for c in self.classifier.classes], "images": of, **report})

    def predictions(self) -> pd.DataFrame:
        """Each image with its class, the one that it was taken for, and the probability of that."""
        shares = self.classifier.probabilities(self.logits)
        names = [printable(c) for c in self.classifier.classes]
        files = [printable(file) for file in self.files]
        if self.classifier.multilabel:
            is_, taken = (
                [";".join(names[i] for i in row.nonzero()[:, 0].tolist()) for row in chosen] for chosen in (self.labels > 0.5, shares > 0.5)
            )
            return pd.DataFrame(
                {"file": files, "classes": is_, "predicted": taken, **{f"p({c})": shares[:, i] for i, c in enumerate(names)}}
            )
        best = shares.max(dim=1)
        frame = {"file": files, "class": [names[i] for i in self.labels], "predicted": [names[i] for i in best.indices]}
        return pd.DataFrame({**frame, "probability": best.values, "right": (self.labels == best.indices).int()})

    def write(self, folder: Path, prefix: str = "", what: str = "validation") -> list[str]:
        """Writes `per_class.csv`, `predictions.csv`, and where an image has one class, `confusion.csv` and `.png`; returns their names."""
        tables = {"per_class.csv": (self.per_class(), False), "predictions.csv": (self.predictions(), False)}
        if not self.classifier.multilabel:
            confused = confusion(self.labels.numpy(), self.logits.argmax(dim=1).numpy(), self.classifier.classes)
            tables["confusion.csv"] = (confused, True)
            plot_confusion(confused, folder / f"{prefix}confusion.png", f"{self.right} of {len(self.files)} {what} images right", what)
        for name, (frame, index) in tables.items():
            write_atomically(folder / f"{prefix}{name}", csv_table(frame).to_csv(index=index, float_format="%.6g").encode())
        return [f"{prefix}{name}" for name in (*tables, *(() if self.classifier.multilabel else ("confusion.png",)))]

    def in_words(self) -> str:
        """The result in a line."""
        low, high = self.interval
        several = self.classifier.multilabel
        what, mean = ("all labels right", "mean average precision") if several else ("accuracy", "balanced accuracy")
        return (
            f"{what} {self.accuracy:.3f} (95% interval {low:.3f} to {high:.3f}, {self.right} of {len(self.files)}), "
            f"{mean} {self.second:.3f}, loss {self.loss:.3f}"
        )

    def as_text(self) -> str:
        """The classes as a table for the terminal; of many, those with the lowest F1."""
        report = self.per_class()
        shown = report.assign(key=report.f1.fillna(-1)).sort_values("key", kind="stable").head(SHOWN).sort_index()
        rows: list[tuple[str, ...]] = [REPORT]
        for row in shown.to_dict("records"):
            shares = ("" if math.isnan(row[name]) else f"{row[name]:.3f}" for name in rows[0][2:])
            rows.append((str(row["class"]), str(row["images"]), *shares))
        left_out = [f"({len(report) - SHOWN} classes with a higher F1 are left out)"] if len(report) > SHOWN else []
        return "\n".join([*table(rows, line=True), *left_out])


def foreign(folder: Path) -> str | None:
    """The name of a file in a folder that `Evaluation.write` would replace, unless an earlier one has written it."""
    there = [name for name in ("per_class.csv", "predictions.csv", "confusion.csv", "confusion.png") if os.path.lexists(folder / name)]
    if there and (folder / there[0]).is_file():
        with (folder / there[0]).open("rb") as file:
            if file.readline(100).rstrip() == ",".join(REPORT).encode():
                return None
    return there[0] if there else None


def evaluate(classifier: Classifier, network: nn.Module, tree: ImageTree, which: Iterable[int] | None = None) -> Evaluation:
    """Evaluates a classifier on images of a tree, in full precision.

    Args:
        network: of the classifier, in evaluation mode.
        which: numbers of the images; None is all.

    Raises:
        ValueError: none of them can be decoded.
    """
    numbers = list(range(len(tree.files)) if which is None else which)
    files = [str(tree.root / tree.files[i]) for i in numbers]
    seen, rows, broken = [], [], []
    for number, (logits, why) in zip(numbers, logits_of(classifier, network, files), strict=True):
        if logits is None:
            broken.append(why)
        else:
            seen.append(number)
            rows.append(logits)
    if not rows:
        raise ValueError(f"none of the {len(files)} images can be decoded; the first: {broken[0]}")
    names = tuple(tree.files[i] for i in seen)
    return Evaluation(classifier, names, torch.from_numpy(np.stack([tree.labels[i] for i in seen])), torch.stack(rows), tuple(broken))
