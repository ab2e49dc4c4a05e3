"""What `--compare` trains beside L3RS: recipes that need no tuning, tuned learning rates, given ones, and grids of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from l3rs.finetuning.arms import Arm
from l3rs.finetuning.baselines import PUBLISHED, nearest_horizon, tuned_learning_rate

# Those whose state resumes to the same bits: not Muon, SOAP, L-DoG, nor a finder, which takes steps of its own.
COMPARED = (
    "adam", "adamw", "adam-cosine", "adam-cosine-head10", "sgd-cosine", "adamw-cosine-head10", "adamw-layer-decay", "schedule-free",
    "fastai", "autogluon", "prodigy",
)  # fmt: skip
UNTUNED = ("adamw=1e-3", "fastai", "autogluon", "prodigy", "schedule-free=0.0025")
"""What people take without tuning: torch's AdamW, two recipes of libraries, and two optimizers that promise to need none (0.0025 is the
default of schedulefree)."""


@dataclass(frozen=True)
class Rival:
    """One baseline; of a grid of learning rates, an arm each.

    Attributes:
        arms: each is a run.
    """

    arms: tuple[Arm, ...]


def rivals(texts: Sequence[str], steps: int = 100, head: str = "random") -> list[Rival]:
    """Reads `adam`, `adam=3e-4` and `adam=1e-4,3e-4,1e-3`. Raises ValueError. A run's `steps` and `head` choose the tuned learning rate."""
    read = [_rival(text, steps, head) for text in dict.fromkeys(texts)]
    names = [arm.name for rival in read for arm in rival.arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--compare must have each baseline and learning rate once (got {twice} twice)")
    return read


def _rival(text: str, steps: int, head: str) -> Rival:
    name, equals, values = text.partition("=")
    if name not in COMPARED:
        raise ValueError(
            f"--compare must be one or more of {', '.join(COMPARED)}, alone, with several learning rates, as in adam=1e-4,1e-3, or one, "
            f"as in adam=3e-4 (got {text!r})"
        )
    if lacking := Arm(name, name).lacking:
        raise ValueError(f"--compare has {name}, which {lacking}")
    if equals:
        rates = list(dict.fromkeys(_rate(value, text) for value in values.split(",")))
        grid = f"best of {len(rates)}" if len(rates) > 1 else "given"
        return Rival(tuple(Arm(f"{name}={lr:g}", name, lr, source=grid) for lr in rates))
    if name in PUBLISHED:
        return Rival((Arm(name, name, PUBLISHED[name], source="published"),))
    source = f"tuned on Icons25, at {nearest_horizon(name, steps, head=head)} steps"
    return Rival((Arm(name, name, tuned_learning_rate(name, steps, head=head), source=source),))


def _rate(value: str, text: str) -> float:
    try:
        lr = float(value)
    except ValueError:
        lr = math.nan
    if not 0 < lr < math.inf:
        raise ValueError(f"a learning rate of --compare must be a number above 0, as in adam=3e-4 (got {text!r})")
    return lr


def there(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts baselines into those that can be trained here, and a line about each whose library is missing."""
    lacking = {text: Arm(text.partition("=")[0], text.partition("=")[0]).lacking for text in texts}
    return [text for text, lack in lacking.items() if not lack], [
        f"{text} is left out: it {lack}" for text, lack in lacking.items() if lack
    ]
