"""A folder of images as a data module: what is found, which batches come, and what happens to broken files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import write_tree
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from l3rs.data.decode import BrokenImage
from l3rs.data.transform import Transform, data_config
from l3rs.data.trees import TreeError, read_folder
from l3rs.lightning import HeadStart, ImageFolderDataModule, L3RSModule
from l3rs.lightning.batches import Batches
from l3rs.lightning.data import find_broken
from l3rs.networks.create import create

SMALL = Transform(8, 10, 3, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
QUIET = ("ignore:.*does not have many workers", "ignore:.*treespec", "ignore:.*exists and is not empty")


def module(root: Path, **options: object) -> ImageFolderDataModule:
    return ImageFolderDataModule(root, **{"transform": SMALL, "batch_size": 4, "workers": 0, **options})  # type: ignore[arg-type]


def batches(data: ImageFolderDataModule) -> list[tuple[Tensor, Tensor]]:
    return list(data.train_dataloader())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), {"ant": 10, "bee": 5, "cat": 2}, 20, 14)


# What is found


def test_every_class_has_both_sides(tree: Path) -> None:
    data = module(tree)
    assert data.classes == ("ant", "bee", "cat")
    assert data.tree.counts() == {"ant": (8, 2), "bee": (4, 1), "cat": (1, 1)}
    assert [(x.shape, y.tolist()) for x, y in data.val_dataloader()] == [((4, 3, 8, 8), [0, 0, 1, 2])]


def test_another_seed_holds_out_others(tree: Path) -> None:
    first, second = (module(tree, seed=seed).tree.validation for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, module(tree).tree.validation)


def test_a_validation_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/ant": 3, "train/bee": 1, "val/bee": 2})
    assert module(tmp_path).tree.counts() == {"ant": (3, 0), "bee": (1, 2)}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "has no class folders"),
        ({"ant": 5}, "has one class, 'ant'"),
        ({"ant": 5, "bee": 0}, "the class 'bee' in .* has 0 images; it takes one to train and one to validate"),
        ({"ant": 5, "bee": 1}, "the class 'bee' in .* has 1 image; it takes one to train and one to validate, or a folder val/"),
        ({"train/ant": 5, "train/bee": 0, "val/bee": 2}, "the class 'bee' in .* has no training images"),
        ({"train/ant": 5, "train/bee": 2, "val/bee": 0}, "the validation folder in .* has no images"),
    ],
)
def test_too_little_is_said(counts: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=said):
        module(write_tree(tmp_path, counts))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="nowhere is not a folder"):
        module(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("seed", -1), ("workers", -1), ("batches_per_epoch", 0), ("validation_share", 1.0)]
)
def test_bad_values_are_named(name: str, value: float, tree: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .* \(got {value}\)"):
        module(tree, **{name: value})


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write_tree(tmp_path, {"ant": 2, "bee": 2})
    (tmp_path / "ant" / "again").symlink_to(tmp_path / "ant", target_is_directory=True)
    (tmp_path / "bee" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert module(tmp_path).tree.counts()["ant"] == (1, 1)


def test_names_of_all_kinds_and_one_pixel(tmp_path: Path) -> None:
    write_tree(tmp_path, {"red fox": 3, "狐 狸": 3}, 1, 1)
    data = module(tmp_path)
    assert data.classes == ("red fox", "狐 狸")
    ((inputs, _),) = batches(data)
    assert inputs.shape == (4, 3, 8, 8)
    assert inputs.isfinite().all()


@pytest.mark.parametrize("seed", range(20, 24))
def test_strong_augmentation_takes_every_draw(seed: int, tree: Path) -> None:
    """At seed 22 timm's policy draws more than its own strength."""
    drawn = Transform.of("resnet18", side=32).training(tree / "ant" / "ant-000.png", seed, "randaugment")
    assert drawn.shape == (3, 32, 32)
    assert drawn.isfinite().all()


# Broken files


