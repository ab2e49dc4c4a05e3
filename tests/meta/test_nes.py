"""Natural evolution strategies: they find a minimum, and decay; and the settings of meta-training."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from small_runs import Quadratic

from l3rs.controller.config import L3RSConfig
from l3rs.meta.config import MetaTrainConfig, NESConfig
from l3rs.meta.nes import NES


def test_finds_the_minimum() -> None:
    target = torch.tensor([0.5, -0.5, 1.0])
    nes = NES(Quadratic(target), torch.zeros(3), NESConfig(population=20, sigma=0.1, lr=0.05, sigma_half_life=50, lr_half_life=50))
    for _ in range(150):
        nes.step()
    assert (nes.center - target).abs().max() < 0.05


def test_both_halve_every_half_life() -> None:
    nes = NES(Quadratic(torch.zeros(2)), torch.ones(2), NESConfig(population=4, sigma=0.2, lr=0.1, sigma_half_life=10, lr_half_life=10))
    for _ in range(10):
        nes.step()
    assert (nes.sigma, nes.lr) == pytest.approx((0.1, 0.05))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NESConfig(population=7), r"population must be even .*\(got 7\)"),
        (lambda: NESConfig(population=0), r"population must be .*\(got 0\)"),
        (lambda: NESConfig(sigma=0), r"sigma must be positive \(got 0\)"),
        (lambda: NESConfig(sigma=nan), r"sigma must be positive \(got nan\)"),
        (lambda: NESConfig(sigma=inf), r"sigma must be finite \(got inf\)"),
        (lambda: NESConfig(hidden_noise=0), r"hidden_noise must be positive \(got 0\)"),
        (lambda: NESConfig(lr=-1), r"lr must be positive \(got -1\)"),
        (lambda: NESConfig(lr=inf), r"lr must be finite \(got inf\)"),
        (lambda: NESConfig(sigma_half_life=0), r"sigma_half_life must be positive \(got 0\)"),
        (lambda: NESConfig(lr_half_life=nan), r"lr_half_life must be positive \(got nan\)"),
        (lambda: NESConfig(optimizer="clipup"), r"optimizer must be one of adam, sgd \(got 'clipup'\)"),
        (lambda: NESConfig(seed=-1), r"seed must be at least 0 and below 2\^32 \(got -1\)"),
        (lambda: NESConfig(seed=2**32), r"seed must be at least 0 and below 2\^32 \(got 4294967296\)"),
        (lambda: MetaTrainConfig(steps=(0, 5)), r"steps must be two whole numbers of at least 1, .*\(got \[0, 5\]\)"),
        (lambda: MetaTrainConfig(steps=(6, 5)), r"steps must be .*, the smaller first \(got \[6, 5\]\)"),
        (lambda: MetaTrainConfig(steps_distribution="normal"), r"steps_distribution must be one of uniform, log-uniform \(got 'normal'\)"),
        (lambda: MetaTrainConfig(objective="accuracy"), r"objective must be one of final, log, mean, error \(got 'accuracy'\)"),
        (lambda: MetaTrainConfig(precision="float16"), r"precision must be one of float32, bfloat16 \(got 'float16'\)"),
        *(
            (lambda name=name: MetaTrainConfig(**{name: 0}), rf"{name} must be at least 1 \(got 0\)")
            for name in ("generations", "meta_batch", "validate_every", "validation_tasks", "finalists", "final_tasks")
        ),
        (lambda: MetaTrainConfig(workers=-1), r"workers must be at least 0 \(got -1\)"),
        (lambda: MetaTrainConfig(gpus_per_actor=-0.5), r"gpus_per_actor must be at least 0 \(got -0\.5\)"),
        (lambda: MetaTrainConfig(gpus_per_actor=nan), r"gpus_per_actor must be at least 0 \(got nan\)"),
        (lambda: MetaTrainConfig(penalty=0), r"penalty must be positive and finite \(got 0\)"),
        (lambda: MetaTrainConfig(penalty=nan), r"penalty must be positive and finite \(got nan\)"),
        (lambda: MetaTrainConfig(penalty=inf), r"penalty must be positive and finite \(got inf\)"),
        (lambda: MetaTrainConfig(validation_steps=()), r"validation_steps must be one or more numbers of at least 1 \(got \[\]\)"),
        (lambda: MetaTrainConfig(validation_steps=(10, 0)), r"validation_steps must be .*\(got \[10, 0\]\)"),
        (lambda: MetaTrainConfig(name="a/b"), r"name must have no slash, .*\(got 'a/b'\)"),
        (lambda: MetaTrainConfig(specialist=False), "specialist is False, with schedule.embedding 16"),
        (lambda: MetaTrainConfig(schedule=L3RSConfig(embedding=0)), "specialist is True, with schedule.embedding 0"),
    ],
)
def test_wrong_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
