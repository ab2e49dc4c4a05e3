"""VeLO, Celo, the forms of Celo2 and small_fc_lopt, with random meta-parameters."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from l3rs.learned import Celo, Celo2, SmallFC, VeLO, small_fc
from l3rs.learned.base import LearnedRule
from l3rs.learned.celo2 import SHAPES
from l3rs.learned.theta import random

# Of random meta-parameters the learning rates of VeLO and Celo have to be large for a step to be seen in bfloat16.
FORMS: dict[str, tuple[type[LearnedRule], dict[str, Any]]] = {
    "Celo2": (Celo2, {"lr": 0.02}),
    "Celo2 adam": (Celo2, {"lr": 0.005, "vectors": "adam", "weight_decay": 0.1}),
    "Celo2-base": (Celo2, {"lr": 0.02, "orthogonalize": False, "vectors": "learned"}),
    "VeLO": (VeLO, {"lr": 3000.0, "total_steps": 12}),
    "Celo": (Celo, {"lr": 1000.0, "total_steps": 12}),
    "SmallFC": (SmallFC, {"lr": 20.0}),
}
WATCHING = ["VeLO", "Celo"]
every_form = pytest.mark.parametrize("form", FORMS)


@cache
def theta(of: type[LearnedRule]) -> Tensor:
    """No biases of zero, which may leave an MLP dead."""
    shapes = {Celo2: SHAPES, SmallFC: small_fc.SHAPES}.get(of) or of.FORM.shapes  # type: ignore[attr-defined]
    drawn = random(shapes, 0)
    return drawn + 0.05 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))


def make(form: str, params: Iterable[Any], **options: Any) -> LearnedRule:
    of, usual = FORMS[form]
    return of(params, **{"theta": theta(of), **usual, **options})  # type: ignore[arg-type]


def states(optimizer: LearnedRule) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.clone() for p in params if p in optimizer.state for _, t in sorted(optimizer.state[p].items())]


def finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)