def break_some(tree: Path) -> None:
    (tree / "ant" / "empty.png").touch()
    (tree / "ant" / "text.jpg").write_text("no image")
    whole = (tree / "bee" / "bee-000.png").read_bytes()
    (tree / "bee" / "cut.png").write_bytes(whole[: len(whole) // 2])


def test_broken_files_of_small_trees_are_found_beforehand(tmp_path: Path) -> None:
    break_some(write_tree(tmp_path, {"ant": 6, "bee": 6}, 20, 14))
    data = module(tmp_path)
    assert {file: why.partition(": ")[2] for file, why in data.broken.items()} == {
        "ant/empty.png": "it is empty",
        "ant/text.jpg": "it is not an image",
        "bee/cut.png": data.broken["bee/cut.png"].partition(": ")[2],
    }
    assert set(data.tree.files).isdisjoint(data.broken)
    assert len(data.tree.files) == 12


def test_a_class_that_loses_all_is_an_error(tmp_path: Path) -> None:
    write_tree(tmp_path, {"ant": 3, "bee": 1})
    for name in ("a.png", "b.png"):
        (tmp_path / "bee" / name).touch()
    with pytest.raises(TreeError, match=r"'bee' .* has 1 image that can be decoded \(.*a.png: it is empty\)"):
        module(tmp_path)


def test_of_large_trees_only_empty_files_are_found_beforehand(tmp_path: Path) -> None:
    break_some(write_tree(tmp_path, {"ant": 6, "bee": 6}, 20, 14))
    assert list(find_broken(read_folder(tmp_path), decoded=3)) == ["ant/empty.png"]


def test_of_large_trees_a_class_of_broken_files_alone_is_found_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"ant": 6, "bee": 6}, 20, 14)
    broken = sorted((tmp_path / "bee").iterdir())
    for file in broken:
        file.write_text("no image")
    assert list(find_broken(read_folder(tmp_path), decoded=3)) == [f"bee/{file.name}" for file in broken]
    write_tree(tmp_path, {"bee": 1}, 20, 14)
    assert list(find_broken(read_folder(tmp_path), decoded=3)) == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ([3], r"have no images to validate that can be decoded \(.*ant-003.png: it is empty\)"),
        ([2], r"have no training image of 'b' that can be decoded \(.*ant-002.png: it is empty\)"),
    ],
)
def test_images_of_several_classes_are_counted_without_the_broken_ones(broken: list[int], said: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {"ant": 4}, 20, 14)
    files = sorted(file.name for file in (tmp_path / "ant").iterdir())
    for i in broken:
        (tmp_path / "ant" / files[i]).write_bytes(b"")
    rows = zip(files, ("a", "a", "a;b", "a"), ("train", "train", "train", "val"), strict=True)
    (tmp_path / "labels.csv").write_text("file,labels,side\n" + "\n".join(f"ant/{file},{own},{side}" for file, own, side in rows))
    with pytest.raises(TreeError, match=said):
        module(tmp_path, labels=tmp_path / "labels.csv")


def test_files_that_break_later_are_left_out_and_logged(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", {"ant": 6, "bee": 6}, 20, 14)
    data = module(tmp_path / "t", batch_size=12, broken_log=tmp_path / "broken.txt")
    lost = data.tree.files[np.flatnonzero(~data.tree.validation)[0]]
    (tmp_path / "t" / lost).write_text("gone")
    for _ in range(2):
        assert [len(labels) for _, labels in batches(data)] == [9]  # of ten
    (line,) = (tmp_path / "broken.txt").read_text().splitlines()
    assert line.endswith(f"{lost}: it is not an image")
    with pytest.warns(UserWarning, match=r"it is not an image; it is left out"):
        batches(module_of(data, None))


def test_a_batch_of_broken_files_alone_does_not_end_a_run(tmp_path: Path) -> None:
    """In training others take its place, so that several processes take the same number of steps; in validation there is none."""
    write_tree(tmp_path, {"ant": 10, "bee": 10}, 20, 14)
    data = module(tmp_path, batch_size=2)
    training, validation = np.flatnonzero(~data.tree.validation), np.flatnonzero(data.tree.validation)
    sound = [*training[:3], validation[-1]]
    for i in (*training[3:], *validation[:-1]):
        (tmp_path / data.tree.files[i]).write_text("gone")
    with pytest.warns(UserWarning, match="it is left out"):
        trained, validated, begun = batches(data), list(data.val_dataloader()), list(data.batches(range(8)))
    assert len(trained) == len(data.train_dataloader()) == len(begun) == 8
    assert all(1 <= len(inputs) == len(labels) <= 2 for inputs, labels in trained)
    ((inputs, labels),) = validated
    assert (len(inputs), labels.tolist()) == (1, [data.tree.labels[validation[-1]]])

    for i in sound:
        (tmp_path / data.tree.files[i]).write_text("gone")
    module_of(data, tmp_path / "log.txt")
    with pytest.raises(BrokenImage, match=r"^none of the training images in .* can be decoded$"):
        batches(data)
    with pytest.raises(BrokenImage, match=r"^none of the images in .* that were to be read can be decoded$"):
        list(data.val_dataloader())


def module_of(data: ImageFolderDataModule, log: Path | None) -> ImageFolderDataModule:
    """The same, with another log, and no memory of what was reported."""
    data.broken_log = log
    del data.__dict__["_images"]
    return data


def test_what_is_passed_over_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, {"ant": 3, "bee": 3})
    for name in ("ant/x.heic", "bee/y.heic", "bee/notes.txt", "loose.png"):
        (tmp_path / name).touch()
    assert module(tmp_path).tree.passed_over == {".heic": 2, ".txt": 1, ".png outside the class folders": 1}
    assert capsys.readouterr().err == f"{tmp_path}: passed over 2 .heic, 1 .png outside the class folders, 1 .txt\n"


