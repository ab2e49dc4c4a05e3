"""Natural evolution strategies: the gradient, the ranks, the decays, and resuming."""

from __future__ import annotations

import pytest
import torch

from l3rs.meta.config import MetaTrainConfig, NESConfig
from l3rs.meta.nes import NES, Problem, pgpe, pgpe_ask, pgpe_tell


class Quadratic(Problem):
    """|x - target|^2, with any candidate's value replaceable."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target
        super().__init__("min", solution_length=len(target), initial_bounds=(-1.0, 1.0), store_solution_stats=False)

    def _evaluate_batch(self, batch: object) -> None:
        batch.set_evals(((batch.values - self.target) ** 2).sum(1))  # type: ignore[attr-defined]


def test_gradient_is_the_exact_one_of_a_quadratic() -> None:
    """Under SGD and raw fitness one step moves the centre along -gradient, whose exact value is 2 (x - target)."""
    n, sigma = 6, 0.01
    torch.manual_seed(0)
    center, target = torch.randn(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    state = pgpe(
        center_init=center, center_learning_rate=1.0, stdev_init=sigma, stdev_learning_rate=0.0, stdev_max_change=None,
        objective_sense="min", ranking_method="raw", optimizer="sgd", symmetric=True,
    )  # fmt: skip
    candidates = pgpe_ask(state, popsize=200_000)
    after = pgpe_tell(state, candidates, ((candidates - target) ** 2).sum(1))
    estimate = -(after.optimizer_state.center - center) / sigma**2  # EvoTorch's estimate is sigma^2 times Salimans'
    torch.testing.assert_close(estimate, 2 * (center - target), rtol=0.03, atol=0.03)


def test_candidates_are_antithetic_pairs() -> None:
    state = pgpe(
        center_init=torch.ones(5), center_learning_rate=0.1, stdev_init=0.5, stdev_learning_rate=0.0, objective_sense="min",
        ranking_method="centered", optimizer="adam",
    )  # fmt: skip
    candidates = pgpe_ask(state, popsize=8)
    torch.testing.assert_close((candidates[0::2] + candidates[1::2]) / 2, torch.ones(4, 5))


def test_ranks_make_it_blind_to_the_scale_of_the_loss() -> None:
    def center_after(scale: float) -> torch.Tensor:
        problem = Quadratic(torch.zeros(4))
        nes = NES(problem, torch.ones(4), NESConfig(population=8))
        problem._evaluate_batch = lambda b: b.set_evals((b.values**2).sum(1) * scale)  # type: ignore[method-assign]
        nes.step()
        return nes.center

    assert torch.equal(center_after(1.0), center_after(1000.0))


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


def test_resume_is_bit_equal_and_leaves_the_global_generator_alone() -> None:
    def fresh() -> NES:
        return NES(Quadratic(torch.zeros(5)), torch.ones(5), NESConfig(population=6, seed=3))

    straight = fresh()
    for _ in range(4):
        straight.step()
    saved = {k: torch.as_tensor(v).clone() for k, v in straight.state_dict().items()}
    for _ in range(3):
        straight.step()
    resumed = fresh()
    resumed.load_state_dict(saved)
    torch.manual_seed(99)  # the noise is a function of (seed, generation) alone
    before = torch.random.get_rng_state()
    for _ in range(3):
        resumed.step()
    assert torch.equal(straight.center, resumed.center)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NESConfig(population=7), "population is 7"),
        (lambda: NESConfig(sigma=0), "sigma is 0"),
        (lambda: MetaTrainConfig(steps=(0, 5)), r"steps is \[0, 5\]"),
        (lambda: MetaTrainConfig(generations=0), "generations is 0"),
        (lambda: MetaTrainConfig(specialist=False), "specialist is False, with schedule.embedding 16"),
    ],
)
def test_wrong_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
