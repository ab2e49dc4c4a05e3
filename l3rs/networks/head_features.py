"""What a head start looks at: the features that the network gives to each image of the batches, once, on all processes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader

from l3rs.networks.batch_norms import batch_norms
from l3rs.networks.head_choice import HeadStartConfig, Seen
from l3rs.networks.ridge import Moments

MOST = 0.9  # of images, whose likeliest class is the same in another form of the same logits, such as rounded probabilities


def generators(loader: Any) -> list[torch.Generator]:
    """A loader's own, and its samplers'. Those of a generator expression over a loader are out of sight."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = {id(o): o for o in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))}.values()
    return [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]


def afresh(loader: Any) -> Any:
    """The loader, without the iterator that persistent workers keep: it has drawn what the run that follows is to draw."""
    if isinstance(loader, DataLoader):
        loader = copy(loader)
        loader._iterator = None
    return loader


@contextmanager
def untouched(network: nn.Module, head: nn.Linear, drawing: Sequence[torch.Generator]) -> Iterator[None]:
    """Puts the network in the mode of a head start, and gives everything back as it was, random states too."""
    modes = [(module, module.training) for module in network.modules()]
    norms = [norm for norm in batch_norms(network) if norm.training or not network.training]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    devices = [head.weight.device] if head.weight.device.type == "cuda" else []
    states = [g.get_state() for g in drawing]
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (what augmentations draw from)
    try:
        with torch.random.fork_rng(devices):
            for module, _ in modes:  # not by `eval`, which does more in some, such as merging an adapter
                module.training = False
            for norm in norms:
                norm.training = True
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, value in kept:
            buffer.copy_(value)
        for generator, state in zip(drawing, states, strict=True):
            generator.set_state(state)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def see(network: nn.Module, batches: Iterable[Sequence[Tensor]], head: nn.Linear, config: HeadStartConfig, found: bool) -> Seen:
    """Takes the features of all images, each once. Where the head was `found`, and not given, it must give what the network does."""
    device = head.weight.device
    where = device if device.type in ("cpu", "cuda") else torch.device("cpu")  # float64 is not everywhere
    caught: list[Tensor] = []
    given: list[Tensor] = []
    hooks = [
        head.register_forward_pre_hook(lambda _, args, named: caught.append(args[0] if args else named["input"]), with_kwargs=True),
        head.register_forward_hook(lambda _, args, logits: given.append(logits)),
    ]
    known: dict[int | bytes, int] = {}
    came = torch.zeros(head.out_features, dtype=torch.float64)
    rank, world = _processes()
    arrived = torch.arange(head.out_features) + rank  # staggers the folds of classes with few images
    sums: Moments | None = None
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    room, any_batch = config.keep_mib * 2**20 / (4 * head.in_features) / world, False
    try:
        for batch in batches:
            any_batch = True
            inputs, labels, *numbers = _parts(batch)
            labels = _checked(inputs, labels, head)
            came += torch.bincount(labels.cpu(), minlength=head.out_features)
            new = _new(known, inputs, labels, numbers)
            if not new:
                continue
            caught.clear()
            given.clear()
            output = network(inputs.to(device, non_blocking=True))
            if found:
                _check_output(network, head, output, given)
            x = _features(caught, inputs, head)[new].to(where).float()
            of = labels.to("cpu")[new]
            finite = x.isfinite().all(1).cpu()
            x, of = x[finite.to(where)], of[finite]
            folds = torch.empty_like(of)
            for i, label in enumerate(of.tolist()):
                folds[i] = arrived[label] % config.folds
                arrived[label] += 1
            part = (x, of.to(where), folds.to(where))
            if room > 0:
                kept.append(part)
                room -= len(x)
            else:
                sums = sums or Moments.zeros(config.folds, head.out_features, head.in_features, where)
                sums.add(*part)
    finally:
        for hook in hooks:
            hook.remove()
    if not any_batch:
        raise ValueError("a head start needs at least one batch (got none)")
    if not kept:
        nothing = torch.zeros(0, dtype=torch.int64, device=where)
        kept = [(torch.zeros(0, head.in_features, device=where), nothing, nothing)]
    came = came.to(where)
    x, of, folds = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if world == 1:
        return Seen(sums, x, of, folds, came)
    if _sum(torch.tensor([float(sums is not None)], device=where)).item():
        sums = sums or Moments.zeros(config.folds, head.out_features, head.in_features, where)
        sums = Moments(*(_sum(t) for t in (sums.counts, sums.sums, sums.squares)))
    x, of, folds = (_gathered(t, rank, world) for t in (x, of, folds))
    return Seen(sums, x, of, folds, _sum(came))


