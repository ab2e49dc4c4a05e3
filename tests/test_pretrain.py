"""The pretraining recipe: its batches, going on after a stop, and the paper's configs on small trees of real JPEG files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from l3rs.data.splits import ClassSplit
from l3rs.networks.create import create
from l3rs.networks.pretrained import load

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "pretrain" / "backbone.py"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning", "ignore:.*isinstance.treespec.*", "ignore:Precision bf16-mixed is not supported"
)


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pretrain/backbone.py, as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import backbone

    return backbone


@pytest.fixture
def tiny(backbone: ModuleType) -> object:
    return backbone.PretrainConfig.of(model="resnet18", width=2, steps=6, validate_every=2, batch_size=16, accelerator="cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "resnet18-w2-icons.safetensors")


def test_what_is_written(backbone: ModuleType, tiny: object, tmp_path: Path) -> None:
    about = backbone.pretrain(tiny, str(tmp_path))
    assert about == json.loads((tmp_path / "resnet18-w2-icons.json").read_text())
    assert (about["classes"], about["train_images"], about["validation_images"]) == (200, 8932, 5208)
    file = tmp_path / "resnet18-w2-icons.safetensors"
    assert about["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    log = pd.read_csv(tmp_path / "resnet18-w2-icons.csv")
    assert log.step.to_list() == [2, 4, 6]
    assert log.notna().all().all()
    assert list((tmp_path / "tensorboard").rglob("events*"))
    assert not list(tmp_path.glob("*.ckpt"))
    network = create("resnet18", 2, 1, 200)
    load(network, file)  # all but the head
    network.fc.load_state_dict({k.removeprefix("fc."): v.float() for k, v in weights(tmp_path).items() if k.startswith("fc.")})
    assert backbone.accuracy(network, backbone.pretraining_images(tiny)) == about["validation_accuracy_half"]


def stop(backbone: ModuleType, at: int, config: object, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begins a pretraining that ends in the step of this number."""
    step = backbone.Backbone.training_step

    def until_the_lights_go_out(self: torch.nn.Module, batch: object, number: int) -> torch.Tensor:
        if self.global_step == at:
            raise RuntimeError("the lights went out")
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(backbone.Backbone, "training_step", until_the_lights_go_out)
        with pytest.raises(RuntimeError, match="lights"):
            backbone.pretrain(config, str(out))


def test_a_run_that_is_over_is_not_made_again_nor_lost(backbone: ModuleType, tiny: object, tmp_path: Path) -> None:
    about = backbone.pretrain(tiny, str(tmp_path))
    there = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert backbone.pretrain(tiny, str(tmp_path)) == about
    with pytest.raises(ValueError, match=r"resnet18-w2-icons\.safetensors is of a run with another config: lr differ; remove it"):
        backbone.pretrain(replace(tiny, lr=1.0), str(tmp_path))
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == there


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    backbone: ModuleType, tiny: object, ema: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny, ema=ema)
    backbone.pretrain(config, str(tmp_path / "whole"))
    stop(backbone, 5, config, tmp_path / "stopped", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "keep", None)  # after the last step
        with pytest.raises(TypeError):
            backbone.pretrain(config, str(tmp_path / "kept"))
    backbone.pretrain(config, str(tmp_path / "kept"))
    with pytest.raises(ValueError, match="another config: lr differ"):
        backbone.pretrain(replace(config, lr=1.0), str(tmp_path / "stopped"))
    backbone.pretrain(config, str(tmp_path / "stopped"))
    whole, stopped, kept = (weights(tmp_path / name) for name in ("whole", "stopped", "kept"))
    assert all(torch.equal(whole[k], stopped[k]) and torch.equal(whole[k], kept[k]) for k in whole)
    assert pd.read_csv(tmp_path / "stopped" / "resnet18-w2-icons.csv").step.to_list() == [2, 4, 6]


