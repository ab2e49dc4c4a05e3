"""An arm of a comparison: an optimizer with its hyperparameters, under a name."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from l3rs.finetuning.baselines import RECIPES, Recipe, tuned_learning_rate
from l3rs.learned.weights import KINDS
from l3rs.learners import LEARNERS
from l3rs.schedules.find import SHIPPED_WEIGHTS
from l3rs.schedules.schedule import LearnedSchedule

OURS = LearnedSchedule.kind


@dataclass(frozen=True)
class Arm:
    """An optimizer in a comparison.

    Attributes:
        name: what rows and tables call it.
        optimizer: `l3rs`, a baseline, or another learned optimizer.
        lr: the learning rate; none is the one tuned for each horizon of a baseline or of Celo2, and 1 for other learned optimizers.
        learned: of a learned optimizer: a shipped schedule's name, or a file.
        meta_seed: of the meta-training that made it, where several seeds are arms of one name.
        head_only: whether all but the head is frozen.
        horizons: some of a cell's; none is all.
        total_steps: the length of the run that the optimizer is told, as a multiple of the true one.
        refresh: whether BatchNorm's statistics are refreshed before evaluations, as they always are for a schedule-free optimizer.
        source: where the learning rate is from, in words.
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
        if self.optimizer in KINDS and self.learned == "auto":
            there = [name for name, kind in SHIPPED_WEIGHTS.items() if kind == self.optimizer]
            shipped = f"{', '.join(there)} is shipped" if there else f"{self.optimizer} has none that are shipped"
            raise ValueError(f"arm {self.name!r} needs learned, the file of its weights: {shipped}")

    @property
    def ours(self) -> bool:
        """Whether it is L3RS, which the others are compared with."""
        return self.optimizer == OURS

    @property
    def tuned(self) -> bool:
        """Whether its learning rate is a tuned one."""
        return self.lr is None and (self.optimizer in RECIPES or LEARNERS[self.optimizer].tuned)

    def rate(self, steps: int, file: str | None = None) -> float:
        """The learning rate of a run of so many steps.

        Args:
            file: of tuned learning rates; None is those of Icons25, which are shipped.

        Raises:
            ValueError: it is a tuned one and has not been tuned.
        """
        if self.lr is not None:
            return self.lr
        return tuned_learning_rate(self.optimizer, steps, file) if self.tuned else 1.0

    def make(self, network: nn.Module, steps: int) -> Recipe:
        """A baseline for a network, for a run of so many steps."""
        return RECIPES[self.optimizer](network, self.rate(steps), steps)
