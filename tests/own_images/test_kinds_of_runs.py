"""Runs of other kinds: several labels an image, unlike classes, a test folder, the head alone, augmentation, averages, processes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import write_tree
from PIL import Image
from safetensors.torch import load_file

from l3rs.cli import main
from l3rs.data.transform import Transform
from l3rs.finetuning.baselines import tuned_learning_rate
from l3rs.lightning import ImageFolderDataModule, L3RSModule
from l3rs.networks.create import create
from l3rs.own_images.classifier import describe
from l3rs.own_images.config import OwnImagesConfig
from l3rs.own_images.plan import plan
from l3rs.own_images.run import found
from l3rs.own_images.training import Training

RIVALS = ("adam-cosine-head10", "schedule-free", "adam")
TINY = ["--model", "resnet18", "--width", "2", "--side", "16", "--from-scratch", "--batch-size", "4", "--workers", "0", "--steps", "4"]


def finetune(photos: Path, out: Path, *options: str) -> None:
    main(["finetune", "--data", str(photos), *TINY, "--out", str(out), *options])


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train, val and test; one class has four times the images of the other, and all are grey."""
    root = tmp_path_factory.mktemp("sides")
    for side, counts in {"train": {"ant": 8, "bee": 2}, "val": {"ant": 2, "bee": 2}, "test": {"ant": 3, "bee": 1}}.items():
        write_tree(root / side, counts, 20, 20)
    for file in root.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    (root / "train" / "ant" / "notes.txt").write_text("x")
    return root


def test_a_test_folder_is_used_once_and_what_is_odd_is_told(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(sides, tmp_path / "o", "--balance", "weights", "--head-only")
    said, aside = capsys.readouterr()
    assert "On the 4 images of " in said
    assert f"{sides}/test, which chose nothing: accuracy " in said
    assert (aside.count("passed over 1 .txt"), "passed over" in said) == (1, False)
    assert "--channels 1 makes a network that needs no colour" in said
    assert "The largest class has" not in said  # it is met
    assert len(pd.read_csv(tmp_path / "o" / "test_predictions.csv")) == 4
    assert describe(tmp_path / "o").training["optimizer"] == "head"
    assert not (tmp_path / "o" / "l3rs.png").exists()
    body = {k: v for k, v in load_file(tmp_path / "o" / "model.safetensors").items() if not k.startswith("fc.")}
    torch.manual_seed(0)
    start = create("resnet18", 2, 3, 2).state_dict()
    assert all(torch.equal(v, start[k]) for k, v in body.items())  # the head alone was trained


def test_classes_that_nothing_validates_are_told(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2}, 20, 20)
    write_tree(tmp_path / "val", {"ant": 2}, 20, 20)
    for name in ("bee", "cat"):
        (tmp_path / "val" / name).mkdir()
    told = list(found(ImageFolderDataModule(tmp_path, batch_size=2), OwnImagesConfig(tmp_path)))
    assert "2 of 3 classes have no image to validate on (bee, cat): no accuracy tells of them." in told


def test_colours_in_any_class_are_seen(sides: Path, tmp_path: Path) -> None:
    """Files come class by class: of the first ones alone, all are grey."""
    copied = shutil.copytree(sides, tmp_path / "photos")
    for i in range(30):
        shutil.copy(next((copied / "train" / "ant").glob("*.png")), copied / "train" / "ant" / f"more-{i}.png")
    told = [any("--channels 1" in line for line in found(ImageFolderDataModule(copied, batch_size=2), OwnImagesConfig(copied)))]
    write_tree(copied / "train", {"bee": 6}, 20, 20)
    told.append(any("--channels 1" in line for line in found(ImageFolderDataModule(copied, batch_size=2), OwnImagesConfig(copied))))
    assert told == [True, False]


