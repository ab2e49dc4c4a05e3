"""Classifies images with a model that `l3rs finetune --data` has trained."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from l3rs.data import trees
from l3rs.data.decode import BrokenImage
from l3rs.data.loader import Loader, workers_that_fit
from l3rs.data.names import in_words
from l3rs.data.transform import Transform
from l3rs.files import check_writable, is_special, write_atomically
from l3rs.own_images.classifier import Classifier, load
from l3rs.processes import cores
from l3rs.text import csv_cell, first_line, padded, printable, width

HEADER = ("file", "class", "probability")  # of the CSV file
BATCH, FEW = 32, 256  # images a batch; images to decode in this process
LARGE = 512  # pixels a side; larger inputs, up to 4,096, come in smaller batches


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, or an error.

    Attributes:
        file: its path.
        classes: (name, probability), the most probable first; empty if the image cannot be decoded.
        error: why it cannot be decoded.
    """

    file: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def image_files(paths: Sequence[str], passed_over: dict[str, Counter[str]] | None = None) -> list[str]:
    """Lists files as they are given, and the images in folders at any depth, in order.

    Args:
        passed_over: gets the number of files that are no images, by extension, for each folder.

    Raises:
        ValueError: a path does not exist, or a folder has no images.
    """
    files: list[str] = []
    for given in paths:
        if os.path.isdir(given):
            path, others = Path(given), Counter[str]()
            found = [str(path / file) for file in sorted(trees.image_files(path, others))]
            if not found:
                raise ValueError(f"the folder {path} has no images" + (f" (passed over: {in_words(others)})" if others else ""))
            if passed_over is not None:
                passed_over[given] = others
            files += found
        elif os.path.lexists(given):
            files.append(given)
        else:
            raise ValueError(f"{given} is not there")
    return files


class _Files(Dataset[tuple[Tensor | None, str]]):
    def __init__(self, files: Sequence[str], transform: Transform) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor | None, str]:
        try:
            return self.transform.evaluation(self.files[i]), ""
        except BrokenImage as error:
            return None, str(error)


def predict(classifier: Classifier, network: nn.Module, files: Sequence[str], top: int = 1) -> Iterator[Prediction]:
    """Predicts in the order of the files, a batch at a time.

    Args:
        network: of the classifier, in evaluation mode.
        top: classes to give for each, at most all.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1 (got {top})")
    for file, (logits, error) in zip(files, logits_of(classifier, network, files), strict=True):
        if logits is None:
            yield Prediction(file, error=error)
            continue
        best = classifier.probabilities(logits[None])[0].topk(min(top, len(classifier.classes)))
        named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield Prediction(file, tuple((classifier.classes[i], p) for i, p in named))


def logits_of(classifier: Classifier, network: nn.Module, files: Sequence[str]) -> Iterator[tuple[Tensor | None, str]]:
    """Yields the logits of each file, (classes,) on CPU, or why it cannot be decoded; a batch at a time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    at_once = max(1, BATCH * LARGE**2 // max(LARGE, classifier.transform.side) ** 2)
    seen = 4 * classifier.transform.channels * classifier.transform.side**2  # bytes of an image, as float32
    workers = 0 if len(files) <= FEW else workers_that_fit(min(8, cores() // 2), at_once * seen)
    loader = Loader(_Files(files, classifier.transform), at_once, num_workers=workers, collate_fn=list)
    for batch in loader:
        good = [inputs for inputs, _ in batch if inputs is not None]
        with torch.inference_mode():
            rows = iter(network(torch.stack(good).to(device)).float().cpu() if good else torch.empty(0))
        for inputs, error in batch:
            yield (None, error) if inputs is None else (next(rows), "")


def predict_command(run: str, paths: Sequence[str], top: int = 1, csv_file: str | None = None) -> list[Prediction]:
    """Prints a table, writes it to `csv_file` if there is one, and returns the predictions.

    Raises:
        ValueError: there is no such model or file, or `csv_file` cannot be written, or holds something else.
    """
    if csv_file is not None:
        _check_csv(Path(csv_file))
    passed_over: dict[str, Counter[str]] = {}
    files = image_files(paths, passed_over)
    classifier, network = load(run)
    for folder, others in passed_over.items():
        trees.tell_passed_over(folder, others)
    rows: list[tuple[str, str, str]] = []
    predictions = []
    wide = max(4, *(min(60, width(printable(file))) for file in files))
    named = max(5, *(min(40, width(printable(name))) for name in classifier.classes))
    header = f"{'file':<{wide}}  {'class':<{named}}  probability"
    for prediction in predict(classifier, network, files, top):
        predictions.append(prediction)
        if prediction.classes and header:
            print(header)
            header = ""
        for name, share in prediction.classes:
            file, label = printable(prediction.file), printable(name)
            rows.append((csv_cell(file), csv_cell(label), f"{share:.6f}"))
            print(f"{padded(file, wide)}  {padded(label, named)}  {share:.3f}", flush=True)
    if csv_file is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows)
        try:
            write_atomically(Path(csv_file), text.getvalue().encode())
        except OSError as error:
            raise ValueError(f"{csv_file} could not be written ({first_line(error)})") from None
    return predictions


def _check_csv(file: Path) -> None:
    """Raises ValueError unless predictions may be written to this file: a new one, or one of earlier predictions."""
    try:
        check_writable(file)
        if file.exists() and not is_special(file) and file.stat().st_size:
            with file.open("rb") as there:
                if there.readline(100).rstrip() != ",".join(HEADER).encode():
                    of = f"(got {file}, which is there, and would be lost)"
                    raise ValueError(f"--csv must be a new file, or one of earlier predictions {of}")
    except OSError as error:
        raise ValueError(f"--csv must be a file that can be written (got {file}: {first_line(error)})") from None