def test_a_class_of_which_all_is_passed_over_says_so(tmp_path: Path) -> None:
    write_tree(tmp_path, {"ant": 3, "bee": 3}, suffix=".png")
    for file in (tmp_path / "bee").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(TreeError, match=r"'bee' in .* has 0 images \(passed over: 3 \.heic\)"):
        module(tmp_path)


@pytest.mark.parametrize("decoded", [1000, 3])
def test_a_named_pipe_among_images_is_broken(decoded: int, tmp_path: Path) -> None:
    """Of large trees too, which are not decoded beforehand."""
    write_tree(tmp_path, {"ant": 3, "bee": 3})
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    found = find_broken(read_folder(tmp_path), decoded)
    assert found == {"ant/pipe.png": f"{tmp_path}/ant/pipe.png: it is no file, but a named pipe, a socket or a device"}


def test_warnings_are_left_alone(tmp_path: Path) -> None:
    """Looking for broken images decodes in threads, which share the filters of warnings."""
    write_tree(tmp_path, {"ant": 30, "bee": 30})
    before = list(warnings.filters)
    module(tmp_path)
    assert warnings.filters == before


def test_an_image_that_would_fill_the_memory_is_broken(tmp_path: Path) -> None:
    write_tree(tmp_path, {"ant": 3, "bee": 3})
    (tmp_path / "ant" / "bomb.ppm").write_bytes(b"P6 20000 20000 255\n")
    assert "decompression bomb" in module(tmp_path).broken["ant/bomb.ppm"]


# Batches


def test_a_pass_has_no_image_twice_and_the_next_another_order(tree: Path) -> None:
    sampler = Batches(np.arange(100, 113), 4, seed=3, length=9)
    drawn = [[i for i, _ in batch] for batch in sampler]
    assert len(drawn) == len(sampler) == 9
    for a in range(0, 9, 3):
        assert len({i for batch in drawn[a : a + 3] for i in batch}) == 12
    assert drawn[:3] != drawn[3:6]
    assert {i for batch in drawn for i in batch} == set(range(100, 113))
    assert len({seed for batch in sampler for _, seed in batch}) == 36


def test_epochs_are_parts_of_one_stream() -> None:
    whole = list(Batches(np.arange(10), 3, length=8))
    sampler = Batches(np.arange(10), 3, length=4)
    parts = list(sampler)
    sampler.set_epoch(1)
    assert parts + list(sampler) == whole


def test_processes_share_a_batch() -> None:
    ranks = [[i for i, _ in Batches(np.arange(12), 3, ranks=2, rank=rank).batch(1)] for rank in (0, 1)]
    assert ranks[0] + ranks[1] == [i for i, _ in Batches(np.arange(12), 6).batch(1)]


def test_a_batch_is_no_larger_than_there_are_images(tree: Path) -> None:
    data = module(tree, batch_size=500)
    assert data.batch_size == 13
    assert [len(labels) for _, labels in batches(data)] == [13]


