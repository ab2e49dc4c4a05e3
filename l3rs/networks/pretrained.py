"""Pretrained networks: their weights shipped, from a file, or timm's own from the Hub. Nothing but tensors is unpickled."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import timm
import torch
from safetensors import safe_open
from timm.models.resnet import ResNet
from torch import Tensor, nn

from l3rs.networks.create import head_names, replace_head, resnet34
from l3rs.schedules.connection import guarded_session, reachable, reason, usable, within
from l3rs.schedules.seal import CheckpointError
from l3rs.text import first_line

SHIPPED = ("icons", "glyphs")  # ResNet-34 at width 16, pretrained on the pretraining classes of these sets
SECONDS = 1800.0  # of a download: the weights of a large network are a gigabyte


class WeightsError(ValueError):
    """Weights that cannot be had, read, or put into a network; the message says which, why, and what can be done."""


def shipped_weights(name: str = "icons") -> dict[str, Tensor]:
    """ResNet-34 at width 16, pretrained on the pretraining classes of an embedded set by `pretrain/backbone.py`: float32 tensors."""
    return read_weights(Path(__file__).parent / "weights" / f"resnet34-w16-{name}.safetensors")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict that torch saved; floating ones in float32.

    Raises:
        WeightsError: there is no such file, or it is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"the weights {path} are not a file; give a safetensors file, or one of {', '.join(SHIPPED)}")
    try:
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        else:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    unpacked = sum(entry.file_size for entry in packed.infolist())
                if unpacked > size:  # torch packs without compression, and unpacks whatever there is
                    raise ValueError(f"it unpacks to {unpacked:,} bytes, and has {size:,}")
            state = torch.load(path, map_location="cpu", weights_only=True)
            tensors = state.get("state_dict", state)
        return _float32(tensors, size)
    except Exception as error:  # torch's unpickler stumbles over garbage in many ways: IndexError, KeyError, struct.error
        why = "neither torch nor safetensors wrote it" if isinstance(error, LookupError | struct.error) else first_line(error)
        raise WeightsError(f"{path} holds no weights that can be read: {why}") from None


def _float32(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """The tensors of a file of `size` bytes, which may be views of one another, but four times as large at most."""
    strange = [name for name, t in tensors.items() if not _is_plain(t)]
    if strange:
        raise ValueError(f"{strange[0]!r} is no tensor of numbers in memory")
    claimed = sum(t.numel() * t.element_size() for t in tensors.values())
    if claimed > 4 * size:
        raise ValueError(f"its tensors take {claimed:,} bytes, and it has {size:,}")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _is_plain(t: object) -> bool:
    return isinstance(t, Tensor) and t.layout is torch.strided and t.device.type == "cpu" and not t.is_quantized and not t.is_complex()


def put_into(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads all of `weights` but the head's, whose classes are others.

    Raises:
        WeightsError: a tensor is missing, left over, or of another shape; the message names the first.
    """
    head = set(head_names(network))
    own = {name: t for name, t in network.state_dict().items() if name not in head}
    given = {name: t for name, t in weights.items() if name not in head}
    wrong = next((n for n in [*own, *given] if n not in own or n not in given or own[n].shape != given[n].shape), None)
    if wrong is not None:
        has, wants = (tuple(d[wrong].shape) if wrong in d else "no such tensor" for d in (given, own))
        raise WeightsError(f"{source} are of another network: for {wrong} they have {has}, and the network {wants}")
    network.load_state_dict(given, strict=False)


def from_hub(
    model: str, in_chans: int, num_classes: int, instead: str = "give --weights FILE, or --from-scratch", img_size: int | None = None
) -> nn.Module:
    """A model with timm's pretrained weights and a fresh head, from the Hub or from its cache on this machine.

    Args:
        instead: what to do where there are none, for messages.
        img_size: pixels a side, for vision transformers, which are made for one size; None is timm's own.

    Raises:
        WeightsError: timm has no pretrained weights for it, or they can be had neither there nor here.
    """
    if not (timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()).has_weights:
        raise WeightsError(f"timm has no pretrained weights for {model}; {instead}")
    what, device = f"the pretrained weights of {model}", torch.get_default_device()  # a thread has its own

    def make() -> nn.Module:
        guarded_session()
        token = None if huggingface_hub.constants.HF_HUB_OFFLINE else usable(None)
        try:
            with torch.device(device):
                size = {} if img_size is None else {"img_size": img_size}
                network: nn.Module = timm.create_model(model, pretrained=True, in_chans=in_chans, num_classes=num_classes, **size)
        except Exception as error:  # of timm, of huggingface_hub, or of its HTTP library
            raise WeightsError(f"{what} cannot be had from the Hub ({reason(error, token)}); {instead}") from None
        return network

    try:
        with _offline_unless_reachable():
            return within(SECONDS, f"the download of {what}", make)
    except CheckpointError as error:
        raise WeightsError(f"{error}; or {instead}") from None


@contextmanager
def _offline_unless_reachable() -> Iterator[None]:
    """Lets the Hub's client look at its cache alone where nothing answers; else it tries again for most of a minute first."""
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def pretrained(num_classes: int, head_seed: int = 0, weights: str | Path = "icons") -> ResNet:
    """ResNet-34 at width 16, for grey images, with a fresh head for `num_classes` classes.

    Args:
        head_seed: draws the head.
        weights: `icons`, `glyphs`, which are shipped, or a file with weights of such a network; its head may have other classes.

    Raises:
        WeightsError: they cannot be read, or are of another network.
    """
    network = resnet34(width=16, in_chans=1, num_classes=num_classes)
    load(network, weights)
    replace_head(network, num_classes, head_seed)
    return network


def load(network: nn.Module, weights: str | Path) -> None:
    """Puts shipped weights, by name, or those of a file into `network`, all but the head's. Raises `WeightsError`."""
    if weights in SHIPPED:
        put_into(network, shipped_weights(str(weights)), f"the shipped weights {weights}")
    else:
        put_into(network, read_weights(weights), f"the weights of {weights}")
