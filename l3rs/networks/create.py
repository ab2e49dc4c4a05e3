"""The networks of the experiments: ResNet-34 by timm at any width, any other model of timm, and their heads."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

import l3rs.networks.narrow  # noqa: F401  (it registers its networks with timm)
from l3rs.controller.describe import called_head
from l3rs.text import first_line

# What a caller of `create` says otherwise, and what would load a file or run code of a name.
OURS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "in_chans", "num_classes", "scriptable"}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # of each stage, by depth (He et al. 2015, table 1)


def resnet(depth: int, width: int = 64, in_chans: int = 3, num_classes: int = 1000) -> ResNet:
    """ResNet-18 or ResNet-34 whose stages have `width` times 1, 2, 4 and 8 channels; at width 64 it is timm's.

    timm narrows the stages but not the stem, which would add a downsample to stage 1. Here the stem is narrowed too, so
    that every width has the same parameter tensors (110 at depth 34) with the same names, and a schedule can move between widths.

    Raises:
        ValueError: there is no such depth.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))} (got {depth})")
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


def create(
    model: str, width: int | None = None, in_chans: int = 3, num_classes: int = 1000, model_args: Mapping[str, Any] | None = None
) -> nn.Module:
    """A network without pretrained weights.

    Args:
        model: its name in timm.
        width: channels of the first stage, for `resnet18` and `resnet34`; None is timm's own.
        model_args: what else timm's `create_model` is given, such as `{"depths": [2, 2, 4, 2]}`.

    Raises:
        ValueError: timm has no such model (the message names the most similar), it has no choice of width, or does not take `model_args`.
    """
    check_model(model, width, model_args)
    if width is not None:
        sized: nn.Module = resnet(int(model.removeprefix("resnet")), width, in_chans, num_classes)
        return sized
    try:
        network: nn.Module = timm.create_model(model, pretrained=False, in_chans=in_chans, num_classes=num_classes, **(model_args or {}))
    except Exception as error:  # each of timm's networks refuses in its own way: TypeError, AssertionError, RuntimeError
        if not model_args:
            raise
        raise ValueError(f"model_args is {json.dumps(dict(model_args))}, and {model} does not take it: {first_line(error)}") from None
    return network


def check_model(model: str, width: int | None = None, model_args: Mapping[str, Any] | None = None) -> None:
    """Raises ValueError unless `create` knows the model, and this width of it; `model_args` are only looked at for their names."""
    if not timm.is_model(model):
        similar = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"; similar ones are {', '.join(similar)}" if similar else ""
        raise ValueError(f"model is {model!r}, which timm {timm.__version__} does not have{hint}")
    try:
        timm.get_pretrained_cfg(model)
    except RuntimeError as error:  # a name with a tag behind a dot: those are of pretrained weights
        raise ValueError(f"model is {model!r}: {error}") from None
    if width is not None:
        sized = [f"resnet{depth}" for depth in BLOCKS]
        if model not in sized:
            raise ValueError(f"width is {width}, and the model is {model}; only {' and '.join(sized)} come in any width")
        if width < 1:
            raise ValueError(f"width must be at least 1 (got {width})")
        if model_args:
            raise ValueError(f"width is {width}, and model_args is given too; choose one")
    if model_args is not None and not isinstance(model_args, Mapping):
        raise ValueError(f"model_args must be names and values (got {model_args!r})")
    taken = sorted(OURS & set(model_args or {}))
    if taken:
        raise ValueError(f"model_args has {taken[0]}, which is not for it to say; it takes what else {model} of timm takes")


def head_of(network: nn.Module) -> nn.Linear:
    """The dense layer that classifies.

    Raises:
        ValueError: the network, unlike timm's, does not say which it is, or it is no dense layer.
    """
    classifier = getattr(network, "get_classifier", None)
    head = classifier() if callable(classifier) else None
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{type(network).__name__} has no dense head (get_classifier() gives {type(head).__name__})")
    return head


def head_inside(module: nn.Module, cure: str = "name it") -> nn.Linear:
    """The head of the network in the module that says which it is, as those of timm do; of several, of the first whose head is trained.

    Where none does, as in torchvision, it is the last dense layer that is called as heads are: `fc`, `head`, `classifier` or the like.

    Args:
        cure: how a caller can be told which it is, for the error.

    Raises:
        ValueError: there is none.
    """
    saying = [m for m in module.modules() if callable(getattr(m, "get_classifier", None))]
    found: list[nn.Linear] = []
    for network in saying:
        with suppress(ValueError):
            found.append(head_of(network))
    if found:
        return next((head for head in found if any(p.requires_grad for p in head.parameters())), found[0])
    dense = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    place = called_head([name for name, _ in dense])
    if saying:
        kind = type(saying[0].get_classifier()).__name__  # type: ignore[operator]
        raise ValueError(f"{type(module).__name__} has no dense head: it says that its head is of {kind}, which is no dense layer")
    if not dense:
        raise ValueError(f"{type(module).__name__} has no dense layer, and so no dense head")
    if place is None:
        raise ValueError(f"{type(module).__name__} has no dense head that says so, or is called so: {cure}")
    return dense[place][1]


def head_names(network: nn.Module) -> tuple[str, ...]:
    """The names of the head's parameters in the network."""
    of_head = {id(p) for p in head_of(network).parameters()}
    return tuple(name for name, p in network.named_parameters() if id(p) in of_head)


def draw_head(network: nn.Module, seed: int) -> None:
    """Draws the head afresh, from `seed` alone.

    Weights are uniform in +-1/sqrt(fan_in) and biases zero: the scale that torch's linear layers start with.
    """
    head = head_of(network)
    bound = head.in_features**-0.5
    with torch.no_grad():
        drawn = torch.empty(head.weight.shape, dtype=head.weight.dtype)  # on CPU, as in `initialize`
        head.weight.copy_(drawn.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed)))
        if head.bias is not None:
            head.bias.zero_()


def replace_head(network: nn.Module, num_classes: int, seed: int) -> None:
    """Gives `network` a fresh head for `num_classes` classes, drawn from `seed` alone."""
    network.reset_classifier(num_classes)  # type: ignore[operator]
    draw_head(network, seed)


def initialize(network: nn.Module, seed: int, make: Callable[[], nn.Module] | None = None) -> None:
    """Draws all weights afresh, from `seed` alone, as the paper's randomly initialized networks (Klambauer et al. 2017).

    Weights of convolutions and dense layers are normal with variance 1 / fan_in, their biases zero; normalizations start as the identity.
    What else has parameters of its own (class tokens, embeddings of positions, layer scales) starts as in a network made anew.

    Args:
        make: makes such a network, by torch's generators.

    Raises:
        ValueError: something else has parameters, and there is no `make`.
    """
    others: list[str] = []
    generator = torch.Generator().manual_seed(seed)
    for name, module in network.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            with torch.no_grad():
                drawn = torch.randn(module.weight.shape, generator=generator)  # on CPU, and in one order whatever the memory format
                module.weight.copy_(drawn / math.sqrt(module.weight[0].numel()))
                if module.bias is not None:
                    module.bias.zero_()
        elif isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            if make is None:
                what = f"{name or 'the network'} is a {type(module).__name__}"
                raise ValueError(f"{what}, and how to initialize one is not known here; give weights instead")
            others += [f"{name}.{own}".removeprefix(".") for own, _ in module.named_parameters(recurse=False)]
    if make is not None and others:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            fresh = make()
            for name in others:
                network.get_parameter(name).copy_(fresh.get_parameter(name))
