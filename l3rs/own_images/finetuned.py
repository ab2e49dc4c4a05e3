"""A fine-tuned classifier in Python, and in other forms: ONNX, torch.export, and a model of timm on the Hub."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from timm.models import save_for_hf
from torch import Tensor, nn

from l3rs.extras import require
from l3rs.files import write_atomically
from l3rs.own_images.classifier import Classifier, load
from l3rs.own_images.predict import Prediction, predict
from l3rs.schedules.card import card, in_code, plain, table
from l3rs.schedules.hub import CARD, push_folder

CLOSE = 1e-4  # how far logits of another form may be from torch's, in units of the largest logit, or of 1
UPLOAD = 1800.0  # seconds


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned classifier.

    Attributes:
        about: its model, classes and transform.
        network: in evaluation mode; it gives logits, (n, classes).

    Example:
        >>> model = load_classifier("run")
        >>> for prediction in model(["a.jpg", "b.jpg"]):
        ...     print(prediction.file, prediction.classes)
    """

    about: Classifier
    network: nn.Module

    def __call__(self, files: str | Path | Sequence[str | Path], top: int = 1) -> list[Prediction]:
        """Classifies image files, or one; a file that cannot be decoded has an error in place of classes."""
        files = [files] if isinstance(files, str | Path) else files
        return list(predict(self.about, self.network, [str(file) for file in files], top))

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits, (n, classes), of inputs that the transform has made, (n, channels, side, side)."""
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits: Tensor = self.network(inputs.to(device)).float().cpu()
        return logits

    def to_onnx(self, path: str | Path) -> float:
        """Writes an ONNX file, which takes any number of `images` and gives their `logits`; classes and transform are in its metadata.

        Returns:
            How far its logits are from torch's, in onnxruntime.

        Raises:
            ValueError: they are farther than 1e-4 of the largest logit.
            ModuleNotFoundError: a library is missing; the message names the extra.
        """
        require("an export to ONNX", "export")
        import onnx  # only here: they take seconds
        import onnxruntime

        inputs = self._inputs(2)
        shapes = ({0: torch.export.Dim("n", min=1)},)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter, about itself
            program = torch.onnx.export(
                self.network.cpu(), (inputs,), input_names=["images"], output_names=["logits"], dynamic_shapes=shapes, dynamo=True,
                verbose=False,
            )  # fmt: skip
        assert program is not None
        model = program.model_proto
        onnx.helper.set_model_props(model, {"l3rs": json.dumps(asdict(self.about))})
        data = model.SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        more = self._inputs(3)  # of another number
        (found,) = session.run(["logits"], {"images": more.numpy()})
        away = self._away(more, torch.from_numpy(np.asarray(found)))
        write_atomically(Path(path), data)
        return away

    def to_torch(self, path: str | Path) -> float:
        """Writes a program of torch.export (`torch.export.load(path).module()`), which takes any number of images. As `to_onnx`."""
        program = torch.export.export(self.network.cpu(), (self._inputs(2),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
        more = self._inputs(3)
        with torch.no_grad():
            away = self._away(more, program.module()(more))
        packed = BytesIO()
        torch.export.save(program, packed, extra_files={"l3rs.json": json.dumps(asdict(self.about))})
        write_atomically(Path(path), packed.getvalue())
        return away

    def save_for_timm(self, folder: Path, repo_id: str) -> None:
        """Writes a folder that timm reads: `config.json` and `model.safetensors`; and a model card.

        Raises:
            ValueError: timm has no such network, or does not make such inputs.
        """
        t = self.about.transform
        if self.about.width is not None or t.invert:
            raise ValueError(
                f"{self.about.model} at width {self.about.width} is no model of timm, which cannot load it: l3rs.load_classifier reads it"
            )
        data = {
            "input_size": [t.channels, t.side, t.side], "mean": t.mean, "std": t.std, "interpolation": t.interpolation,
            "crop_pct": t.side / t.resize, "crop_mode": "squash" if t.squash else "center",
        }  # fmt: skip
        config: dict[str, Any] = {"label_names": list(self.about.classes), "pretrained_cfg": data}
        if self.about.img_size is not None:
            config["model_args"] = {"img_size": self.about.img_size}
        save_for_hf(self.network, str(folder), model_config=config, safe_serialization=True)
        self.card(repo_id).save(folder / CARD)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, branch: str | None = None) -> str:
        """Uploads it, so that `timm.create_model("hf-hub:OWNER/NAME", pretrained=True)` loads it. As `l3rs.push_to_hub`."""
        message = "Upload a fine-tuned image classifier with l3rs"
        return push_folder(
            self.save_for_timm, repo_id, commit_message=message, private=private, token=token, branch=branch, seconds=UPLOAD,
            offline="save_for_timm",
        )  # fmt: skip

    def card(self, repo_id: str) -> ModelCard:
        """The model card: what it is, how it was trained, how to use it."""
        about, trained = self.about, self.about.training
        given = in_code(repo_id)
        shown = ("optimizer", "learned", "lr", "steps", "batch_size", "train_images", "origin", "val_accuracy", "val_loss")
        rows = {name.replace("_", " "): str(trained[name]) for name in shown if trained.get(name) is not None}
        what = "An image may be of several of them." if about.multilabel else ""
        text = [
            f"# {plain(given.rpartition('/')[2])}",
            f"timm's {about.model}, tuned to tell {len(about.classes)} classes apart: {plain(', '.join(about.classes))}. {what}".strip(),
            "## Use it",
            "```python\nimport timm\n\n"
            f'model = timm.create_model("hf-hub:{given}", pretrained=True).eval()\n'
            "data = timm.data.resolve_model_data_config(model)\n"
            "transform = timm.data.create_transform(**data, is_training=False)\n"
            'classes = model.pretrained_cfg["label_names"]\n```',
            "## How it was trained",
            table(rows),
            "Accuracy and loss are of the validation images that chose the weights. Trained with [l3rs](https://arxiv.org/abs/2408.09310).",
        ]
        front = ModelCardData(library_name="timm", pipeline_tag="image-classification", tags=["image-classification", "timm", "l3rs"])
        return card(front, text)

    def _inputs(self, number: int) -> Tensor:
        t = self.about.transform
        return torch.randn(number, t.channels, t.side, t.side, generator=torch.Generator().manual_seed(0))

    def _away(self, inputs: Tensor, found: Tensor) -> float:
        """How far logits are from torch's. Raises ValueError if too far."""
        wanted = self.logits(inputs)
        away = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        if not away <= CLOSE:
            raise ValueError(f"{self.about.model} gives other logits there: by {away:.1e} of the largest, where {CLOSE:g} may be")
        return away


def load_classifier(run: str | Path) -> FineTuned:
    """Loads a classifier that `l3rs finetune --data` has trained, by the folder of its run or its `model.safetensors`.

    Raises:
        ClassifierError: there is none, or it cannot be used; the message says why.
    """
    return FineTuned(*load(run))
