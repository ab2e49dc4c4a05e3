"""Each direction against torch's optimizer, and the promise to read only."""

from __future__ import annotations

import pytest
import torch

from l3rs.directions import DIRECTIONS, direction
from l3rs.directions.adam import shifted_sigmoid

SHAPES = [(), (5,), (3, 4), (2, 3, 4), (2, 3, 3, 3)]
TORCH = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_matches_torch_over_20_steps(name: str) -> None:
    ours = [torch.randn(s, dtype=torch.float64) for s in SHAPES]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    optimizer, d = TORCH[name](theirs), direction(name)
    states = [d.init(p) for p in ours]
    raw = dict.fromkeys(d.hyperparameters, 0.0)
    for step in range(1, 21):
        grads = [torch.randn(s, dtype=torch.float64) for s in SHAPES]
        before = [p.clone() for p in ours], [g.clone() for g in grads]
        uphill = d.update(grads, ours, states, step, raw)
        assert all(torch.equal(a, b) for a, b in zip([*ours, *grads], [*before[0], *before[1]], strict=True))
        for p, u in zip(ours, uphill, strict=True):
            p -= 0.01 * u
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-9)


def test_hyperparameters_have_their_usual_values_at_zero() -> None:
    assert shifted_sigmoid(0.9, 0.0) == pytest.approx(0.9)
    assert 0.9 < shifted_sigmoid(0.9, 1.0) < 1
    assert 0 < shifted_sigmoid(0.9, -50.0) < 0.01


def test_an_unknown_direction_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'adamw'; there are sgd, adam"):
        direction("adamw")
