"""A head in closed form, from the features that the pretrained network gives to the images of the run: ridge regression on the classes.

With centred features z, (N, F), and one-hot labels Y, (N, C),

    W = s (Z'Z + r mean(diag(Z'Z)) I)^-1 Z'(Y - mean Y),    b = -W mean(features)

How strong the ridge r is, is decided on held-out images. The scale s leaves the images a loss, from which the rest of the network learns: a
head that interpolates them has no gradient. Where classes come unevenly, the logs of their shares are added to b.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from l3rs.networks.create import head_inside
from l3rs.networks.head_choice import HeadStartConfig, HeadStartReport, choose
from l3rs.networks.head_features import afresh, generators, of_the_first, see, untouched

HEAD_BATCHES = 100  # [choice]


def head_start(
    network: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    limit: int | None = HEAD_BATCHES,
    *,
    head: nn.Linear | None = None,
    config: HeadStartConfig | None = None,
) -> HeadStartReport:
    """Gives the network a head in closed form, fitted to its features of these batches, in one forward pass over them.

    BatchNorm normalizes by the batch, as it will in training, unless it alone is in evaluation mode; dropout is off. Nothing but the head
    changes: neither running statistics nor modes, gradients or the state of random generators. Also the batches are drawn within, so that
    a loader which shuffles by torch's global generator, or by its own, gives the same ones to the run that follows. Call it under
    `torch.autocast` for a forward pass in mixed precision. Where processes are joined by `torch.distributed`, it is called on all, and all
    get the same head, of all images.

    Args:
        network: with a dense head, on any device.
        batches: those that the run begins with: inputs, (B, ...), labels, whole numbers (B,) from 0, and, if known, the numbers of the
            images, (B,); on any device, the inputs go to the head's. An image counts once, however often it comes; without numbers, those
            whose inputs are equal are the same. An image whose features are not finite does not count, nor do those that BatchNorm mixes
            with it.
        limit: use at most this many batches, the first ones; None uses all.
        head: its head; None asks the network, see `l3rs.networks.create.head_inside`.
        config: how the head is chosen.

    Returns:
        What was seen and chosen. Where no image or only one class was seen the head stays as it is.

    Raises:
        TypeError: `network` is no module.
        ValueError: the head is not dense or is frozen, its weights are made of other tensors, or it sees something else than (B, F)
            features; a batch is not (inputs, labels), a label is none of the head's classes, or one image's number has two labels; there
            are no batches, or `limit` is below 1; where `head` is None, the network gives other logits than the layer that was taken.
    """
    config = config or HeadStartConfig()
    if not isinstance(network, nn.Module):
        raise TypeError(f"head_start takes the network, and then the batches (got a {type(network).__name__} in the network's place)")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a whole number of batches, at least 1 (got {limit})")
    found_here = head is None
    head = head_inside(network, "give it, head_start(network, batches, head=...)") if head is None else head
    own = isinstance(head, nn.Linear) and head._parameters.get("weight") is not None  # it is not where weight_norm makes it
    if not own or parametrize.is_parametrized(head):
        raise ValueError(f"the head must be a dense layer with weights of its own (got {type(head).__name__})")
    if not all(p.requires_grad for p in head.parameters()):
        raise ValueError(
            "the head is frozen, or a part of it, and a head start would replace it: thaw it, head.requires_grad_(True), or leave it out"
        )
    if any(hasattr(p, "to_local") for p in network.parameters()):
        raise ValueError("a head start is for whole parameters, and these are sharded: call it before fully_shard")
    with torch.no_grad(), untouched(network, head, generators(batches)):
        seen = see(network, islice(afresh(batches), limit), head, config, found_here)
        weight, bias, found = choose(seen, head, config)
        if found.kind != "random":
            head.weight.copy_(of_the_first(weight))
            if head.bias is not None:
                head.bias.copy_(of_the_first(bias))
    return found


__all__ = ["HEAD_BATCHES", "HeadStartConfig", "HeadStartReport", "head_start"]
