"""A head in closed form, from the features that the pretrained network gives to the images of the run: ridge regression on the classes.

With centred features z, (N, F), and one-hot labels Y, (N, C),

    W = s (Z'Z + r mean(diag(Z'Z)) I)^-1 Z'(Y - mean Y),    b = -W mean(features)

How strong the ridge r is, is decided on held-out images. The scale s leaves the images a loss, from which the rest of the network learns: a
head that interpolates them has no gradient. Where classes come unevenly, the logs of their shares are added to b.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import parametrize

from l3rs.networks.batch_norms import batch_norms
from l3rs.networks.create import head_inside
from l3rs.networks.ridge import Judged, Moments, judge, losses_at, narrow

HEAD_BATCHES = 100  # [choice]
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SCALES = tuple(0.5 * 1.2**i for i in range(24))  # to 33
MOST = 0.9  # of images, whose likeliest class is the same in another form of the same logits, such as rounded probabilities
TINY = 1e-6  # of the features' size: a spread below is rounding


@dataclass(frozen=True)
class HeadStartConfig:
    """How the head is chosen [choice: all of it].

    Attributes:
        ridges: strengths r to choose from: the strongest whose held-out loss, each at its best scale, is within a standard error of the
            best loss; images of the run itself are too trusting a judge, as those that are yet to come are others.
        scales: scales s to choose from: the first at which the loss of the images themselves is down to that of held-out images, or to
            `left`, if that is less.
        left: a share of the loss of a head without any knowledge, the entropy of the classes.
        careful: that share where held-out images are told no better than by chance.
        sure: standard errors by which their accuracy must exceed the share of the largest class, to be better than chance.
        uneven: classes are uneven where the entropy of their shares in the batches is below this part of that of even ones. The head then
            begins with these shares, and is better than chance where its held-out loss is below that of the shares alone by `sure` standard
            errors.
        folds: of the images; each is judged by heads that are fitted on the others.
        keep_mib: memory for features. Where they are more, the sums are of all images, and the first ones are kept to judge by.
    """

    ridges: tuple[float, ...] = RIDGES
    scales: tuple[float, ...] = SCALES
    left: float = 0.5
    careful: float = 0.9
    sure: float = 2.0
    uneven: float = 0.8
    folds: int = 5
    keep_mib: float = 64.0

    def __post_init__(self) -> None:
        for name in ("ridges", "scales"):
            values = getattr(self, name)
            if not values or not all(0 < v < math.inf for v in values) or list(values) != sorted(values):
                raise ValueError(f"{name} must be one or more positive numbers, the smallest first (got {list(values)})")
        if not 0 <= self.sure < math.inf:
            raise ValueError(f"sure must be finite and at least 0 (got {self.sure})")
        for name in ("left", "careful", "uneven"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1 (got {getattr(self, name)})")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2 (got {self.folds})")
        if not 0 < self.keep_mib < math.inf:
            raise ValueError(f"keep_mib must be positive and finite (got {self.keep_mib})")


@dataclass(frozen=True)
class HeadStartReport:
    """What a head start saw and chose.

    Attributes:
        kind: `fitted`; `careful`, where held-out images are told no better than by chance: the same directions, small; or `random`, where
            the images teach nothing and the head stayed as it was.
        ridge, scale: r and s; NaN for `random`.
        accuracy, loss: on held-out images, of the fitted heads at this strength and scale; NaN where none could be judged.
        images: that were counted, each once; of all processes.
        feature_norm: the mean norm of the centred features.
    """

    kind: str
    ridge: float
    scale: float
    accuracy: float
    loss: float
    images: int
    feature_norm: float

    def __str__(self) -> str:
        if self.kind == "random":
            return f"head start: none, {self.images} images teach nothing; the head stays as it was"
        judged = "not judged" if math.isnan(self.accuracy) else f"{100 * self.accuracy:.0f}% right on held-out ones"
        small = ", so a small head" if self.kind == "careful" else ""
        return f"head start: from {self.images} images, {judged}{small} (ridge {self.ridge:g}, scale {self.scale:g})"


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
        limit: so many batches, the first ones, are the most that are looked at; None looks at all.
        head: its head; None asks the network, see `l3rs.networks.create.head_inside`.
        config: how the head is chosen.

    Returns:
        What was seen and chosen. Where no image or only one class was seen the head stays as it is.

    Raises:
        ValueError: the head is not dense, its weights are made of other tensors, or it sees something else than (B, F) features; a batch is
            not (inputs, labels), a label is none of the head's classes, or one image's number has two labels; there are no batches, or
            `limit` is below 1; where `head` is None, the network gives other logits than the layer that was taken for it.
    """
    config = config or HeadStartConfig()
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a whole number of batches, at least 1 (got {limit})")
    found_here = head is None
    head = head_inside(network, "give it, head_start(network, batches, head=...)") if head is None else head
    own = isinstance(head, nn.Linear) and head._parameters.get("weight") is not None  # it is not where weight_norm makes it
    if not own or parametrize.is_parametrized(head):
        raise ValueError(f"the head must be a dense layer with weights of its own (got {type(head).__name__})")
    if any(hasattr(p, "to_local") for p in network.parameters()):
        raise ValueError("a head start is for whole parameters, and these are sharded: call it before fully_shard")
    with torch.no_grad(), _untouched(network, head, _generators(batches)):
        seen = _see(network, islice(batches, limit), head, config, found_here)
        weight, bias, found = _choose(seen, head, config)
        if found.kind != "random":
            head.weight.copy_(_of_the_first(weight))
            if head.bias is not None:
                head.bias.copy_(_of_the_first(bias))
    return found


