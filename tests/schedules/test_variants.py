"""Every variant of the paper's tables: equal to the reference, on every kernel, and of the size it should have."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import batch, small_network
from torch.nn import functional as F

from l3rs import L3RS, L3RSConfig, LearnedSchedule
from l3rs.controller.features import feature_names
from l3rs.controller.initial import initial_theta
from l3rs.optimizer.reference import ReferenceL3RS
from l3rs.schedules.variants import NAMES, TABLE_2, TABLE_3, TABLE_4, fixed_mix

VARIANTS = {**TABLE_2, **TABLE_3, **TABLE_4}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variant_equals_the_reference(name: str) -> None:
    """Float64 parameters, 8 steps, one layer without a gradient now and then."""
    config = replace(VARIANTS[name], lr0=2e-3)
    fast, slow = small_network(torch.float64), small_network(torch.float64)
    layers = tuple(n for n, _ in fast.named_parameters()) if config.by_layer else ()
    theta = initial_theta(config, layers, seed=0)
    theta = theta + 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(2))
    learned = LearnedSchedule(config, layers, theta)
    optimizer, reference = L3RS(fast.named_parameters(), 8, learned), ReferenceL3RS(dict(slow.named_parameters()), 8, learned)
    for k in range(8):
        inputs, labels = batch(k, torch.float64)
        losses = []
        for network in (fast, slow):
            network.zero_grad()
            losses.append(F.cross_entropy(network(inputs), labels))
            losses[-1].backward()
            if k in (0, 3):
                network[4].bias.grad = None
        optimizer.step(loss=losses[0])
        reference.step(losses[1].item())
        for (layer, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm().clamp_min(1e-2), f"{layer} after step {k + 1}"


def test_what_tables_share_has_one_name() -> None:
    assert set(NAMES) == set(VARIANTS.values())
    assert len(set(NAMES.values())) == len(NAMES) == len(VARIANTS) - 2
    assert NAMES[L3RSConfig()] == "SGD, Adam"


def test_sizes() -> None:
    def size(name: str, layers: int = 110) -> int:
        config = VARIANTS[name]
        return len(initial_theta(config, tuple(map(str, range(layers))) if config.by_layer else (), 0))

    inputs = 9 + 11 + 7 + 2  # averages, times, norms of the directions
    mlp = 32 * inputs + 32 + 32 * 32 + 32 + 3 * 32 + 3
    assert size("shared MLP, SGD + Adam") == size("global, SGD + Adam") == mlp + 3
    assert size("an MLP per layer, SGD + Adam") == 110 * mlp + 3
    assert size("shared MLP with embeddings, SGD + Adam") == mlp + 32 * 16 + 110 * 16 + 3
    assert size("shared MLP with embeddings, SGD") == mlp + 32 * 16 + 110 * 16 - 32 - 33  # a feature and a logit less


def test_lamb_is_not_adam_inside_l3rs() -> None:
    """With Adam's betas and eps, and its own weight decay, LAMB moves layers elsewhere than Adam does."""
    moved = {}
    for name in ("adam", "lamb"):
        network = small_network()
        config = L3RSConfig(directions=(name,), embedding=0)
        optimizer = L3RS(network.named_parameters(), 5, LearnedSchedule(config, (), initial_theta(config, (), 0)))
        F.cross_entropy(network(batch(0)[0]), batch(0)[1]).backward()
        optimizer.step(loss=1.0)
        moved[name] = (network[4].weight - small_network()[4].weight).detach().flatten()
    cosine = F.cosine_similarity(moved["adam"], moved["lamb"], dim=0)
    assert 0.9 < cosine < 1 - 1e-6
    torch.testing.assert_close(moved["adam"].norm(), moved["lamb"].norm(), rtol=1e-4, atol=0)


def test_global_decides_alike_for_all_and_layerwise_does_not() -> None:
    network = small_network()
    names = tuple(n for n, _ in network.named_parameters())
    F.cross_entropy(network(batch(0)[0]), batch(0)[1]).backward()
    for controller, alike in (("global", True), ("layerwise", False)):
        config = L3RSConfig(embedding=0, controller=controller)
        layers = names if config.by_layer else ()
        theta = initial_theta(config, layers, 0) + 0.1 * torch.randn(len(initial_theta(config, layers, 0)))
        optimizer = L3RS(network.named_parameters(), 5, LearnedSchedule(config, layers, theta))
        optimizer.step(loss=1.0)
        table = optimizer.decisions()
        assert (table["lambda"].nunique() == 1) == alike
        assert (table["mu_adam"].nunique() == 1) == alike


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"controller": "local"}, r"controller must be one of shared, layerwise, global \(got 'local'\)"),
        ({"controller": "global"}, r"embedding must be 0 with a global controller, which has none \(got 16\)"),
        ({"directions": ("sgd", "sgd")}, r"directions must name each one once \(got sgd, sgd\)"),
        ({"ema_factors": (1.0,)}, r"ema_factors must be at least 0 and below 1 \(got 1\.0\)"),
    ],
)
def test_configs_that_mean_nothing_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        L3RSConfig(**wrong)  # type: ignore[arg-type]


def test_no_averages_at_all_leaves_time_and_directions() -> None:
    names = feature_names(VARIANTS["EMA factors none"])
    assert not any(name.startswith("ema/") for name in names)


def test_atmo_is_l3rs_with_a_constant_controller() -> None:
    """Adam and SGD mixed by fixed coefficients, written out, against `fixed_mix`."""
    network = small_network()
    mine = copy.deepcopy(network)
    adam = torch.optim.Adam(mine.parameters(), lr=1.0)
    optimizer = L3RS(network.named_parameters(), 10, fixed_mix({"sgd": 0.3, "adam": 0.7}, lr=0.01))
    for k in range(5):
        inputs, labels = batch(k)
        for net in (network, mine):
            net.zero_grad()
            loss = F.cross_entropy(net(inputs), labels)
            loss.backward()
        optimizer.step(loss=loss)
        before = [p.detach().clone() for p in mine.parameters()]
        adam.step()  # for its direction alone
        with torch.no_grad():
            for p, old in zip(mine.parameters(), before, strict=True):
                sgd, d = p.grad, old - p
                p.copy_(old - 0.01 * p.numel() ** 0.5 * (0.3 * sgd / sgd.norm() + 0.7 * d / d.norm()))
        for p, q in zip(network.parameters(), mine.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shares", [{"sgd": 0.5}, {"sgd": 0.0, "adam": 1.0}, {"sgd": -0.5, "adam": 1.5}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive and sum to 1"):
        fixed_mix(shares)
