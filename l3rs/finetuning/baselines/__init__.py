"""The baselines: hand-designed optimizers with a tuned learning rate, and recipes that need no tuning, as their authors publish them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from l3rs.finetuning.baselines.automatic import DOG, PRODIGY, autogluon, l_dog, none, prodigy
from l3rs.finetuning.baselines.fastai import BASE_LR, fine_tune, one_cycle
from l3rs.finetuning.baselines.rates import SHIPPED, nearest_horizon, tuned_learning_rate, tuned_learning_rates
from l3rs.finetuning.baselines.recipe import Library, Recipe
from l3rs.finetuning.baselines.usual import (
    SCHEDULE_FREE,
    SOAP,
    adam,
    adam_cosine,
    adam_cosine_head10,
    adamw,
    adamw_cosine_head10,
    adamw_layer_decay,
    muon_cosine,
    schedule_free,
    sgd_cosine,
    soap_cosine,
)

BASELINES: MappingProxyType[str, Callable[[nn.Module, float, int], Recipe]] = MappingProxyType(
    {
        "adam": adam,
        "adam-cosine": adam_cosine,
        "adam-cosine-head10": adam_cosine_head10,
        "sgd-cosine": sgd_cosine,
        "adamw-cosine-head10": adamw_cosine_head10,
        "adamw-layer-decay": adamw_layer_decay,
        "schedule-free": schedule_free,
        "muon-cosine": muon_cosine,
        "soap-cosine": soap_cosine,
    }
)
"""The baselines with a tuned learning rate."""

PUBLISHED: Mapping[str, float] = MappingProxyType(
    {"adamw": 1e-3, "fastai": BASE_LR, "autogluon": 1e-4, "prodigy": 1.0, "l-dog": 1.0, "lr-finder": 1.0, "none": 0.0}
)
"""The learning rates of the baselines that need no tuning, as published; of `lr-finder` multiples of what it finds, of Prodigy and L-DoG of
what they estimate.

AdamW is constant, as torch's is without a scheduler, at 1e-3, torch's default, and at 1e-4.
Schedule-free AdamW at its default is `schedule-free` at 0.0025 (schedulefree 1.4.1; no release has ScheduleFree+ yet).
"""

RECIPES: MappingProxyType[str, Callable[[nn.Module, float, int], Recipe]] = MappingProxyType(
    {
        **BASELINES,
        "adamw": adamw,
        "fastai": fine_tune,
        "autogluon": autogluon,
        "prodigy": prodigy,
        "l-dog": l_dog,
        "lr-finder": one_cycle,
        "none": none,
    }
)
"""All baselines."""

LIBRARIES: Mapping[str, Library] = MappingProxyType({"schedule-free": SCHEDULE_FREE, "soap-cosine": SOAP, "prodigy": PRODIGY, "l-dog": DOG})
"""What a baseline needs that no extra brings."""

__all__ = [
    "BASELINES",
    "LIBRARIES",
    "PUBLISHED",
    "RECIPES",
    "SHIPPED",
    "Library",
    "Recipe",
    "nearest_horizon",
    "tuned_learning_rate",
    "tuned_learning_rates",
]
