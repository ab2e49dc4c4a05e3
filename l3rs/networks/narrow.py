"""Narrow networks of families that timm's `create_model` makes in their published widths only, registered with timm under `narrow_...`.

Other narrow networks need no code: `model_args` gives timm's `create_model` their widths and depths.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from timm.models.vgg import VGG
from torch import nn


def _plain(args: dict[str, Any]) -> dict[str, Any]:
    """Without what timm hands to every network and a class does not take."""
    return {k: v for k, v in args.items() if not k.startswith("pretrained") and k != "cache_dir"}


@register_model  # type: ignore[untyped-decorator]
def narrow_mixer(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """MLP-Mixer (Tolstikhin et al. 2021) of any size: `img_size`, `patch_size`, `embed_dim`, `num_blocks`, ..."""
    return MlpMixer(**_plain(kwargs))


@register_model  # type: ignore[untyped-decorator]
def narrow_resmlp(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """ResMLP (Touvron et al. 2021), with affine layers and layer scale, of any size."""
    return MlpMixer(mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine, **_plain(kwargs))


@register_model  # type: ignore[untyped-decorator]
def narrow_vgg11_bn(pretrained: bool = False, width: int = 16, **kwargs: Any) -> VGG:
    """VGG-11 with BatchNorm (Simonyan and Zisserman 2015) whose first stage has `width` channels, and its head `8 * width` hidden ones."""
    stages = [width, "M", 2 * width, "M", 4 * width, 4 * width, "M", 8 * width, 8 * width, "M", 8 * width, 8 * width, "M"]
    # timm's head has 4096 features, of which `mlp_ratio` says how many are hidden between its two convolutions.
    return VGG(stages, mlp_ratio=8 * width / 4096, norm_layer=nn.BatchNorm2d, **_plain(kwargs))
