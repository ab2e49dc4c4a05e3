"""How long a run is, and how often it is validated, where nobody says: by the number of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

PASSES = 10  # times that each image is seen [choice]
SHORTEST, LONGEST = 100, 500  # steps [choice]: at more than 500 the schedule is only level with a tuned Adam (docs/findings.md)
VALIDATIONS = 10  # at most [choice], each with a checkpoint to resume from


@dataclass(frozen=True)
class Plan:
    """The length of a run.

    Attributes:
        steps: of training.
        validate_every: steps between two validations; the last step has one too.
    """

    steps: int
    validate_every: int

    @property
    def validations(self) -> int:
        """How many there are."""
        return math.ceil(self.steps / self.validate_every)


def plan(train: int, held_out: int, batch: int, *, steps: int | None = None, epochs: int | None = None, every: int | None = None) -> Plan:
    """Plans a run.

    There are at most ten validations, and no more of them than keeps the images that they look at below those of training: then they
    take less than half of the time, as an image costs less without a backward pass. One there always is, at the end.

    Args:
        train, held_out: images to train and to validate.
        batch: images a step.
        steps, epochs: the length, if it is given; None is ten passes, at least 100 and at most 500 steps.
        every: steps between two validations, if that is given.
    """
    passes = math.ceil((epochs or PASSES) * train / batch)
    length = steps or (passes if epochs else min(max(passes, SHORTEST), LONGEST))
    number = max(1, min(VALIDATIONS, length * batch // max(1, held_out)))
    return Plan(length, min(every or math.ceil(length / number), length))
