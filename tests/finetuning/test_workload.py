"""A workload of one's own: its images decoded once, its tasks, its network, and meta-training on it from the command line."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails, fails_at_last, noise, write_tree
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import nn

import l3rs
from l3rs.cli import main
from l3rs.data.decode import Decoder
from l3rs.data.splits import ClassSplit
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.workbench import Workbench
from l3rs.finetuning.workload import Workload
from l3rs.meta.config import MetaTrainConfig
from l3rs.networks.create import create, head_of
from l3rs.networks.pretrained import shipped_weights

CLASSES = {"meta-train": ("ant", "bee", "cat"), "meta-validation": ("dog", "eel", "fox"), "meta-test": ("gnu",), "pretrain": ()}
TASK = TaskConfig(classes=3, batch_size=6, evaluation_size=6)


@pytest.fixture
def own(tmp_path: Path) -> Workload:
    """Seven classes of ten images, and a tiny network that starts at random."""
    root = write_tree(tmp_path / "images", {c: 10 for ids in CLASSES.values() for c in ids}, 24, 20)
    ClassSplit("folder", 0, CLASSES, "mine").write(tmp_path / "mine.json")
    return Workload(
        str(tmp_path / "mine.json"),
        str(root),
        side=16,
        model="resnet18",
        width=2,
        from_scratch=True,
        cache=str(tmp_path / "cache"),
    )


def prepare(workload: Workload, *purposes: str, task: TaskConfig | None = TASK) -> None:
    workload.prepare(purposes or ("meta-train", "meta-validation"), task, progress=False)


# What goes together


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": "images"}, "data is images, and the split icons is embedded; with data it is the JSON file of a class split"),
        ({"side": 64}, "side is 64, and the images of icons have 32 pixels; leave it out"),
        ({"split": "glyphs", "side": 31}, "side is 31, and the images of glyphs"),
        ({"split": "mine.json"}, "the split mine.json needs data, the folder of its images; embedded splits are icons, glyphs"),
        ({"weights": "w.pt", "from_scratch": True}, "weights is w.pt, and from_scratch is set; choose one"),
        ({"weights": "icons", "model": "resnet18"}, "the shipped weights icons are of resnet34 at width 16, and model is resnet18"),
        ({"weights": "icons", "width": 8}, "the shipped weights icons are of resnet34 at width 16, and model is resnet34 at width 8"),
        ({"width": 8}, "width is 8, and pretrained weights are of timm's own width: give weights, or from_scratch, or leave it out"),
        ({"split": "s.json", "data": "d", "width": 64}, "width is 64, and pretrained weights are of timm's own width"),
        ({"model": "resnet34x"}, "model is 'resnet34x', which timm .* does not have; similar ones are .*resnet34"),
        ({"model": "qqqqqqqq"}, "model is 'qqqqqqqq', which timm [^ ]+ does not have$"),
        (
            {"model": "vgg11", "width": 8, "from_scratch": True},
            "width is 8, and the model is vgg11; only resnet18 and resnet34 come",
        ),
        ({"width": 0, "from_scratch": True}, r"width must be at least 1 \(got 0\)"),
        ({"split": "s.json", "data": "d", "side": 0}, r"side must be at least 1 pixel \(got 0\)"),
        ({"split": "s.json", "data": "d", "side": -3}, r"side must be at least 1 pixel \(got -3\)"),
        ({"split": "s.json", "data": "d", "channels": 4}, r"channels must be 1 .* or 3 .*\(got 4\)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Workload(**settings)  # type: ignore[arg-type]


def test_a_workload_is_what_a_config_has_of_it(own: Workload) -> None:
    config = MetaTrainConfig.of(**asdict(replace(own, augment=False)), generations=3)
    assert (config.workload, config.generations) == (replace(own, augment=False), 3)


# Images


def test_images_are_decoded_once(own: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(own)
    monkeypatch.setattr(Decoder, "__call__", None)
    prepare(own)
    for purpose in ("meta-train", "meta-validation"):
        images = own.images(purpose)
        assert images.name == "mine"
        assert images.classes == CLASSES[purpose]
        assert images.pixels.shape == (30, 3, 18, 18)  # 16 / 0.875
        assert [(len(a), len(b)) for a, b in images.by_class] == [(8, 2)] * 3
        assert (images.side, images.mirror, images.margin) == (16, True, (2, 2))
        assert (images.mean, images.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_images_that_are_not_augmented_are_stored_as_they_are_seen(own: Workload) -> None:
    plain = replace(own, augment=False)
    prepare(plain, "meta-train")
    images = plain.images("meta-train")
    assert images.pixels.shape == (30, 3, 16, 16)
    assert not images.augmented
    tree = plain.tree("meta-train")
    assert np.array_equal(images.pixels[7], Decoder(16)(tree.root / tree.files[7]))


def test_grey_images_are_normalized_by_the_average(own: Workload) -> None:
    grey = replace(own, channels=1)
    prepare(grey, "meta-train")
    images = grey.images("meta-train")
    assert images.pixels.shape[1] == grey.in_chans == 1
    assert images.mean == pytest.approx((sum(IMAGENET_DEFAULT_MEAN) / 3,))
    assert images.std == pytest.approx((sum(IMAGENET_DEFAULT_STD) / 3,))
    inputs = images.inputs(torch.tensor([0]))
    assert torch.allclose(inputs[0], (images.pixels[0, :, 1:17, 1:17] / 255 - images.mean[0]) / images.std[0], atol=1e-6)


def test_images_are_made_as_timm_says_for_its_own_weights_only(own: Workload) -> None:
    for name in ("resnet18", "vit_base_patch16_clip_224"):
        known = get_pretrained_cfg(name)
        timms = replace(own, model=name, width=None, from_scratch=False, side=None)
        seen = known.input_size[-1]
        assert timms.decoder == Decoder(math.floor(seen / known.crop_pct), 3, known.interpolation)
        assert timms.normalization == (known.mean, known.std)
        assert replace(timms, augment=False).decoder.side == seen
        assert replace(timms, side=96).decoder.side == math.floor(96 / known.crop_pct)
        scratch = replace(timms, from_scratch=True)
        assert scratch.decoder == Decoder(math.floor(seen * 256 / 224), 3, "bilinear")
        assert scratch.normalization == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert get_pretrained_cfg("vit_base_patch16_clip_224").mean != IMAGENET_DEFAULT_MEAN


def test_caches_of_other_images_lie_elsewhere(own: Workload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    others = [own, replace(own, augment=False), replace(own, channels=1), replace(own, side=32), replace(own, data=str(tmp_path))]
    folders = [w.cache_folder("meta-train") for w in others] + [own.cache_folder("meta-test")]
    assert len(set(folders)) == len(folders)
    assert replace(own, width=4).cache_folder("meta-train") == folders[0]
    assert folders[0].parent == tmp_path / "cache"
    monkeypatch.setenv("L3RS_CACHE", str(tmp_path / "variable"))
    assert replace(own, cache=None).cache_folder("meta-train").parent == tmp_path / "variable"
    assert own.cache_folder("meta-train") == folders[0]
    monkeypatch.setenv("L3RS_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert replace(own, cache=None).cache_folder("meta-train").parent == tmp_path / "home" / ".cache" / "l3rs"


def test_what_cannot_be_drawn_is_told_before_anything_is_decoded(own: Workload) -> None:
    with pytest.raises(ValueError, match="meta-test of mine has 1 classes, and a task has 3"):
        prepare(own, "meta-train", "meta-test")
    with pytest.raises(ValueError, match="3 classes of meta-train of mine have fewer than 11 train images"):
        prepare(own, task=replace(TASK, batch_size=31))
    with pytest.raises(ValueError, match="the split mine has no pretrain classes"):
        prepare(own, "pretrain")
    assert not Path(str(own.cache)).exists()
    prepare(own, "meta-test", task=None)
    assert len(own.images("meta-test").labels) == 10


def test_classes_that_the_folder_lacks_are_named(own: Workload) -> None:
    shutil.rmtree(Path(str(own.data)) / "bee")
    for file in (Path(str(own.data)) / "cat").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"the folder .*images lacks 2 classes of the split mine: bee, cat"):
        prepare(own)
    prepare(own, "meta-validation")  # it has its own


def test_a_split_that_is_not_there_is_named(own: Workload) -> None:
    with pytest.raises(ValueError, match=r"the split nowhere\.json is neither a file nor one of imagenet25-0"):
        prepare(replace(own, split="nowhere.json"))


def test_tasks_are_those_of_the_same_images_anywhere_on_the_disk(own: Workload, tmp_path: Path) -> None:
    shutil.copytree(str(own.data), tmp_path / "elsewhere" / "copy")
    moved = replace(own, data=str(tmp_path / "elsewhere" / "copy"), cache=str(tmp_path / "elsewhere" / "cache"))
    prepare(own)
    prepare(moved)
    here, there = (Workbench(w, TASK).tasks("meta-train") for w in (own, moved))
    for seed in range(3):
        a, b = here.draw(seed, 5), there.draw(seed, 5)
        for step in range(5):
            for one, other in zip(a.batch(here.images, step), b.batch(there.images, step), strict=True):
                assert torch.equal(one, other)
        assert torch.equal(a.held_out(here.images)[0], b.held_out(there.images)[0])


def test_broken_images_are_left_out_of_tasks(own: Workload) -> None:
    broken = Path(str(own.data)) / "cat" / "cat-001.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"1 of 30 images cannot be decoded.*\n.*{broken}: it is not an image"):
        prepare(own)
    skipping = replace(own, skip_broken=True)
    prepare(skipping)
    assert skipping.images("meta-train").labels.eq(-1).nonzero().tolist() == [[21]]
    tasks = Workbench(skipping, TASK).tasks("meta-train")
    assert all(21 not in tasks.draw(seed, 12).batches for seed in range(5))


def test_what_is_left_without_broken_images_must_do_for_any_task(own: Workload) -> None:
    for number in (0, 2):  # the two that are for validation
        (Path(str(own.data)) / "cat" / f"cat-00{number}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"meta-train of mine, without broken images, have fewer than 2 validation .*: cat \(0\);"):
        prepare(replace(own, skip_broken=True))


# The network


def test_a_network_from_scratch_is_a_function_of_its_seed(own: Workload) -> None:
    bench = Workbench(own, TASK)
    first = {name: t.clone() for name, t in bench.network_for(7).state_dict().items()}
    with torch.no_grad():
        bench.network.train()(torch.randn(4, 3, 16, 16))  # moves the statistics of BatchNorm
        for p in bench.network.parameters():
            p.add_(1)
    torch.manual_seed(99)
    again = bench.network_for(7).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in first.items())
    elsewhere = Workbench(own, TASK).network_for(7).state_dict()
    assert all(torch.equal(t, elsewhere[name]) for name, t in first.items())
    other = bench.network_for(8).state_dict()
    assert not any(torch.equal(t, other[name]) for name, t in first.items() if t.ndim > 1)


def test_weights_from_scratch_have_variance_one_over_fan_in(own: Workload) -> None:
    network = Workbench(replace(own, width=32), TASK).network_for(0)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20
    layers: list[nn.Conv2d | nn.Linear] = [*convolutions, head_of(network)]
    for module in layers:
        weight = module.weight.detach()
        fan_in = weight[0].numel()  # inputs times the kernel's height and width
        assert float(weight.var() * fan_in) == pytest.approx(1, abs=5 * (2 / weight.numel()) ** 0.5)
        assert abs(float(weight.mean())) < 5 * (fan_in * weight.numel()) ** -0.5
    assert not head_of(network).bias.any()
    for state in (m.state_dict() for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert all((state[name] == 1).all() for name in ("weight", "running_var"))
        assert not any(state[name].any() for name in ("bias", "running_mean"))


def test_a_vision_transformer_from_scratch_is_a_function_of_its_seed(own: Workload) -> None:
    vit = replace(own, model="test_vit", width=None)
    one, other = (dict(vit.network(3).named_parameters()) for _ in range(2))
    assert all(torch.equal(p, other[name]) for name, p in one.items())
    drawn = vit.network(3)
    vit.draw(drawn, 1)
    assert not torch.equal(drawn.get_parameter("pos_embed"), one["pos_embed"])


@pytest.mark.parametrize("name", ["icons", "glyphs"])
def test_an_embedded_split_comes_with_its_network(name: str) -> None:
    workload = Workload(name)
    assert workload.source().shipped == name
    assert (workload.source().from_hub, workload.in_chans) == (False, 1)
    network, weights = workload.network(25), shipped_weights(name)
    assert all(torch.equal(t, weights[n]) for n, t in network.state_dict().items() if not n.startswith("fc."))
    assert head_of(network).out_features == 25
    assert Workload(name, from_scratch=True).source().shipped is None
    assert Workload(name, model="resnet18").source().from_hub


def test_weights_of_ones_own_are_put_into_the_network(own: Workload, tmp_path: Path) -> None:
    before = create("resnet18", 2, 3, 11)
    torch.save(before.state_dict(), tmp_path / "mine.pt")
    bench = Workbench(replace(own, from_scratch=False, weights=str(tmp_path / "mine.pt")), TASK)
    network = bench.network_for(3)
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in before.state_dict().items() if not n.startswith("fc."))
    head = head_of(network).weight.clone()
    assert head.shape == (3, 16)
    assert not torch.equal(head_of(bench.network_for(4)).weight, head)
    assert torch.equal(head_of(bench.network_for(3)).weight, head)
    with pytest.raises(ValueError, match=r"mine\.pt are of another network"):
        replace(own, from_scratch=False, weights=str(tmp_path / "mine.pt"), channels=1).network(3)


# The command line


def options(workload: Workload) -> list[str]:
    given = ["--split", workload.split, "--data", str(workload.data), "--cache", str(workload.cache)]
    return [*given, "--side", "16", "--model", "resnet18", "--width", "2", "--from-scratch"]


def test_meta_training_on_images_of_ones_own(own: Workload, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(str(own.data)) / "cat" / "cat-001.png").write_bytes(b"no image")
    tiny = "--generations 2 --nes.population 2 --steps [2,3] --validation-steps [2] --validation-tasks 1 --finalists 1 --final-tasks 1"
    size = "--task.classes 3 --task.batch-size 6 --task.evaluation-size 6 --workers 1"
    argv = ["meta-train", *options(own), *tiny.split(), *size.split(), "--out", str(tmp_path / "run")]
    assert "1 of 30 images cannot be decoded; --skip-broken leaves them out" in fails_at_last(argv, capsys)
    main([*argv, "--skip-broken"])
    assert "mine-resnet18.safetensors: generation" in capsys.readouterr().out
    learned = l3rs.load(tmp_path / "run" / "mine-resnet18.safetensors")
    assert list(learned.layers) == [name for name, _ in create("resnet18", 2, 3, 3).named_parameters()]
    assert learned.training["config"]["split"] == own.split
    assert (tmp_path / "run" / "curve.csv").read_text().count("\n") == 4


def test_meta_training_that_cannot_be_is_one_line(own: Workload, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["meta-train", *options(own), "--out", str(tmp_path / "run")]
    assert "meta-train of mine has 3 classes, and a task has 25" in fails(argv, capsys)
    assert "side must be at least 1 pixel (got 0)" in fails([*argv, "--side", "0"], capsys)
    assert "weights is w.pt, and from_scratch is set" in fails([*argv, "--weights", "w.pt"], capsys)
    assert "w.pt are not a file" in fails([*argv, "--weights", "w.pt", "--from-scratch", "false"], capsys)
    assert not Path(str(own.cache)).exists()


def test_decoding_beforehand(own: Workload, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["cache", *options(own)]
    main([*argv, "--plan"])
    out = capsys.readouterr().out
    assert f"meta-train: 3 classes, 30 images of 18 px, 29.2 kB in {own.cache_folder('meta-train')}" in out
    assert not Path(str(own.cache)).exists()
    main(argv)
    capsys.readouterr()
    monkeypatch.setattr(Decoder, "__call__", None)
    prepare(own)  # it is there
    main([*argv, "--verify"])
    assert "All pixels match their SHA-256." in capsys.readouterr().out
    pixels = own.cache_folder("meta-validation") / "pixels.u8"
    pixels.write_bytes(bytes(pixels.stat().st_size))
    assert "pixels.u8 is not as it was made" in fails_at_last([*argv, "--verify"], capsys)
    assert "--purposes must be one or more of pretrain, meta-train, meta-validation, meta-test (got 'meta')" in fails(
        [*argv, "--purposes", "meta"], capsys
    )


def test_a_picture_too_many_makes_another_cache_necessary(own: Workload) -> None:
    prepare(own, "meta-train")
    noise("new", 9, 9).save(Path(str(own.data)) / "bee" / "new.png")
    with pytest.raises(ValueError, match="was made of other images"):
        prepare(own, "meta-train")


def test_embedded_sets_are_checked_too() -> None:
    with pytest.raises(ValueError, match="the split glyphs has no meta-train classes"):
        Workload("glyphs").prepare(["meta-train"], TaskConfig())
    with pytest.raises(ValueError, match="meta-train of icons has 100 classes, and a task has 101"):
        Workload().prepare(["meta-train"], TaskConfig(classes=101))
    Workload("glyphs").prepare(["meta-test"], TaskConfig())
