"""Features against numbers worked out by hand."""

from __future__ import annotations

import math

import torch

from l3rs.controller.config import L3RSConfig
from l3rs.controller.decide import meta_shapes
from l3rs.controller.features import Averages, TimeFeatures, feature_names, log_rms

CONFIG = L3RSConfig()
YES, NO = torch.tensor(True), torch.tensor(False)


def time_features(step: float, total: int, config: L3RSConfig) -> torch.Tensor:
    return TimeFeatures([total], config, torch.device("cpu"))(torch.tensor([float(step)]))[0]


def test_names_say_how_many_inputs_there_are() -> None:
    names = feature_names(CONFIG)
    assert len(names) == len(set(names)) == 9 + 11 + 7 + 2 + 16
    assert meta_shapes(CONFIG, ("a", "b"))["w1"] == (32, len(names))


def test_averages_are_bias_corrected() -> None:
    config = L3RSConfig(ema_factors=(0.0, 0.5))
    averages = Averages(torch.zeros(1, 1, 2), config)
    first = averages.update(torch.tensor([[4.0]]), torch.ones(1), YES)
    second = averages.update(torch.tensor([[8.0]]), torch.full((1,), 2.0), YES)
    torch.testing.assert_close(first, torch.tensor([[[4.0, 4.0]]]))
    torch.testing.assert_close(second, torch.tensor([[[8.0, (0.5 * 2 + 0.5 * 8) / 0.75]]]))


def test_averages_stay_where_they_are_when_a_signal_is_not_to_be_trusted() -> None:
    averages = Averages(torch.zeros(1, 1, 3), L3RSConfig(ema_factors=(0.0, 0.5, 0.99)))
    averages.update(torch.tensor([[4.0]]), torch.ones(1), YES)
    before = averages.update(torch.tensor([[7.0]]), torch.full((1,), 2.0), YES)
    torch.testing.assert_close(averages.update(torch.tensor([[float("nan")]]), torch.full((1,), 3.0), NO), before)


def test_each_layer_has_its_own_count() -> None:
    """A layer that joins later has its first value as its average, whatever the others have seen."""
    averages = Averages(torch.zeros(2, 1, 1), L3RSConfig(ema_factors=(0.9,)))
    averages.values[0] = 3.0 * (1 - 0.9**5)  # five times 3
    seen = averages.update(torch.tensor([[3.0], [8.0]]), torch.tensor([6.0, 1.0]), YES)
    torch.testing.assert_close(seen.flatten(), torch.tensor([3.0, 8.0]))


def test_time_features_of_several_runs_are_those_of_each() -> None:
    both = TimeFeatures([50, 100], CONFIG, torch.device("cpu"))(torch.tensor([10.0, 30.0]))
    torch.testing.assert_close(both, torch.stack([time_features(10, 50, CONFIG), time_features(30, 100, CONFIG)]))


def test_time_runs_from_the_first_point_to_the_last_and_then_stays() -> None:
    start, end, after = (time_features(k, 50, CONFIG) for k in (0, 50, 70))
    assert start[0] == 0  # tanh(10 * (0 - 0))
    assert end[10] == 0  # tanh(10 * (1 - 1))
    assert torch.equal(end, after)
    assert math.isclose(float(start[11]), math.tanh(50 / 10 - 1), rel_tol=1e-6)


def test_log_norms_do_not_depend_on_a_layers_size() -> None:
    small, large = torch.full((10,), 0.1), torch.full((1000,), 0.1)
    sizes = log_rms(torch.stack([small.norm(), large.norm()]), torch.tensor([10.0, 1000.0]).sqrt(), CONFIG)
    torch.testing.assert_close(sizes, torch.full((2,), math.log(0.1) / 4))
    assert torch.isfinite(log_rms(torch.zeros(1), torch.ones(1), CONFIG)).all()