def test_a_run_that_was_stopped_between_a_validation_and_its_checkpoint_logs_it_once(
    backbone: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = backbone.ModelCheckpoint.on_validation_end

    def until_the_lights_go_out(self: object, trainer: Any, module: object) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("the lights went out")
        save(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(backbone.ModelCheckpoint, "on_validation_end", until_the_lights_go_out)
        with pytest.raises(RuntimeError, match="lights"):
            backbone.pretrain(tiny, str(tmp_path))
    with (tmp_path / "resnet18-w2-icons.csv").open("a") as log:
        log.write("40")  # of a row that was cut off
    backbone.pretrain(tiny, str(tmp_path))
    assert pd.read_csv(tmp_path / "resnet18-w2-icons.csv").step.to_list() == [2, 4, 6]


@pytest.mark.parametrize("kind", ["proj_drop_rate", "drop_path_rate"])
def test_a_network_that_draws_at_random_goes_on_to_the_same_weights(
    backbone: ModuleType, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = backbone.PretrainConfig.of(
        model="test_vit", model_args={"img_size": 32, kind: 0.5}, steps=6, validate_every=2, batch_size=16, accelerator="cpu", name="tiny"
    )  # fmt: skip
    stop(backbone, 3, config, tmp_path / "stopped", monkeypatch)
    found = [backbone.pretrain(config, str(tmp_path / name))["sha256"] for name in ("stopped", "whole")]
    assert found[0] == found[1]


def test_an_average_of_the_weights_is_what_is_kept(backbone: ModuleType, tiny: object, tmp_path: Path) -> None:
    for name, ema in (("plain", 0.0), ("ema", 0.9)):
        backbone.pretrain(replace(tiny, ema=ema), str(tmp_path / name))
    torch.manual_seed(tiny.seed)
    start = create("resnet18", 2, 1, 200).conv1.weight
    plain, ema = (weights(tmp_path / name)["conv1.weight"].float() for name in ("plain", "ema"))
    assert 0.01 * (plain - start).norm() < (ema - start).norm() < 0.9 * (plain - start).norm()


def test_a_batch_is_the_same_however_many_processes_make_it(backbone: ModuleType, tiny: object) -> None:
    config = replace(tiny, mirror=True)
    images = backbone.pretraining_images(config)
    alone = list(backbone.Batches(images, config, 0, 0))
    assert len(alone) == 6
    pair = replace(config, devices=2)
    for whole, *halves in zip(alone, *(backbone.Batches(images, pair, 0, rank) for rank in range(2)), strict=True):
        for i in range(2):
            assert torch.equal(torch.stack([h[i] for h in halves], dim=1).flatten(0, 1), whole[i])
    later = list(backbone.Batches(images, config, 4, 0))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone[4:], later, strict=True))
    loaders = torch.utils.data.DataLoader(backbone.Batches(images, config, 0, 0), batch_size=None, num_workers=2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, loaders, strict=True))
    assert not torch.equal(alone[0][0], next(iter(backbone.Batches(images, replace(config, seed=1), 0, 0)))[0])


def test_values_that_cannot_be(backbone: ModuleType, tiny: object) -> None:
    for change, message in (
        ({"steps": 0}, r"steps must be at least 1 \(got 0\)"),
        ({"devices": 3}, "3 devices cannot share"),
        ({"ema": 1.0}, r"ema must be at least 0 and below 1 \(got 1\.0\)"),
        ({"steps": 7}, "steps is 7, and validations come every 2"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(tiny, **change)


def jpeg(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)).save(path)


def imagenet_tree(root: Path) -> int:
    ids = ClassSplit.find("imagenet25-0").classes["pretrain"]
    for n, c in enumerate(ids):
        jpeg(root / "train" / c / f"{c}_1.JPEG", n)
        jpeg(root / "val" / c / f"ILSVRC2012_val_{n:08d}.JPEG", 1000 + n)
    return len(ids)


def places_tree(root: Path) -> int:
    split = ClassSplit.find("places25")
    ids = [*split.classes["pretrain"], *split.classes["meta-test"]]
    root.mkdir(parents=True)
    (root / "categories_places365.txt").write_text("\n".join(f"{c} {i}" for i, c in enumerate(ids)))
    train, val = [], []
    for n, c in enumerate(split.classes["pretrain"]):
        train.append(f"{c}/00000001.jpg {n}")
        val.append(f"Places365_val_{n:08d}.jpg {n}")
        jpeg(root / "data_256_standard" / c[1:] / "00000001.jpg", n)
        jpeg(root / "val_256" / f"Places365_val_{n:08d}.jpg", 1000 + n)
    (root / "places365_train_standard.txt").write_text("\n".join(train))
    (root / "places365_val.txt").write_text("\n".join(val))
    return len(split.classes["pretrain"])


@pytest.mark.parametrize(("name", "tree"), [("imagenet", imagenet_tree), pytest.param("places", places_tree, marks=pytest.mark.slow)])
def test_two_steps_of_the_papers_own(name: str, tree: object, backbone: ModuleType, tmp_path: Path) -> None:
    """The committed config, with full ResNet-34 at 224 px, but two steps of a small batch."""
    classes = tree(tmp_path / "data")
    settings = yaml.safe_load((ROOT / "configs" / "pretrain" / f"{name}.yaml").read_text())
    small = {"steps": 2, "validate_every": 2, "batch_size": 2, "loaders": 0, "accelerator": "cpu"}
    config = backbone.PretrainConfig.of(**{**settings, **small, "data": str(tmp_path / "data"), "cache": str(tmp_path / "cache")})
    held_out = backbone.HeldOut
    config_images = 4  # validation images that are looked at, of one a class

    class Few(held_out):
        def __init__(self, images: object, batch_size: int) -> None:
            super().__init__(images, batch_size)
            self.parts = [torch.cat(list(self.parts))[:config_images]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "HeldOut", Few)
        about = backbone.pretrain(config, str(tmp_path / "out"))
    assert (about["classes"], about["train_images"], about["validation_images"]) == (classes, classes, classes)
    kept = load_file(next((tmp_path / "out").glob("resnet34-*.safetensors")))
    assert kept["fc.weight"].shape == (classes, 512)
    assert kept["conv1.weight"].shape == (64, 3, 7, 7)


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    words = "--model resnet18 --width 2 --steps 4 --validate_every 2 --batch_size 16 --accelerator cpu --devices 2"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words.split(), "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "resnet18-w2-icons.json").read_text())["config"]["devices"] == 2
    assert pd.read_csv(tmp_path / "resnet18-w2-icons.csv").step.to_list() == [2, 4]
