"""The networks, and that timm and torchvision can be imported at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from l3rs.data.embedded import load_embedded, read_split
from l3rs.networks.create import draw_head, head_inside, resnet34
from l3rs.networks.pretrained import SHIPPED, pretrained, shipped_weights
from l3rs.networks.source import Source

WEIGHTS = Path(__file__).parent.parent.parent / "l3rs" / "networks" / "weights"


def test_every_width_has_the_layers_of_the_full_network() -> None:
    full = [name for name, _ in timm.create_model("resnet34").named_parameters()]
    assert len(full) == 110
    for width in (4, 16, 64):
        assert [name for name, _ in resnet34(width).named_parameters()] == full
    assert [p.shape for p in resnet34(64).parameters()] == [p.shape for p in timm.create_model("resnet34").parameters()]


@pytest.mark.parametrize("name", SHIPPED)
def test_pretrained_accuracy_is_the_recorded_one(name: str) -> None:
    """The whole validation side of the pretraining classes, in half precision as shipped."""
    images, pretraining = load_embedded(name), read_split(name).classes["pretrain"]
    weights = shipped_weights(name)
    network = resnet34(16, 1, len(pretraining))
    network.load_state_dict(weights)
    network.eval()
    label = torch.full((len(images.classes),), -1)
    label[[images.classes.index(c) for c in pretraining]] = torch.arange(len(pretraining))
    labels = label[images.labels]
    index = torch.nonzero((labels >= 0) & images.validation).flatten()
    with torch.no_grad():
        right = sum(int((network(images.inputs(i)).argmax(1) == labels[i]).sum()) for i in index.split(1024))
    about = json.loads((WEIGHTS / f"resnet34-w16-{name}.json").read_text())
    assert len(index) == about["validation_images"]
    assert right / len(index) == pytest.approx(about["validation_accuracy_half"], abs=0.002)
    assert abs(about["validation_accuracy"] - about["validation_accuracy_half"]) < 0.002
    assert hashlib.sha256((WEIGHTS / f"resnet34-w16-{name}.safetensors").read_bytes()).hexdigest() == about["sha256"]


def test_a_head_is_a_function_of_its_seed() -> None:
    network = pretrained(25, head_seed=3)
    first = network.fc.weight.detach().clone()
    draw_head(network, 4)
    assert not torch.equal(network.fc.weight, first)
    draw_head(network, 3)
    assert torch.equal(network.fc.weight, first)


def test_torchvision_imports_in_a_fresh_process_and_the_shim_keeps_out_of_the_way() -> None:
    code = (
        "import l3rs._torchvision as t, torch; had = hasattr(torch.ops.torchvision, 'nms'); assert had or torch.version.cuda;"
        "assert t.declare_missing_operators() is False; import torchvision, timm; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("fine"), done.stderr


def test_of_several_networks_the_head_is_of_the_one_that_is_trained() -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = resnet34(4, 1, 5), resnet34(4, 1, 5)

    module = Distilled()
    assert head_inside(module) is module.teacher.fc
    module.teacher.requires_grad_(False)
    assert head_inside(module) is module.student.fc
    module.requires_grad_(False)
    assert head_inside(module) is module.teacher.fc
    module = nn.ModuleDict({"net": module.student, "average": AveragedModel(module.student), "again": module.student})
    assert head_inside(module) is module["net"].fc


def test_a_network_of_any_size_takes_no_img_size() -> None:
    with pytest.raises(ValueError, match=r"^resnet18 takes no --img-size \(got 32\): give --side 32, unless it is made for one size"):
        Source("resnet18", from_scratch=True, img_size=32).network(3, 2)
    assert Source("vit_tiny_patch16_224", from_scratch=True, img_size=32).network(3, 2)(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
