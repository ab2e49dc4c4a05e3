"""The start of meta-training: what it does, and what its units change."""

from __future__ import annotations

import math

import pytest
import torch

from l3rs.controller.config import L3RSConfig
from l3rs.controller.decide import Decision, decide, meta_shapes, unflatten
from l3rs.controller.features import TimeFeatures, feature_names
from l3rs.controller.initial import DESCRIPTION, HEIGHT, initial_theta, noise_scale, paths
from l3rs.networks.description import description_of
from l3rs.networks.pretrained import pretrained

CONFIG = L3RSConfig()
LAYERS = ("first", "scale", "last", "fc.weight", "fc.bias")
WHAT = torch.tensor(
    [
        [0, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0.5, 0.5, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
)


def decisions(theta: torch.Tensor, step: float, total: int, config: L3RSConfig = CONFIG) -> Decision:
    """What the controller says before step + 1 of `total`, on random features but for time and embedding."""
    meta, names = unflatten(theta, meta_shapes(config, LAYERS if config.by_layer else ())), feature_names(config)
    features = torch.randn(len(LAYERS), len(names), generator=torch.Generator().manual_seed(0))
    clock = [i for i, name in enumerate(names) if "_time/" in name]
    features[:, clock] = TimeFeatures([total], config, torch.device("cpu"))(torch.tensor([step]))
    if config.embedding:
        features[:, [i for i, name in enumerate(names) if name.startswith("embedding/")]] = meta["embedding"]
    return decide(meta, features, config.controller)


@pytest.mark.parametrize("total", [10, 50, 100])
def test_it_is_a_falling_step_size_alike_for_all_layers_but_the_head(total: int) -> None:
    """lambda = (K / 10)^-0.5 exp(-3 k/K), about; ten times that for the head; mu even."""
    theta = initial_theta(CONFIG, LAYERS, 0, WHAT)
    for k in (0, total // 2, total):
        decision = decisions(theta, k, total)
        torch.testing.assert_close(decision.lam[:3], decision.lam[:1].expand(3))
        torch.testing.assert_close(decision.lam[3:], CONFIG.initial_head * decision.lam[:1].expand(2))
        torch.testing.assert_close(decision.mu, torch.full((5, 2), 0.5))
        expected = -CONFIG.initial_horizon * math.log(total / 10) - CONFIG.initial_decay * k / total
        assert math.log(float(decision.lam[0])) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("unit", "step", "total", "changed"),
    [
        ("early", 0, 10, (1, 1, 1, 1, 1)),
        ("early", 50, 100, (0, 0, 0, 0, 0)),
        ("late", 100, 100, (1, 1, 1, 1, 1)),
        ("late", 5, 10, (0, 0, 0, 0, 0)),
        ("horizon", 3, 10, (0, 0, 0, 0, 0)),
        ("horizon", 3, 100, (1, 1, 1, 1, 1)),
        ("head", 3, 10, (0, 0, 0, 1, 1)),
        ("depth 0", 3, 10, (1, 0.5, 0, 0, 0)),
        ("depth 1", 3, 10, (0, 0, 1, 0, 0)),
        ("scale", 3, 10, (0, 1, 0, 0, 0)),
        ("head's bias", 3, 10, (0, 0, 0, 0, 1)),
        ("head's early", 0, 10, (0, 0, 0, 1, 1)),
        ("head's late", 100, 100, (0, 0, 0, 1, 1)),
        ("head's late", 0, 100, (0, 0, 0, 0, 0)),
        ("head's horizon", 3, 100, (0, 0, 0, 1, 1)),
    ],
)
def test_a_unit_changes_some_layers_some_of_the_time(unit: str, step: float, total: int, changed: tuple[float, ...]) -> None:
    """A nat, divided by the unit's height, on its way to log lambda is a nat of log lambda where it acts; likewise for mu."""
    theta = initial_theta(CONFIG, LAYERS, 0, WHAT)
    before, number = decisions(theta, step, total), [name for name, *_ in paths(CONFIG)].index(unit)
    w3 = unflatten(theta, meta_shapes(CONFIG, LAYERS))["w3"]
    w3[0, number] += 1 / HEIGHT
    w3[2, number] += 1 / HEIGHT
    after, expected = decisions(theta, step, total), torch.tensor(changed, dtype=torch.float32)
    torch.testing.assert_close((after.lam / before.lam).log(), expected, atol=0.03, rtol=0)
    torch.testing.assert_close((after.mu[:, 1] / after.mu[:, 0]).log(), expected, atol=0.03, rtol=0)


def test_a_layerwise_controller_has_a_faster_head_too() -> None:
    config = L3RSConfig(embedding=0, controller="layerwise")
    lam = decisions(initial_theta(config, LAYERS, 0, WHAT), 3, 20, config).lam
    torch.testing.assert_close(lam / lam[0], torch.tensor([1.0, 1.0, 1.0, 10.0, 10.0]))


def test_noise_is_strong_on_the_ways_from_the_units_to_the_output() -> None:
    scale = unflatten(noise_scale(CONFIG, LAYERS, 0.25), meta_shapes(CONFIG, LAYERS))
    assert len(paths(CONFIG)) == 3 + 9 + 3
    assert scale["w3"].tolist() == [[1.0] * 15 + [0.25] * 17] * 3
    assert scale["b3"].tolist() == [1.0] * 3
    assert all((scale[name] == 0.25).all() for name in ("w1", "b1", "w2", "b2", "embedding"))


@pytest.mark.parametrize(
    ("config", "number"), [(L3RSConfig(embedding=0), 3), (L3RSConfig(embedding=4), 3 + 4 + 3), (L3RSConfig(hidden=(8, 5)), 5)]
)
def test_there_are_as_many_units_as_there_is_room_for(config: L3RSConfig, number: int) -> None:
    layers = LAYERS if config.embedding else ()
    assert len(paths(config)) == number
    assert torch.isfinite(decisions(initial_theta(config, layers, 0, WHAT[: len(layers)]), 3, 20, config).lam).all()


def test_layers_of_a_resnet_are_described() -> None:
    network = pretrained(num_classes=3)
    what = dict(zip((name for name, _ in network.named_parameters()), description_of(network).tolist(), strict=True))
    column = DESCRIPTION.index
    assert what["conv1.weight"] == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert what["layer4.2.conv2.weight"] == [0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert what["bn1.weight"][column("scale")] == what["bn1.bias"][column("shift")] == 1
    assert what["fc.weight"] == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert what["fc.bias"] == [1, 0, 0, 0, 0, 0, 0, 0, 1]
    depths = torch.tensor([row[1:6] for name, row in what.items() if not name.startswith("fc")])
    torch.testing.assert_close(depths.sum(1), torch.ones(len(depths)))
    at = depths @ torch.linspace(0, 1, 5)
    assert (at[1:] >= at[:-1]).all()
