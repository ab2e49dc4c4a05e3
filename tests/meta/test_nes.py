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
        (lambda: NESConfig(population=7), "population is 7; candidates come in pairs"),
        (lambda: NESConfig(population=0), "population is 0"),
        (lambda: NESConfig(sigma=0), "sigma is 0; it is positive"),
        (lambda: NESConfig(sigma=nan), "sigma is nan; it is positive"),
        (lambda: NESConfig(sigma=inf), "sigma is inf; it is finite"),
        (lambda: NESConfig(hidden_noise=0), "hidden_noise is 0; it is positive"),
        (lambda: NESConfig(lr=-1), "lr is -1; it is positive"),
        (lambda: NESConfig(lr=inf), "lr is inf; it is finite"),
        (lambda: NESConfig(sigma_half_life=0), "sigma_half_life is 0"),
        (lambda: NESConfig(lr_half_life=nan), "lr_half_life is nan"),
        (lambda: NESConfig(optimizer="clipup"), "optimizer is 'clipup'; it is one of adam, sgd"),
        (lambda: NESConfig(seed=-1), "seed is -1; it is at least 0"),
        (lambda: NESConfig(seed=2**32), "seed is 4294967296; .* below"),
        (lambda: MetaTrainConfig(steps=(0, 5)), r"steps is \[0, 5\]"),
        (lambda: MetaTrainConfig(steps=(6, 5)), r"steps is \[6, 5\]; .* the smaller end first"),
        (lambda: MetaTrainConfig(steps_distribution="normal"), "steps_distribution is 'normal'; it is one of uniform, log-uniform"),
        (lambda: MetaTrainConfig(objective="accuracy"), "objective is 'accuracy'; it is one of final, mean"),
        (lambda: MetaTrainConfig(precision="float16"), "precision is 'float16'; it is one of float32, bfloat16"),
        *(
            (lambda name=name: MetaTrainConfig(**{name: 0}), f"{name} is 0; it is at least 1")
            for name in ("generations", "meta_batch", "validate_every", "validation_tasks", "finalists", "final_tasks")
        ),
        (lambda: MetaTrainConfig(workers=-1), "workers is -1; it is at least 0"),
        (lambda: MetaTrainConfig(gpus_per_actor=-0.5), "gpus_per_actor is -0.5; it is at least 0"),
        (lambda: MetaTrainConfig(gpus_per_actor=nan), "gpus_per_actor is nan"),
        (lambda: MetaTrainConfig(penalty=0), "penalty is 0; it is positive and finite"),
        (lambda: MetaTrainConfig(penalty=nan), "penalty is nan"),
        (lambda: MetaTrainConfig(penalty=inf), "penalty is inf"),
        (lambda: MetaTrainConfig(validation_steps=()), r"validation_steps is \[\]; it is one or more numbers of at least 1"),
        (lambda: MetaTrainConfig(validation_steps=(10, 0)), r"validation_steps is \[10, 0\]"),
        (lambda: MetaTrainConfig(name="a/b"), "name is 'a/b'; a file is called after it"),
        (lambda: MetaTrainConfig(specialist=False), "specialist is False, with schedule.embedding 16"),
        (lambda: MetaTrainConfig(schedule=L3RSConfig(embedding=0)), "specialist is True, with schedule.embedding 0"),
    ],
)
def test_wrong_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
