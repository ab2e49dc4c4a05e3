"""What L3RS warns of when it is made: a schedule, or layers, that are probably not what was meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from l3rs.controller.describe import LayerTable, is_a_head
from l3rs.optimizer.distributed import local
from l3rs.optimizer.layers import Network
from l3rs.optimizer.states import Group, names_of
from l3rs.schedules.find import SPECIALISTS, load
from l3rs.schedules.schedule import LearnedSchedule

# Kinds of layers that are their own size, see `l3rs.controller.describe`; a bias has that of its matrix, a shift that of its scale.
SELF_SIZED = ("kernel", "depthwise", "dense", "attention", "other", "embedding", "scale")


def tell_what_names_would_give(learned: LearnedSchedule, params: Sequence[Tensor]) -> None:
    """Warns if a specialist may have been missed: only names tell which network it is."""
    for name in SPECIALISTS:
        if len(load(name).layers) == len(params):
            warnings.warn(
                f"L3RS takes {learned.name} for {len(params)} parameters without names; {name} knows {len(params)} layers by name: "
                "if this is its network, pass model.named_parameters()",
                stacklevel=3,
            )


def tell_what_would_hardly_move(learned: LearnedSchedule, network: Network, groups: Sequence[Group], params: Sequence[Tensor]) -> None:
    """Warns of layers of zeros among `params`, as adapters and gates have them, where a step is a share of a layer's size.

    So a bias is, whose matrix is not known: where there are no names, and groups part biases from matrices.
    """
    if learned.config.unit not in ("size", "relative"):
        return
    kinds, sized_by = network.table.kinds, network.table.sized_by
    of_norms = {by for place, by in enumerate(sized_by) if by != place and kinds[by] == "scale"}  # they may be zeros, from random weights
    asked = [
        p
        for p in params
        if kinds[(place := network.place[p])] in SELF_SIZED
        and place not in of_norms
        and p.requires_grad
        and p.numel()
        and local(p) is p
        and not p.is_meta
    ]
    zeros: set[Tensor] = set()
    for device in dict.fromkeys(p.device for p in asked):
        here = [p for p in asked if p.device == device]
        norms = torch.stack([norm.float() for norm in torch._foreach_norm([p.detach() for p in here])]).tolist()
        zeros |= {p for p, norm in zip(here, norms, strict=True) if norm == 0}
    if zeros:
        every = [p for group in groups for p in group["params"]]
        named = names_of(groups)
        names = named or [f"parameter {i}" for i in range(len(every))]
        first = next(name for name, p in zip(names, every, strict=True) if p in zeros)
        more = f", as are {len(zeros) - 1} more" if len(zeros) > 1 else ""
        cure = "begin with small random numbers, or give it to another optimizer"
        if not named and all(p.ndim <= 1 for p in zeros):
            cure = "give named_parameters(), by which a bias is known as its matrix's"
        warnings.warn(
            f"{first} is all zeros{more}: L3RS moves a layer by a share of its size, so it will hardly move; {cure}", stacklevel=3
        )


def tell_of_several_heads(table: LayerTable, shapes: Sequence[torch.Size], names: Sequence[str] | None) -> None:
    """Warns if another layer may give logits beside the head, as in distilled networks, whose two heads are averaged."""
    place = table.head[0]
    if not names or place is None:
        return
    mine, own = names[place].rpartition(".")[0], shapes[place]
    others = [
        module
        for i, (kind, shape, name) in enumerate(zip(table.kinds, shapes, names, strict=True))
        if i != place and kind == "dense" and shape[0] == own[0] and (module := name.rpartition(".")[0]) and is_a_head(module, mine)
    ]
    if others:
        warnings.warn(
            f"{mine} and {others[-1]} both look like heads, and L3RS takes {mine} for the head: the other moves as layers of the body do, "
            'which is slow for a new one. Use a network with one head, or say which it is, head="..."',
            stacklevel=3,
        )


def tell_of_no_head(table: LayerTable, names: Sequence[str] | None) -> None:
    """Warns if the last matrix was not taken for the head, as it is a part of one of several blocks: it may be, after all."""
    last = max((i for i, fan_in in enumerate(table.fan_in) if fan_in > 1), default=None)
    if names and table.head[0] is None and last is not None and table.kinds[last] == "dense":
        module = names[last].rpartition(".")[0]
        warnings.warn(
            f"L3RS takes no layer for the head: {module}, the last one, has the form of a part of several blocks. Name the layer that "
            f'gives the logits, such as head="{module}", or head="" if it is not among these parameters',
            stacklevel=3,
        )
