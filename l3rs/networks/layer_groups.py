"""The layers of a network by depth and kind, for tables and pictures."""

from __future__ import annotations

import pandas as pd
from torch import nn

from l3rs.networks.create import head_inside


def layer_groups(module: nn.Module) -> pd.DataFrame:
    """The group of each layer, a parameter tensor: its `depth` and its `kind`, indexed by its name in the module.

    The depth is the stage or the block that the layer is in, the first numbered one on the way to it, such as `layer3` or `blocks.7`;
    `stem` before all of these, `end` behind, `head` for the dense layer that classifies. The kinds are `convolution`, `dense`, `scale`
    and `shift` (of normalizations; biases of other layers are shifts, too), `head`, and `other`.
    """
    modules = dict(module.named_modules())
    names = [name for name, _ in module.named_parameters()]
    head = {id(p) for p in _head_or_last(module).parameters()}
    common = _common_prefix(names)
    found: dict[str, tuple[str, str]] = {}
    depth = "stem"
    for name, p in module.named_parameters():
        owner = modules[name.rpartition(".")[0]]
        stage = _stage(name, common, modules)
        depth = stage or ("stem" if depth == "stem" else "end")
        if id(p) in head:
            found[name] = ("head", "head")
        elif name.endswith("bias"):
            found[name] = (depth, "shift")
        elif isinstance(owner, nn.modules.conv._ConvNd):
            found[name] = (depth, "convolution")
        elif isinstance(owner, nn.Linear):
            found[name] = (depth, "dense")
        else:
            found[name] = (depth, "scale" if p.ndim == 1 and name.endswith("weight") else "other")
    return pd.DataFrame.from_dict(found, orient="index", columns=["depth", "kind"]).rename_axis("layer")


def _stage(name: str, common: int, modules: dict[str, nn.Module]) -> str | None:
    """What precedes the first number on the way to a layer, and that number; numbers of single layers such as `conv1` do not count."""
    parts = name.split(".")
    for i in range(common, len(parts) - 1):
        path = ".".join(parts[: i + 1])
        if parts[i].isdigit() or (parts[i][-1].isdigit() and isinstance(modules[path], (nn.Sequential, nn.ModuleList))):
            return ".".join(parts[common : i + 1])
    return None


def _common_prefix(names: list[str]) -> int:
    """How many modules stand before all names."""
    common = 0
    while all(name.count(".") > common for name in names) and len({name.split(".")[common] for name in names}) == 1:
        common += 1
    return common


def _head_or_last(module: nn.Module) -> nn.Module:
    """The head, or else the last dense layer."""
    try:
        return head_inside(module)
    except ValueError:
        dense = [m for m in module.modules() if isinstance(m, nn.Linear)]
        return dense[-1] if dense else nn.Identity()
