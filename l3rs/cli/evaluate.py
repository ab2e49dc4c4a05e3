"""`l3rs evaluate`: judges a model on labelled images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jsonargparse import Namespace

from l3rs.cli.options import Options, values_of
from l3rs.cli.parser import Parser
from l3rs.data.labels import read_labels
from l3rs.data.trees import read_labelled, tell_passed_over
from l3rs.own_images.classifier import FILE, load
from l3rs.own_images.evaluation import evaluate, foreign
from l3rs.own_images.folder import check_outside
from l3rs.run_folder import CONFIG
from l3rs.text import csv_cell, first_line, printable

ABOUT = """
Judge a model that `l3rs finetune --data` has trained on labelled images, FOLDER/CLASS/IMAGE: accuracy with its 95% interval, precision,
recall and F1 of each class, and with --out the confusion matrix and each image's prediction.
"""


@dataclass(frozen=True)
class EvaluateOptions:
    """The labels and the output of an evaluation.

    Attributes:
        labels: CSV file of labels, for a model of several classes an image.
        out: folder for per_class.csv, predictions.csv, confusion.csv and confusion.png.
    """

    labels: str | None = None
    out: Path | None = None


def parser() -> Parser:
    """The model, the images, and the output."""
    parser = Parser("RUN FOLDER [options]", ABOUT)
    parser.add_argument("run", type=str, metavar="RUN", help="folder of the run, or its model.safetensors")
    parser.add_argument("folder", type=str, metavar="FOLDER", help="folder of the images")
    Options(EvaluateOptions, metavars={"labels": "FILE", "out": "FOLDER"}).add(parser, "labels", "out")
    return parser


def run(args: Namespace) -> None:
    """Evaluates; exit code 1 if an image was left out."""
    options = EvaluateOptions(**values_of(EvaluateOptions, vars(args)))
    classifier, network = load(args.run)
    if classifier.multilabel != (options.labels is not None):
        asked = "needs --labels FILE" if classifier.multilabel else "takes no --labels"
        several = "several classes" if classifier.multilabel else "one class"
        raise ValueError(f"{args.run} is a model of {several} an image, and {asked}")
    if options.labels is None:
        tree = read_labelled(args.folder, classifier.classes)
    else:
        tree = read_labels(options.labels, args.folder, classes=classifier.classes)
    tell_passed_over(args.folder, tree.passed_over)
    if options.out is not None:
        check_outside(options.out, args.folder)
        if any((options.out / name).exists() for name in (CONFIG, FILE)):
            raise ValueError(
                f"--out must not be the folder of a run, which has results of its own (got {options.out}); give another folder"
            )
        if there := foreign(options.out):
            got = f"(got {options.out}, whose {there} would be lost)"
            raise ValueError(f"--out must be a new folder, or one of an earlier evaluation {got}")
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"--out must be a folder that can be written (got {options.out}: {first_line(error)})") from None
    judged = tree.validation.nonzero()[0].tolist()
    if len(judged) < len(tree.files):
        print(f"{len(tree.files) - len(judged)} images whose side is train are left out: models learn from these.")
    evaluation = evaluate(classifier, network, tree, judged)
    print(f"{evaluation.as_text()}\n\n{evaluation.in_words()}")
    if options.out is not None:
        print(f"{options.out} has {', '.join(evaluation.write(options.out, what='evaluation'))}.")
    if trained := may_have_trained(Path(args.run), evaluation.files):
        print(f"{trained} of these images lie beside those that validated the run, which was likely trained on them: judge it by others.")
    for why in evaluation.broken:
        print(f"l3rs: left out: {printable(why)}", file=sys.stderr)
    if evaluation.broken:
        sys.exit(1)


def may_have_trained(run: Path, files: Sequence[str]) -> int:
    """Counts the images, by their paths in the folder, that a run did not validate, if all that it did validate are among them."""
    told = (run if run.is_dir() else run.parent) / "predictions.csv"
    try:
        validated = set(pd.read_csv(told).file)
    except (OSError, ValueError, AttributeError):  # there is none, or it is something else
        return 0
    mine = {csv_cell(printable(file)) for file in files}
    return len(mine - validated) if validated and validated <= mine else 0
