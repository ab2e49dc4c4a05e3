"""The learning rates that were tuned for baselines on meta-train tasks."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import resources
from pathlib import Path

import yaml


@lru_cache(maxsize=8)
def tuned_learning_rates(file: str | None = None) -> dict[str, dict[int, float]]:
    """Reads the learning rates that `evaluate/tune.py` found on meta-train tasks, by baseline (or Celo2) and horizon.

    Args:
        file: of `evaluate/tune.py`; None is the shipped one, tuned on Icons25.

    Raises:
        ValueError: there is no such file.
    """
    try:
        raw = yaml.safe_load((Path(file) if file else resources.files("l3rs.finetuning") / "baselines.yaml").read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); evaluate/tune.py writes it") from None
    return {name: {int(steps): float(lr) for steps, lr in chosen.items()} for name, chosen in raw.items()}


def tuned_learning_rate(name: str, steps: int, file: str | None = None) -> float:
    """Returns the tuned learning rate of a baseline at the tuned horizon nearest to `steps`, in log steps.

    Raises:
        ValueError: it was not tuned; the message names the tuned ones.
    """
    rates = tuned_learning_rates(file)
    if name not in rates:
        raise ValueError(f"no learning rate was tuned for {name!r}; there are {', '.join(rates)}")
    return rates[name][nearest_horizon(name, steps, file)]


def nearest_horizon(name: str, steps: int, file: str | None = None) -> int:
    """Finds the tuned horizon of a baseline nearest to `steps`, in log steps."""
    return min(tuned_learning_rates(file)[name], key=lambda k: (abs(math.log(k / steps)), k))