def test_batches_do_not_depend_on_workers_or_on_other_randomness(tree: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    alone = batches(module(tree, batches_per_epoch=5))
    torch.manual_seed(2)
    helped = batches(module(tree, batches_per_epoch=5, workers=2))
    for (x, y), (other, labels) in zip(alone, helped, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, labels)
    other = batches(module(tree, batches_per_epoch=5, seed=1))
    assert not any(torch.equal(x, y) for (x, _), (y, _) in zip(alone, other, strict=True))
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_leaves_the_global_generator_alone(tree: Path) -> None:
    path = tree / "ant" / "ant-000.png"
    before = torch.get_rng_state()
    first, same, other = (SMALL.training(path, seed) for seed in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_without_augmentation_images_are_as_in_validation(tree: Path) -> None:
    data = module(tree, augment="none", batch_size=13)
    ((inputs, _),) = batches(data)
    path = (
        tree / "cat" / next(f.name for f in (tree / "cat").iterdir() if f"cat/{f.name}" in np.array(data.tree.files)[~data.tree.validation])
    )
    assert sum(torch.equal(x, SMALL.evaluation(path)) for x in inputs) == 1


class Seen(pl.Callback):
    """What was trained on; stops at a step."""

    def __init__(self, stop: int | None = None) -> None:
        self.batches: list[Tensor] = []
        self.stop = stop

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.batches.append(batch[0])  # type: ignore[index]
        if self.stop == trainer.global_step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "cut.ckpt")
            raise KeyError("stop")


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("epoch", [None, 10])
def test_a_run_goes_on_with_the_batches_that_are_left(epoch: int | None, tree: Path, tmp_path: Path) -> None:
    def fit(seen: Seen, ckpt: Path | None = None) -> None:
        torch.manual_seed(0)
        network = L3RSModule(create("resnet18", 2, 3, 3), 3, learned="icons-generalist")
        trainer = pl.Trainer(
            max_steps=8, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[seen],
            default_root_dir=tmp_path, accelerator="cpu", limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(network, datamodule=module(tree, batches_per_epoch=epoch), ckpt_path=ckpt, weights_only=True)

    whole, first, rest = Seen(), Seen(stop=5), Seen()
    fit(whole)
    with pytest.raises(KeyError):
        fit(first)
    fit(rest, tmp_path / "cut.ckpt")
    assert [len(s.batches) for s in (whole, first, rest)] == [8, 5, 3]
    assert all(torch.equal(a, b) for a, b in zip(whole.batches, first.batches + rest.batches, strict=True))


# Transforms


@pytest.mark.parametrize("model", ["resnet34", "vit_tiny_patch16_224", "dm_nfnet_f0", "convnextv2_huge"])
def test_the_transform_is_timms(model: str, tmp_path: Path) -> None:
    """Of all kinds: the middle of an image, or the whole of it, whatever its form."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 450, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    theirs = create_transform(**data_config(model), is_training=False)(Image.open(tmp_path / "x.png"))
    torch.testing.assert_close(Transform.of(model).evaluation(tmp_path / "x.png"), theirs, rtol=1e-5, atol=1e-5)


def test_the_transform_is_timms_for_another_size() -> None:
    assert Transform.of("resnet34", side=64).resize == 67
    assert Transform.of("resnet34", channels=1).mean == (pytest.approx(0.449, abs=1e-3),)


def test_images_that_are_not_square_need_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    oblong = {**data_config("resnet34"), "input_size": (3, 1024, 768)}
    monkeypatch.setattr("l3rs.data.transform.data_config", lambda model: oblong)
    with pytest.raises(ValueError, match="resnet34 was pretrained on images of 1024 x 768 px, which are not square: give --side"):
        Transform.of("resnet34")
    assert Transform.of("resnet34", side=64).side == 64


def test_evaluation_sees_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[1:9, 11:19] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert SMALL.evaluation(tmp_path / "x.png").unique().tolist() == [2.0]
    inverted = Transform(8, 10, 3, "bilinear", (0.5,) * 3, (0.25,) * 3, invert=True)
    assert inverted.evaluation(tmp_path / "x.png").unique().tolist() == [-2.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"side": 0}, "1 <= side <= resize"),
        ({"resize": 7}, "1 <= side <= resize"),
        ({"side": 10**6, "resize": 10**6}, "<= 4096 pixels"),
        ({"side": True}, r"side must be a whole number \(got True\)"),
        ({"channels": 4}, r"channels must be 1 .* or 3 .*\(got 4\)"),
        ({"interpolation": "best"}, r"interpolation must be one of .*\(got 'best'\)"),
        ({"std": (0.0, 1.0, 1.0)}, r"std must be a number above 0 for each of 3 channels \(got \(0\.0, 1\.0, 1\.0\)\)"),
        ({"mean": (float("nan"), 1.0, 1.0)}, r"mean must be a finite number for each of 3 .*\(got \(nan, 1\.0, 1\.0\)\)"),
        ({"mean": (1.0,)}, r"mean must be a finite number for each of 3 .*\(got \(1\.0,\)\)"),
        ({"invert": 1}, r"invert must be true or false \(got 1\)"),
    ],
)
def test_transforms_are_checked(change: dict[str, object], said: str) -> None:
    values = {"side": 8, "resize": 8, "channels": 3, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ValueError, match=said):
        Transform(**{**values, **change})  # type: ignore[arg-type]


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_head_start_sees_the_images_before_they_are_mixed(kind: str, tree: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watch(pl.Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: tuple[Tensor, Tensor], batch_idx: int
        ) -> None:
            seen.append(batch[1])

    data, start = module(tree, **{kind: 0.5}), HeadStart()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=[start, Watch()], **quiet)
    trainer.fit(L3RSModule(create("resnet18", 4, 3, 3), 3, learned="generalist"), datamodule=data)
    assert start.found is not None
    assert start.found.images == 12  # an epoch has three batches
    assert all(labels.is_floating_point() for labels in seen)  # those of training are mixed