class _Seen(NamedTuple):
    """Sums over the images, where they were more than is kept; features, labels and folds of those that are kept; and how often each class
    came, with repetitions."""

    sums: Moments | None
    x: Tensor
    labels: Tensor
    folds: Tensor
    came: Tensor


def _generators(loader: Any) -> list[torch.Generator]:
    """A loader's own, and its samplers'. Those of a generator expression over a loader are out of sight."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = {id(o): o for o in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))}.values()
    return [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]


@contextmanager
def _untouched(network: nn.Module, head: nn.Linear, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Puts the network in the mode of a head start, and gives everything back as it was, random states too."""
    modes = [(module, module.training) for module in network.modules()]
    norms = [norm for norm in batch_norms(network) if norm.training or not network.training]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    devices = [head.weight.device] if head.weight.device.type == "cuda" else []
    states = [g.get_state() for g in generators]
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
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def _see(network: nn.Module, batches: Iterable[Sequence[Tensor]], head: nn.Linear, config: HeadStartConfig, found: bool) -> _Seen:
    """Takes the features of all images, each once. Where the head was `found`, and not given, it must give what the network does."""
    device = head.weight.device
    where = device if device.type in ("cpu", "cuda") else torch.device("cpu")  # float64 is not everywhere
    caught: list[Tensor] = []
    given: list[Tensor] = []
    hooks = [
        head.register_forward_pre_hook(lambda _, args: caught.append(args[0])),
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
        return _Seen(sums, x, of, folds, came)
    if _sum(torch.tensor([float(sums is not None)], device=where)).item():
        sums = sums or Moments.zeros(config.folds, head.out_features, head.in_features, where)
        sums = Moments(*(_sum(t) for t in (sums.counts, sums.sums, sums.squares)))
    x, of, folds = (_gathered(t, rank, world) for t in (x, of, folds))
    return _Seen(sums, x, of, folds, _sum(came))


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
        raise ValueError(f"labels must be whole numbers, one an image (got {tuple(labels.shape)}, {labels.dtype}, of {len(inputs)} images)")
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


def _choose(seen: _Seen, head: nn.Linear, config: HeadStartConfig) -> tuple[Tensor, Tensor, HeadStartReport]:
    """The weights and bias of the head, and what was chosen; where that is `random` they mean nothing."""
    x, labels, folds = seen.x.double(), seen.labels, seen.folds
    moments = Moments.zeros(config.folds, head.out_features, head.in_features, x.device)
    moments.add(x, labels, folds)
    if seen.sums is not None:
        moments = Moments(*(a + b for a, b in zip(vars(moments).values(), vars(seen.sums).values(), strict=True)))
    counts, centred = moments.counts.sum(0), head.bias is not None
    number = int(counts.sum())
    spread = (x - moments.sums.sum((0, 1)) / number).norm(dim=1).mean().item() if number else math.nan
    if (counts > 0).sum() < 2 or not spread > TINY * x.norm(dim=1).mean():
        return head.weight, head.weight, HeadStartReport("random", math.nan, math.nan, math.nan, math.nan, number, spread)

    prior = _prior(seen.came, config) if centred else torch.zeros_like(seen.came)
    if seen.sums is None and number < head.in_features:  # in as many coordinates as there are images, which is cheaper
        narrowed = narrow(x)
        few = Moments.zeros(config.folds, head.out_features, number, x.device)
        few.add(narrowed, labels, folds)
        ridges = [r * number / head.in_features for r in config.ridges]
        judged = judge(few, narrowed, labels, folds, ridges, config.scales, prior, centred)
    else:
        judged = judge(moments, x, labels, folds, config.ridges, config.scales, prior, centred)
    share = counts / number
    entropy = _entropy(share)
    which, expected, known = _strength(judged, share.max().item(), bool(prior.any()), config)
    fit = moments.fit(config.ridges[which : which + 1], centred)
    own = losses_at(config.scales, fit.logits(x, 0), labels, prior).mean(1)
    target = min(config.left * entropy, expected) if known else config.careful * entropy
    at = int((own <= target).nonzero()[0]) if (own <= target).any() else int(own.argmin())
    weight = config.scales[at] * fit.weights[0]
    held_out = (judged.right[which, at].double().mean().item(), judged.losses[which, at].mean().item())
    kind = "fitted" if known else "careful"
    return weight, prior - weight @ fit.mean, HeadStartReport(kind, config.ridges[which], config.scales[at], *held_out, number, spread)


def _entropy(share: Tensor) -> float:
    return -float(torch.special.xlogy(share, share).sum())


def _prior(came: Tensor, config: HeadStartConfig) -> Tensor:
    """The logs of the classes' shares in the batches, (C,), less their mean; zeros where classes come about evenly, whom a head learns to
    tell apart either way."""
    seen = int((came > 0).sum())
    if _entropy(came / came.sum()) >= config.uneven * math.log(max(seen, 2)):
        return torch.zeros_like(came)
    logs = (came + 0.5).log()
    return logs - logs.mean()


def _strength(judged: Judged, chance: float, uneven: bool, config: HeadStartConfig) -> tuple[int, float, bool]:
    """The place of the ridge, its held-out loss at its best scale, and whether it knows more than chance.

    Args:
        chance: the share of the largest class.
        uneven: whether classes are, so that the largest one would be told whatever the image: then losses tell, and not accuracy.
    """
    number = judged.right.shape[-1]
    if not number:
        return len(config.ridges) - 1, math.nan, False
    best = judged.losses.mean(2).argmin(1)  # (R,)
    at_best = torch.stack([losses[at] for losses, at in zip(judged.losses, best, strict=True)])  # (R, n)
    means = at_best.mean(1)
    error = at_best[means.argmin()].std(correction=0) / math.sqrt(number)
    within = means <= means.min() + error
    which = int(within.nonzero()[-1])
    if uneven:
        gain = judged.shares - at_best[which]
        known = gain.mean().item() > config.sure * gain.std(correction=0).item() / math.sqrt(number)
        return which, means[which].item(), known
    accuracy = judged.right[which, best[which]].double().mean().item()
    known = accuracy > chance + config.sure * math.sqrt(chance * (1 - chance) / number)
    return which, means[which].item(), known


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


def _of_the_first(t: Tensor) -> Tensor:
    """That of the first process: others might round otherwise."""
    if _processes()[1] > 1:
        t = t.contiguous()
        dist.broadcast(t, 0)
    return t
