"""The differentiable step is the reference's, in every form."""

from __future__ import annotations

import pytest
import torch
from conftest import batch, random_schedule, small_network
from torch.nn import functional as F

from l3rs.controller.decide import meta_shapes, unflatten
from l3rs.directions import DIRECTIONS
from l3rs.optimizer.differentiable import DifferentiableL3RS
from l3rs.optimizer.reference import ReferenceL3RS

INVARIANT = {
    "signals": ("log_relative_grad",), "descriptors": True, "direction_norms": "scale-free", "unit": "size", "lr0": 0.02,
    "embedding": 0, "specialist": False,
}  # fmt: skip
FORMS = [
    {},
    {"directions": tuple(DIRECTIONS)},
    {"directions": ("lamb", "adamax"), "unit": "relative"},
    {"unit": "l2", "lr0": 1e-3},
    {"embedding": 0, "specialist": False},
    {"embedding": 0, "controller": "layerwise"},
    {"embedding": 0, "controller": "global", "specialist": False},
    {"ema_factors": (0.0, 0.9)},
    {"ema_factors": ()},
    INVARIANT,
    {**INVARIANT, "directions": tuple(DIRECTIONS), "embedding": 16, "specialist": True},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_is_the_reference_to_rounding(form: dict[str, object]) -> None:
    """Relative difference of every tensor below 1e-8 in float64 after 8 steps, the two each going their own way."""
    form = dict(form)
    slow = small_network(torch.float64)
    learned = random_schedule(slow, bool(form.pop("specialist", True)), scale=0.1, **form)
    named = dict(slow.named_parameters())
    reference = ReferenceL3RS(named, 8, learned)
    fast = DifferentiableL3RS(learned, named, 8)
    meta = unflatten(learned.theta.double(), meta_shapes(learned.config, learned.layers))
    reference.meta = meta
    twin = small_network(torch.float64)
    state = fast.start(torch.cat([p.detach().flatten() for p in named.values()]))
    for k in range(8):
        inputs, labels = batch(k, torch.float64)
        slow.zero_grad()
        loss = F.cross_entropy(slow(inputs), labels)
        loss.backward()
        reference.step(loss.item())
        parts = state.theta.split([p.numel() for p in named.values()])
        for p, part in zip(twin.parameters(), parts, strict=True):
            p.data.copy_(part.view_as(p))
        loss = F.cross_entropy(twin(inputs), labels)
        g = torch.autograd.grad(loss, list(twin.parameters()))
        state = fast.step(meta, state, torch.cat([x.flatten() for x in g]), loss.detach(), k)
    for (name, p), part in zip(named.items(), state.theta.split([p.numel() for p in named.values()]), strict=True):
        assert (p.flatten() - part).norm() <= 1e-8 * p.norm().clamp_min(1e-3), name


def test_a_direction_of_others_has_no_gradient() -> None:
    network = small_network()
    learned = random_schedule(network, directions=("sgd", "torch.optim.NAdam"))
    with pytest.raises(ValueError, match=r"directions must be built in to have a gradient \(got 'torch.optim.NAdam'\)"):
        DifferentiableL3RS(learned, dict(network.named_parameters()), 5)
