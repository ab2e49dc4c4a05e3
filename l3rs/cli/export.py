"""`l3rs export`: a fine-tuned model in another form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace

from l3rs.cli.options import Options, values_of
from l3rs.cli.parser import Parser
from l3rs.extras import require
from l3rs.files import check_writable
from l3rs.own_images.finetuned import load_classifier
from l3rs.text import first_line

FORMS = ("onnx", "torch", "hub")
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}  # in the folder of the run
ABOUT = """
Write a model that `l3rs finetune --data` has trained as an ONNX file, checked with onnxruntime, or as a program of torch.export; or push it
to the Hugging Face Hub with a model card, so that timm loads it. Images must be prepared as the metadata say.
"""


@dataclass(frozen=True)
class ExportOptions:
    """The form of an export, and its place.

    Attributes:
        to: the form.
        out: file to write, by default model.onnx or model.pt2 in the folder of the run; with hub, the OWNER/NAME to push to.
    """

    to: str = "onnx"
    out: str | None = None

    def __post_init__(self) -> None:
        if self.to not in FORMS:
            raise ValueError(f"--to must be one of {', '.join(FORMS)} (got {self.to!r})")
        if self.to == "hub" and self.out is None:
            raise ValueError("--to hub needs --out OWNER/NAME, the place on the Hub")
        suffix = Path(FILES.get(self.to, "")).suffix
        if self.out is not None and not self.out.endswith(suffix):  # so that it replaces nothing else: not the model, nor a photo
            raise ValueError(f"--out must end in {suffix} with --to {self.to} (got {self.out})")


def parser() -> Parser:
    """The model, the form, and the place."""
    parser = Parser("RUN --to FORM [options]", ABOUT)
    parser.add_argument("run", type=str, metavar="RUN", help="folder of the run, or its model.safetensors")
    Options(ExportOptions, choices={"to": FORMS}, metavars={"out": "FILE"}).add(parser, "to", "out")
    return parser


def run(args: Namespace) -> None:
    """Exports."""
    options = ExportOptions(**values_of(ExportOptions, vars(args)))
    model = load_classifier(args.run)
    if options.to == "hub":
        print(f"Pushed to {model.push_to_hub(str(options.out))}")
        return
    run_folder = Path(args.run) if Path(args.run).is_dir() else Path(args.run).parent
    file = Path(options.out) if options.out else run_folder / FILES[options.to]
    if options.to == "onnx":
        require("l3rs export --to onnx", "export")
    try:
        check_writable(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--out must be a file that can be written (got {file}: {first_line(error)})") from None
    away = model.to_onnx(file) if options.to == "onnx" else model.to_torch(file)
    print(f"Wrote {file}; its logits are torch's, to {away:.1e} of the largest.")
