"""`l3rs predict`: classifies images."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jsonargparse import Namespace

from l3rs.cli.options import Options, values_of
from l3rs.cli.parser import Parser
from l3rs.own_images.predict import predict_command
from l3rs.text import printable


@dataclass(frozen=True)
class PredictOptions:
    """The output of a prediction.

    Attributes:
        top: classes to show for each image, the most probable first.
        csv: file to write the table to.
    """

    top: int = 1
    csv: str | None = None

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top must be at least 1 (got {self.top})")


def parser() -> Parser:
    """The model, the images, and the output."""
    parser = Parser("RUN IMAGES [IMAGES ...] [options]", "Classify images with a model that `l3rs finetune --data` has trained.")
    parser.add_argument("run", type=str, metavar="RUN", help="folder of the run, or its model.safetensors")
    parser.add_argument("images", type=str, nargs="+", metavar="IMAGES", help="files, or folders of them")
    Options(PredictOptions, metavars={"csv": "FILE"}).add(parser, "top", "csv")
    return parser


def run(args: Namespace) -> None:
    """Predicts; exit code 1 if an image was left out."""
    options = PredictOptions(**values_of(PredictOptions, vars(args)))
    predictions = predict_command(args.run, args.images, options.top, options.csv)
    broken = [p.error for p in predictions if p.error is not None]
    for why in broken:
        print(f"l3rs: left out: {printable(why)}", file=sys.stderr)
    if broken:
        sys.exit(1)
