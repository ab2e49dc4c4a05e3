"""The choice of a head in closed form: how strong its ridge is, and how large it is.

The strongest ridge whose held-out loss is as good as the best one's; the scale at which the images themselves keep a loss to learn from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l3rs.networks.ridge import Judged, Moments, judge, losses_at, narrow

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SCALES = tuple(0.5 * 1.2**i for i in range(24))  # to 33
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
        images: that were counted, of all processes; each once a process.
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


class Seen(NamedTuple):
    """Sums over the images, where they were more than is kept; features, labels and folds of those that are kept; and how often each class
    came, with repetitions."""

    sums: Moments | None
    x: Tensor
    labels: Tensor
    folds: Tensor
    came: Tensor


def choose(seen: Seen, head: nn.Linear, config: HeadStartConfig) -> tuple[Tensor, Tensor, HeadStartReport]:
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
