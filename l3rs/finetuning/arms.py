"""An arm of a comparison: an optimizer with its hyperparameters, under a name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from l3rs.finetuning.baselines import LIBRARIES, PUBLISHED, RECIPES, Recipe, tuned_learning_rate
from l3rs.finetuning.baselines.finder import STEPS, find_rate
from l3rs.finetuning.tasks import HEAD_BATCHES, check_head
from l3rs.learned.weights import KINDS
from l3rs.learners import LEARNERS
from l3rs.schedules.find import SHIPPED_WEIGHTS
from l3rs.schedules.schedule import LearnedSchedule

OURS = LearnedSchedule.kind
FINDER, UNTRAINED = "lr-finder", "none"


@dataclass(frozen=True)
class Arm:
    """An optimizer in a comparison.

    Attributes:
        name: in rows and tables.
        optimizer: `l3rs`, a baseline, or another learned optimizer.
        lr: the learning rate; None takes the tuned one of each horizon for a baseline or Celo2, the published one for a baseline that needs
            no tuning, and 1 for other learned optimizers.
        learned: a shipped schedule's name, or a file, for a learned optimizer.
        meta_seed: seed of its meta-training, if arms of several seeds share a name.
        head_only: freezes everything but the head.
        horizons: some of the cell's; empty is all.
        total_steps: the announced length of the run, as a multiple of the true one.
        refresh: refreshes BatchNorm's statistics before evaluations; a schedule-free optimizer always does.
        recent: evaluates with BatchNorm's statistics of the last batches, see `l3rs.RecentStatistics`; where `refresh` is, that counts.
        head: the run begins with a `random` head, or with one in closed form, `start`, see `l3rs.head_start`.
        head_batches: a head start looks at no more than this many batches of the run [choice].
        source: the origin of the learning rate, in words.
    """

    name: str
    optimizer: str
    lr: float | None = None
    learned: str = "auto"
    meta_seed: int = 0
    head_only: bool = False
    horizons: tuple[int, ...] = ()
    total_steps: float = 1.0
    refresh: bool = False
    recent: bool = False
    head: str = "random"
    head_batches: int = HEAD_BATCHES
    source: str = ""

    def __post_init__(self) -> None:
        allowed = tuple(dict.fromkeys((OURS, *RECIPES, *LEARNERS)))
        if self.optimizer not in allowed:
            raise ValueError(f"the optimizer of arm {self.name!r} must be one of {', '.join(allowed)} (got {self.optimizer!r})")
        if self.lr is not None and not 0 <= self.lr < math.inf:
            raise ValueError(f"lr of arm {self.name!r} must be finite and at least 0 (got {self.lr})")
        if not 0 < self.total_steps < math.inf:
            raise ValueError(
                f"total_steps of arm {self.name!r} must be positive, as a multiple of the run's length (got {self.total_steps})"
            )
        check_head(self.head, self.head_batches)
        if self.optimizer in KINDS and self.learned == "auto":
            there = [name for name, kind in SHIPPED_WEIGHTS.items() if kind == self.optimizer]
            shipped = f"{', '.join(there)} is shipped" if there else f"none is shipped for {self.optimizer}"
            raise ValueError(f"arm {self.name!r} needs learned, a file of weights: {shipped}")

    @property
    def ours(self) -> bool:
        """Whether it is L3RS, the reference of every comparison."""
        return self.optimizer == OURS

    @property
    def tuned(self) -> bool:
        """Whether its learning rate is a tuned one."""
        if self.lr is not None or self.optimizer in PUBLISHED:
            return False
        return self.optimizer in RECIPES or LEARNERS[self.optimizer].tuned

    @property
    def lacking(self) -> str:
        """What to install for it, in words; empty if nothing is missing."""
        library = LIBRARIES.get(self.optimizer)
        return library.message if library is not None and library.missing else ""

    def cost(self, steps: int, tried: int = 3) -> float:
        """What it takes to have it, in runs of this many steps, its own included: 1 without tuning, 0 without training.

        Args:
            tried: learning rates of a tuned one, each a run; at least the best and its neighbours.
        """
        if self.optimizer == FINDER:
            return 1 + STEPS / steps
        return tried if self.tuned else 0 if self.optimizer == UNTRAINED else 1

    def rate(self, steps: int, file: str | None = None) -> float:
        """The learning rate of a run of this many steps.

        Args:
            file: of tuned learning rates; None takes the shipped ones, tuned on Icons25 in runs that begin with such a head.

        Raises:
            ValueError: it was not tuned.
        """
        if self.lr is not None:
            return self.lr
        return tuned_learning_rate(self.optimizer, steps, file, self.head) if self.tuned else PUBLISHED.get(self.optimizer, 1.0)

    def make(self, network: nn.Module, steps: int, batches: Iterable[tuple[Tensor, Tensor]] = ()) -> Recipe:
        """Makes the baseline for a network, for a run of this many steps.

        Args:
            batches: inputs and labels, over and over, for a learning-rate finder.
        """
        make, rate = RECIPES[self.optimizer], self.rate(steps)
        if self.optimizer == FINDER:
            rate *= find_rate(network, lambda lr: make(network, lr, steps).optimizer, batches)
        return make(network, rate, steps)
