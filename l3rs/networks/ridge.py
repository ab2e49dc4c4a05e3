"""Ridge regression on classes: fitted from sums over images, judged on images that it was not fitted on, and scaled to a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-12  # of the features' squares, in float64


class Fit(NamedTuple):
    """Weights at scale 1, (C, F), for each of the ridges, the mean of the features, (F,), and the number of images of each class, (C,)."""

    weights: list[Tensor]
    mean: Tensor
    counts: Tensor

    def logits(self, x: Tensor, which: int) -> Tensor:
        """At scale 1, (n, C), of features (n, F), by the weights of one of the ridges."""
        return (x - self.mean) @ self.weights[which].T


@dataclass(frozen=True)
class Moments:
    """Sums over images, fold by fold, in float64: all that a fit needs.

    Attributes:
        counts: (K, C), images of each class.
        sums: (K, C, F), of their features.
        squares: (K, F, F), of the products of features.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def zeros(cls, folds: int, classes: int, features: int, device: torch.device) -> Moments:
        """The sums of no images."""
        shapes = (folds, classes), (folds, classes, features), (folds, features, features)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, x: Tensor, labels: Tensor, folds: Tensor) -> None:
        """Adds images: features (n, F), labels and folds (n,)."""
        for fold in folds.unique().tolist():
            mine, of = x[folds == fold].double(), labels[folds == fold]
            self.counts[fold].index_add_(0, of, torch.ones_like(of, dtype=torch.float64))
            self.sums[fold].index_add_(0, of, mine)
            self.squares[fold].addmm_(mine.T, mine)

    def fit(self, ridges: Sequence[float], centred: bool = True, without: int | None = None) -> Fit:
        """Fits a head for each ridge r: `solve(Z'Z + r trace(Z'Z) / F I, Z'Y)'`; the mean of Y drops out, as Z is centred.

        Args:
            centred: whether features are centred, as for a head with a bias; else Z is the features themselves, with a mean of 0.
            without: a fold to leave out.
        """
        counts, sums, squares = (t.sum(0) if without is None else t.sum(0) - t[without] for t in (self.counts, self.sums, self.squares))
        n = counts.sum()
        mean = sums.sum(0) / n
        gram, cross = squares - n * centred * torch.outer(mean, mean), sums - counts[:, None] * mean
        unit = torch.maximum(gram.diagonal().mean(), ROUNDING * squares.diagonal().mean())  # of one image nothing is left but rounding
        eye = torch.eye(len(mean), dtype=gram.dtype, device=gram.device)
        return Fit([torch.cholesky_solve(cross.T, torch.linalg.cholesky(gram + r * unit * eye)).T for r in ridges], mean * centred, counts)


class Judged(NamedTuple):
    """Of n held-out images, at each ridge and scale, (R, S, n): their loss, and whether they were right; and the loss of the shares of the
    classes alone, (n,)."""

    losses: Tensor
    right: Tensor
    shares: Tensor


def losses_at(scales: Sequence[float], logits: Tensor, labels: Tensor, prior: Tensor) -> Tensor:
    """Cross entropy of each image, (S, n), by logits (n, C) times each of the scales, plus the logs of the classes' shares, (C,)."""
    return torch.stack([F.cross_entropy(s * logits + prior, labels, reduction="none") for s in scales])


def judge(
    moments: Moments,
    x: Tensor,
    labels: Tensor,
    folds: Tensor,
    ridges: Sequence[float],
    scales: Sequence[float],
    prior: Tensor,
    centred: bool = True,
) -> Judged:
    """Judges each image by heads that were fitted without its fold; images of classes that those have not seen are left out.

    So are all images of a fold without which there is one class, or none: what it is likened to teaches nothing.
    """
    none = torch.zeros(len(ridges), len(scales), 0, dtype=torch.float64, device=x.device)
    found = [Judged(none, none.bool(), none[0, 0])]
    for fold in folds.unique().tolist():
        if ((moments.counts.sum(0) - moments.counts[fold]) > 0).sum() < 2:
            continue
        fit = moments.fit(ridges, centred, without=fold)
        mine = (folds == fold) & (fit.counts[labels] > 0)
        of = labels[mine]
        logits = [fit.logits(x[mine].double(), i) for i in range(len(ridges))]
        losses = torch.stack([losses_at(scales, z, of, prior) for z in logits])
        shares = F.cross_entropy(prior.expand(len(of), -1), of, reduction="none")
        found.append(Judged(losses, torch.stack([torch.stack([(s * z + prior).argmax(1) == of for s in scales]) for z in logits]), shares))
    return Judged(*(torch.cat(parts, -1) for parts in zip(*found, strict=True)))


def narrow(x: Tensor) -> Tensor:
    """Coordinates of n images, (n, n), of which ridge regression makes the same as of (n, F) features, where n is below F.

    They have all inner products of the features: x = (Q R)' with orthonormal columns in Q, and R' is what stays. A ridge in units of the
    mean of the diagonal of Z'Z wants to be n / F times as strong there, for the sum of that diagonal is the same.
    """
    r: Tensor = torch.linalg.qr(x.double().T, mode="r").R
    return r.T
