"""The learning rates that were tuned for baselines on meta-train tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path

import yaml

SHIPPED: Mapping[str, str] = {"random": "baselines.yaml", "start": "baselines-start.yaml"}  # by the head that runs begin with


@lru_cache(maxsize=8)
def tuned_learning_rates(file: str | None = None, head: str = "random") -> dict[str, dict[int, float]]:
    """Reads the learning rates that `evaluate/tune.py` found on meta-train tasks, by baseline (or Celo2) and horizon.

    Args:
        file: of `evaluate/tune.py`; None is the shipped one, tuned on Icons25
        head: in runs that begin with a `random` head, or with one in closed form, `start`: the best rates are others.

    Raises:
        ValueError: there is no such file, or it is not of that form.
    """
    try:
        raw = yaml.safe_load((Path(file) if file else resources.files("l3rs.finetuning") / SHIPPED[head]).read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); evaluate/tune.py writes it") from None
    except yaml.YAMLError:
        raise ValueError(f"{file} is no YAML file") from None
    try:
        return {name: {int(steps): float(lr) for steps, lr in chosen.items()} for name, chosen in raw.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{file} must have a rate by baseline and number of steps, as evaluate/tune.py writes it") from None


def tuned_learning_rate(name: str, steps: int, file: str | None = None, head: str = "random") -> float:
    """Returns the tuned learning rate of a baseline at the tuned horizon nearest to `steps`, in log steps.

    Raises:
        ValueError: it was not tuned; the message names the tuned ones.
    """
    horizon = nearest_horizon(name, steps, file, head)
    return tuned_learning_rates(file, head)[name][horizon]


def nearest_horizon(name: str, steps: int, file: str | None = None, head: str = "random") -> int:
    """Finds the tuned horizon of a baseline nearest to `steps`, in log steps. Raises ValueError as `tuned_learning_rate`."""
    rates = tuned_learning_rates(file, head)
    if name not in rates:
        began = " in runs with a head start" if head == "start" and file is None else ""
        raise ValueError(f"no learning rate was tuned for {name!r}{began}; there are {', '.join(rates)}")
    return min(rates[name], key=lambda k: (abs(math.log(k / steps)), k))
