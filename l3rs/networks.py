"""The networks of the experiments: ResNet-34 by timm, at any width, and the pretrained one that is shipped."""

from __future__ import annotations

from importlib import resources

import torch
from safetensors.torch import load as load_safetensors
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # of each stage, by depth (He et al. 2015, table 1)
HEAD = "fc."  # what the names of a ResNet's classifier begin with


def resnet(depth: int, width: int = 64, in_chans: int = 3, num_classes: int = 1000) -> ResNet:
    """ResNet-18 or ResNet-34 whose stages have `width` times 1, 2, 4 and 8 channels; at width 64 it is timm's.

    timm narrows the stages but not the stem, which would add a downsample to stage 1. Here the stem is narrowed too, so
    that every width has the same parameter tensors (110 at depth 34) with the same names, and a schedule can move between widths.

    Raises:
        ValueError: there is no such depth.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth is {depth}; it is one of {', '.join(map(str, BLOCKS))}")
    network = ResNet(BasicBlock, BLOCKS[depth], num_classes=num_classes, in_chans=in_chans, channels=tuple(width * 2**i for i in range(4)))
    if width != 64:
        network.conv1 = nn.Conv2d(in_chans, width, kernel_size=7, stride=2, padding=3, bias=False)
        network.bn1 = nn.BatchNorm2d(width)
        network.layer1[0] = BasicBlock(width, width)
        network.init_weights()
    return network


def resnet34(width: int = 64, in_chans: int = 3, num_classes: int = 1000) -> ResNet:
    """`resnet` of depth 34."""
    return resnet(34, width, in_chans, num_classes)


def draw_head(network: ResNet, seed: int) -> None:
    """Draws the head afresh, from `seed` alone.

    Weights are uniform in +-1/sqrt(fan_in) and biases zero: the scale that torch's linear layers start with.
    """
    head = network.fc
    bound = head.in_features**-0.5
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()


def replace_head(network: ResNet, num_classes: int, seed: int) -> None:
    """Gives `network` a fresh head for `num_classes` classes, drawn from `seed` alone."""
    network.reset_classifier(num_classes)
    draw_head(network, seed)


def shipped_weights() -> dict[str, Tensor]:
    """ResNet-34 at width 16, pretrained on the 200 pretraining classes of Icons by `pretrain/backbone.py`: float32 tensors."""
    data = (resources.files("l3rs") / "weights" / "resnet34-w16-icons.safetensors").read_bytes()
    return {name: t.float() if t.is_floating_point() else t for name, t in load_safetensors(data).items()}


def pretrained(num_classes: int, head_seed: int = 0) -> ResNet:
    """The shipped network with a fresh head for `num_classes` classes."""
    weights = shipped_weights()
    network = resnet34(width=16, in_chans=1, num_classes=weights["fc.bias"].numel())
    network.load_state_dict(weights)
    replace_head(network, num_classes, head_seed)
    return network