@pytest.mark.slow
def test_classes_that_are_unlike_are_told(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(
        sides, tmp_path / "o", "--augment", "randaugment", "--mixup", "0.4", "--cutmix", "1", "--label-smoothing", "0.1", "--no-head-start"
    )
    said = capsys.readouterr().out
    assert "The largest class has 4.0 times the training images of the smallest: --balance sampling" in said
    assert "augmentation randaugment" in said
    assert "head start" not in said
    best = torch.load(tmp_path / "o" / "best.ckpt", weights_only=True)
    assert best["hyper_parameters"]["label_smoothing"] == 0.1


def test_a_head_alone_leaves_statistics_to_no_optimizer(sides: Path, tmp_path: Path) -> None:
    finetune(sides, tmp_path / "o", "--head-only", "--compare", "schedule-free=0.01", "adam=0.01")
    found = [load_file(tmp_path / "o" / name / "model.safetensors") for name in (".", "schedule-free=0.01", "adam=0.01")]
    differ = [{name for name in found[0] if not torch.equal(found[0][name], other[name])} for other in found[1:]]
    assert differ == [{"fc.weight", "fc.bias"}] * 2


def test_a_test_folder_that_cannot_be_used_is_told_before_training(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(sides, tmp_path / "sides")
    write_tree(copy / "test", {"zebra": 1})
    with pytest.raises(SystemExit):
        finetune(copy, tmp_path / "o")
    assert "test has class 'zebra', which is none of the 2 classes" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_broken_image_of_the_test_folder_is_named(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(sides, tmp_path / "sides")
    (copy / "test" / "ant" / "bad.png").write_text("xx")
    finetune(copy, tmp_path / "o", "--head-only")
    said = capsys.readouterr().out
    assert "On the 4 images of " in said
    assert f"left out: {copy}/test/ant/bad.png: it is not an image" in said


@pytest.mark.slow
def test_images_of_several_classes(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(str(f.relative_to(sides)) for f in (sides / "train").rglob("*.png"))
    lines = [f"{file},{'insect;flies' if 'bee' in file else 'insect'},{'val' if i % 3 == 0 else 'train'}" for i, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,labels,side", *lines]))
    finetune(sides, tmp_path / "o", "--labels", str(tmp_path / "labels.csv"))
    said = capsys.readouterr().out
    assert "mean precision" in said
    assert describe(tmp_path / "o").multilabel
    best = describe(tmp_path / "o").training["step"]
    curve = pd.read_csv(tmp_path / "o" / "curve.csv").set_index("step")
    judged = pd.read_csv(tmp_path / "o" / "summary.csv").iloc[0]
    assert curve.val_accuracy[best] == pytest.approx(judged.accuracy)  # in all files it is the share of images with all labels right
    assert not (tmp_path / "o" / "confusion.png").exists()
    assert list(pd.read_csv(tmp_path / "o" / "predictions.csv")) == ["file", "classes", "predicted", "p(flies)", "p(insect)"]
    main(["evaluate", str(tmp_path / "o"), str(sides), "--labels", str(tmp_path / "labels.csv")])
    said = capsys.readouterr().out
    assert "all labels right" in said
    assert f"{len(files) - len(files[::3])} images whose side is train are left out" in said


def test_what_is_drawn_in_balance_and_mixed_is_a_function_of_the_seed(sides: Path) -> None:
    def data(seed: int = 0, **options: object) -> ImageFolderDataModule:
        transform = Transform.of("resnet18", 16)
        return ImageFolderDataModule(sides, transform=transform, batch_size=5, seed=seed, workers=0, **options)  # type: ignore[arg-type]

    labels = torch.cat([y for _, y in data(balance=True).batches(range(40))])
    assert 0.4 < labels.float().mean() < 0.6  # of all draws; bees are a fifth of the images
    for options in ({"balance": True}, {"augment": "randaugment"}):
        one, same, other = (next(iter(data(seed, **options).batches([3])))[0] for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore:.*does not have many workers.*", "ignore:.*val_dataloader.*")
def test_mixed_batches_are_pairs_with_shares_of_classes(sides: Path) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(L3RSModule):
        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            seen.append(batch)
            return super().training_step(batch, batch_idx)

    for kind in ("mixup", "mixup", "cutmix"):
        data = ImageFolderDataModule(sides, transform=Transform.of("resnet18", 16), batch_size=5, workers=0, **{kind: 1.0})
        trainer = pl.Trainer(
            max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu"
        )
        trainer.fit(Watched(create("resnet18", 2, 3, 2), 2), datamodule=data)
    assert all(x.shape[0] == 5 and y.shape == (5, 2) for x, y in seen)
    assert all(torch.allclose(y.sum(dim=1), torch.ones(5)) for _, y in seen)
    assert all(y[4].max() == 1 for _, y in seen)  # it has none to be mixed with
    assert any(((y > 0) & (y < 1)).any() for _, y in seen)
    assert all(torch.equal(seen[i][0], seen[i + 2][0]) for i in range(2))
    checked = set()
    for k, (x, y) in enumerate(seen):
        a, labels = next(iter(data.batches([k % 2])))
        assert torch.equal(x[4], a[4])
        a, b, own, other = a[:4], a[:4].flip(0), labels[:4], labels[:4].flip(0)
        if (own == other).all():
            continue
        share = y[:4].gather(1, own[:, None])[own != other][0]  # one for the batch
        if k < 4:
            torch.testing.assert_close(x[:4], share * a + (1 - share) * b)
        else:
            assert ((x[:4] == a) | (x[:4] == b)).all()
            assert (x[:4] == a).all(1).float().mean() == pytest.approx(share.item(), abs=0.02)
        checked.add("mixup" if k < 4 else "cutmix")
    assert checked == {"mixup", "cutmix"}


@pytest.mark.slow
def test_a_grid_is_one_row_with_its_runs_and_a_checkpoint_is_opened_by_lightning(
    sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w for w in TINY if w not in ("--width", "2")]
    argv = ["finetune", "--data", str(sides), *words, "--out", str(tmp_path / "o"), "--compare", "adam=1e-4,1e-2", "fastai", "--average"]
    main([*argv, "--patience", "1", "--validate-every", "1", "--logger", "csv", "tensorboard", "--model", "test_resnet"])
    summary = pd.read_csv(tmp_path / "o" / "summary.csv")
    assert summary.runs.to_list() == [1, 2, 1]
    module = L3RSModule.load_from_checkpoint(tmp_path / "o" / "best.ckpt", weights_only=True)
    saved = load_file(tmp_path / "o" / "model.safetensors")
    assert all(torch.equal(v, saved[k]) for k, v in module.network.state_dict().items())
    assert module.classes == ["ant", "bee"]
    assert (tmp_path / "o" / "logs" / "csv" / "version_0" / "metrics.csv").exists()
    assert list((tmp_path / "o" / "logs" / "tensorboard" / "version_0").glob("events*"))


def test_options_of_both_ends_do_what_they_say(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training is the same, but for the head that it begins with; what is kept differs."""
    found, said = {}, {}
    for name in ("default", "--no-refresh", "--average", "--no-head-start"):
        finetune(sides, tmp_path / name, "--validate-every", "4", *(() if name == "default" else (name,)))
        said[name] = capsys.readouterr().out
        found[name] = load_file(tmp_path / name / "model.safetensors"), pd.read_csv(tmp_path / name / "curve.csv").train_loss[0]
    weights, loss = found["default"]
    running = {name for name in weights if "running_" in name}
    differ = {other: {name for name in weights if not torch.equal(weights[name], of[name])} for other, (of, _) in found.items()}
    assert differ["--no-refresh"] == running
    assert differ["--average"] > {"fc.weight", "conv1.weight"}
    assert found["--no-refresh"][1] == found["--average"][1] == loss != found["--no-head-start"][1]
    assert [name for name, text in said.items() if "head start: from 8 images" not in text] == ["--no-head-start"]


def test_balance_weighs_classes_and_chooses_by_the_mean_class(sides: Path) -> None:
    config = OwnImagesConfig(sides, model="resnet18", width=2, from_scratch=True, balance="weights")
    data = ImageFolderDataModule(sides, transform=Transform.of("resnet18", 16), batch_size=5, workers=0)
    training = Training(config, plan(10, 4, 5), data, create("resnet18", 2, 3, 2), None)  # type: ignore[arg-type]
    assert training._module(config.arms(10)[0].arms[0], training.start()).class_weights == [10 / 2 / 8, 10 / 2 / 2]
    assert training.metric == "val_balanced_accuracy"
    assert Training(replace(config, balance="none"), training.plan, data, training._start, training.folder).metric == "val_accuracy"


def test_processes_have_parts_of_one_batch(sides: Path) -> None:
    def drawn(world_size: int, rank: int, size: int) -> set[int]:
        data = ImageFolderDataModule(sides, transform=Transform.of("resnet18", 16), batch_size=size, workers=0)
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)  # type: ignore[assignment]
        return {i for i, _ in next(iter(data.train_dataloader().sampler))}  # type: ignore[misc]

    one, other, together = drawn(2, 0, 2), drawn(2, 1, 2), drawn(1, 0, 4)
    assert len(one) == len(other) == 2
    assert not one & other
    assert one | other == together


@pytest.mark.slow
def test_two_processes_share_the_batches(sides: Path, tmp_path: Path) -> None:
    finetune(sides, tmp_path / "o", "--devices", "2", "--validate-every", "2")
    assert pd.read_csv(tmp_path / "o" / "curve.csv").step.to_list() == [2, 4]
    assert json.loads((tmp_path / "o" / "result.json").read_text())["best_step"] in (2, 4)
    assert np.isfinite(pd.read_csv(tmp_path / "o" / "curve.csv").to_numpy()).all()


def test_rivals_of_images_of_several_classes_have_rates_tuned_with_a_random_head() -> None:
    """There is no head in closed form for such images, and the rates that were tuned with one are others."""

    def rates(**options: Any) -> list[float]:
        config = OwnImagesConfig(data="photos", compare=RIVALS, **options)
        return [float(arm.lr or 0) for rival in config.arms(10)[1:] for arm in rival.arms]

    assert rates(labels="labels.csv") == rates(head_start=False) == [tuned_learning_rate(n, 10) for n in RIVALS]
    assert rates() == [tuned_learning_rate(n, 10, head="start") for n in RIVALS]
    assert all(a != b for a, b in zip(rates(), rates(labels="labels.csv"), strict=True))
    assert OwnImagesConfig(data="photos", labels="labels.csv", head_only=True).arms(10)[0].arms[0].source == "Adam tuned on Icons25"
