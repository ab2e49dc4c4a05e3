"""The zoo: what configs/zoo.yaml lists, what reading it refuses, and the arguments that make its networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from l3rs.finetuning.workload import Workload
from l3rs.finetuning.zoo import read_zoo
from l3rs.networks.create import create, head_of
from l3rs.networks.pretrained import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
PRETRAINING = ROOT / "configs" / "pretrain" / "zoo"
ZOO = read_zoo(ROOT / "configs" / "zoo.yaml", "folder")
HELD_OUT = {"densenet121", "narrow_vgg11_bn", "swin_tiny_patch4_window7_224", "tinynet_e"}


def test_what_a_schedule_meets_is_never_held_out() -> None:
    held_out = {network.workload.model for network in ZOO.values() if network.held_out}
    met = {network.workload.model for network in ZOO.values() if not network.held_out}
    assert held_out == HELD_OUT | {"tf_efficientnet_lite0", "tf_efficientnet_lite1"}
    assert not met & held_out
    for model in HELD_OUT:
        assert {n.workload.split for n in ZOO.values() if n.workload.model == model} == {"icons", "glyphs", "emoji"}


def test_networks_that_others_trained_meet_drawings_and_photographs() -> None:
    theirs = {n.workload.split: n.workload.data for n in ZOO.values() if "lite" in n.name}
    assert theirs == {"emoji": None, "cifar10": "runs/cifar10"}


def test_there_are_enough_networks_to_meta_train_on() -> None:
    met = [network for network in ZOO.values() if not network.held_out]
    families = ("resnet", "mobilenetv3", "convnext", "vit", "regnet", "mixer", "resmlp")
    assert len(met) >= 12
    assert {f for f in families for n in met if f in n.workload.model} == set(families)
    assert {n.workload.split for n in met if n.workload.model.startswith("resnet")} == {"icons", "glyphs", "emoji"}


def test_each_network_is_pretrained_by_the_config_of_its_name() -> None:
    ours = {name: n.workload for name, n in ZOO.items() if n.workload.weights not in SHIPPED and "lite" not in name}
    assert {path.stem for path in PRETRAINING.glob("*.yaml")} == set(ours)
    for name, workload in ours.items():
        config = yaml.safe_load((PRETRAINING / f"{name}.yaml").read_text())
        assert config["name"] == name
        assert workload.weights == str(Path("folder") / f"{name}.safetensors")
        for field in ("split", "side", "model", "width", "model_args"):
            assert config.get(field) == getattr(workload, field), (name, field)


@pytest.mark.parametrize("name", ["mixer-emoji", "resmlp-glyphs", "vgg11-bn-icons", "resnet50-gn-glyphs", "swin-icons"])
def test_narrow_networks_take_their_images_and_have_a_dense_head(name: str) -> None:
    w = ZOO[name].workload
    network = create(w.model, w.width, w.in_chans, 7, w.model_args)
    assert network(torch.zeros(2, w.in_chans, 32, 32)).shape == (2, 7)
    assert head_of(network).out_features == 7
    assert sum(p.numel() for p in network.parameters()) < 3e6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]", "is no zoo: it must map names of networks to what they are"),
        ("a: {model: resnet18, weights: w, depth: 3, held_out: true}", "a of .* has depth, which is not one of augment, .*, held_out"),
        ("a: {model: resnet18, weights: w}", r"a of .*: held_out must be true or false \(got None\)"),
        ("a: {model: resnet18, held_out: true}", r"a of .*: weights must be a file, or one of icons, glyphs \(got None\)"),
        ("a: {model: resnet81, weights: w, held_out: true}", "a of .*: model is 'resnet81', which timm"),
        ("a: {split: emoji, side: 48, weights: w, held_out: true}", "a of .*: side is 48, and the images of emoji have 64 or"),
        ("a: {model: resnet18, weights: w, held_out: true, model_args: [1]}", r"a of .*: model_args must be names and values"),
    ],
)
def test_what_is_no_zoo_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "zoo.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_zoo(tmp_path / "zoo.yaml", tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_args": {"depths": 3}, "from_scratch": True}, r'model_args is {"depths": 3}, and resnet34 does not take it: '),
        ({"model_args": {"checkpoint_path": "x"}, "from_scratch": True}, "model_args has checkpoint_path, which is not for it to say"),
        ({"model_args": {"a": 1}, "width": 8, "from_scratch": True}, "width is 8, and model_args is given too; choose one"),
        ({"model_args": {"a": 1}}, "model_args is given, and pretrained weights are of timm's own network"),
        ({"model_args": {"a": 1}, "weights": "icons"}, "the shipped weights icons are of resnet34 at width 16, and model_args is given"),
    ],
)
def test_model_args_that_cannot_be_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Workload(**settings).network(2)