def _parts(batch: Any) -> Sequence[Tensor]:
    """Inputs, labels and, if known, numbers. Raises ValueError where a batch is something else, such as a mapping."""
    if isinstance(batch, Mapping):
        got = f"a {type(batch).__name__} of {', '.join(map(str, batch))}"
        raise ValueError(f"a batch must be (inputs, labels), tensors (got {got}); of mappings: ((b[INPUTS], b[LABELS]) for b in loader)")
    parts = () if isinstance(batch, Tensor) else tuple(batch)
    if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts[:2]):
        raise ValueError(f"a batch must be (inputs, labels), tensors (got {_said(batch)})")
    return parts


def _checked(inputs: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    """The labels as int64. Raises ValueError if they are none."""
    if labels.shape != inputs.shape[:1] or not _whole_numbers(labels):
        mixed = "; a head start is for images that are not mixed yet" if labels.ndim == 2 and labels.is_floating_point() else ""
        got = f"{tuple(labels.shape)}, {labels.dtype}, of {len(inputs)} images"
        raise ValueError(f"labels must be whole numbers, one an image (got {got}){mixed}")
    wrong = labels[(labels < 0) | (labels >= head.out_features)]
    if len(wrong):
        raise ValueError(f"labels must be from 0 to {head.out_features - 1}, the classes of the head (got {wrong[0].item()})")
    return labels.long()


def _whole_numbers(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)


def _new(known: dict[int | bytes, int], inputs: Tensor, labels: Tensor, numbers: Sequence[Tensor]) -> list[int]:
    """The places of images that did not come before, which are known from now on, with their labels."""
    keys: list[int | bytes]
    if numbers:
        if not (isinstance(numbers[0], Tensor) and numbers[0].shape == inputs.shape[:1] and _whole_numbers(numbers[0])):
            raise ValueError(
                "the third part of a batch is the number of each image, whole numbers (B,); where it is something else, give "
                f"(inputs, labels) alone (got {_said(numbers[0])})"
            )
        keys = numbers[0].tolist()
    else:
        whole = inputs.detach().float().cpu().contiguous().numpy()
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in whole]
    new = []
    for i, (key, label) in enumerate(zip(keys, labels.tolist(), strict=True)):
        if key not in known:
            new.append(i)
        elif numbers and known[key] != label:
            raise ValueError(
                f"the third part of a batch is the number of each image, and number {key!r} has labels {known[key]} and {label}; where "
                "it is something else, give (inputs, labels) alone"
            )
        known[key] = label
    return new


def _check_output(network: nn.Module, head: nn.Linear, output: Any, given: Sequence[Tensor]) -> None:
    """Raises ValueError where the network's logits, if they can be told, are not those of the head, or another form of them."""
    logits = getattr(output, "logits", output["logits"] if isinstance(output, Mapping) and "logits" in output else output)
    if len(given) != 1 or not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(given[0]):
        return
    finite = logits.isfinite().all(1)
    if logits.shape == given[0].shape:  # rounding ties the largest ones, and never swaps two
        likeliest = given[0].argmax(1, keepdim=True)
        agree = (logits.gather(1, likeliest) == logits.amax(1, keepdim=True))[finite].float().mean().item()
    else:
        agree = 0.0
    if finite.any() and agree < MOST:
        name = next(name for name, module in network.named_modules() if module is head)
        raise ValueError(
            f"{name} was taken for the head, and {type(network).__name__} gives other logits, {tuple(logits.shape)}, than it does, "
            f"{tuple(given[0].shape)}: name the layer that gives them, or this one, head=..."
        )


def _said(value: Any) -> str:
    return f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _features(caught: list[Tensor], inputs: Tensor, head: nn.Linear) -> Tensor:
    """What the head was given, once."""
    shapes = [tuple(x.shape) for x in caught]
    if shapes != [(len(inputs), head.in_features)]:
        raise ValueError(f"the head must see features of {(len(inputs), head.in_features)}, an image a row, once (got {shapes})")
    return caught[0]


# -- processes -------------------------------------------------------------------------------------------------------------------------


def _processes() -> tuple[int, int]:
    """This one's rank, and how many there are."""
    there = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if there else (0, 1)


def _sum(t: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    dist.all_reduce(t)
    return t


def _gathered(t: Tensor, rank: int, world: int) -> Tensor:
    """The rows of all processes, one process after the other: as a sum, which every backend has."""
    lengths = torch.zeros(world, dtype=torch.int64, device=t.device)
    lengths[rank] = len(t)
    ends = _sum(lengths).cumsum(0).tolist()
    whole = t.new_zeros(ends[-1], *t.shape[1:])
    whole[ends[rank] - len(t) : ends[rank]] = t
    return _sum(whole)


def of_the_first(t: Tensor) -> Tensor:
    """That of the first process: others might round otherwise."""
    if _processes()[1] > 1:
        t = t.contiguous()
        dist.broadcast(t, 0)
    return t
