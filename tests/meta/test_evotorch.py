"""What EvoTorch does that meta-training relies on: the order of candidates, the ranks, the gradient, and where the noise is from."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nan
from pathlib import Path

import pytest
import ray
import torch
from small_runs import Quadratic, bits, quick, same

from l3rs.meta.config import NESConfig
from l3rs.meta.nes import NES, pgpe, pgpe_ask, pgpe_tell
from l3rs.meta.problem import FineTuning
from l3rs.meta.train import generation_tasks, meta_train, processes, start

from evotorch.tools.ranking import rank  # isort: skip  (last: l3rs.meta.nes silences what its import warns of)


@pytest.fixture
def ray_ends() -> Iterator[None]:
    yield
    ray.shutdown()


def salimans(nes: NES, center: torch.Tensor, sigma: float) -> torch.Tensor:
    """Their equation, on centred ranks: 1 / (n sigma) times the sum of u_i epsilon_i over all n candidates; uphill."""
    utilities = rank(nes.evaluations[:, 0], "centered", higher_is_better=False)
    noise = (nes.candidates - center) / sigma
    return (utilities[:, None] * noise).sum(0) / (len(utilities) * sigma)


def test_candidates_come_in_antithetic_pairs_the_plus_end_first() -> None:
    center = torch.randn(5)
    state = pgpe(
        center_init=center, center_learning_rate=0.1, stdev_init=0.5, stdev_learning_rate=0.0, objective_sense="min",
        ranking_method="centered", optimizer="adam",
    )  # fmt: skip
    torch.manual_seed(7)
    candidates = pgpe_ask(state, popsize=8)
    torch.manual_seed(7)
    noise = 0.5 * torch.randn(4, 5)
    torch.testing.assert_close(candidates[0::2], center + noise)
    torch.testing.assert_close(candidates[1::2], center - noise)


@pytest.mark.parametrize(
    ("losses", "ranks"),
    [
        ([3.0, 1.0, 2.0], [-0.5, 0.5, 0.0]),
        ([10.0, 0.1, 0.2, 0.3, 1e9], [-0.25, 0.5, 0.25, 0.0, -0.5]),
        ([1.0, 1.0, 2.0], [0.0, 0.5, -0.5]),  # of equals, the later is better
        ([7.0, 7.0], [-0.5, 0.5]),
        ([inf, 1.0, 2.0], [-0.5, 0.5, 0.0]),
        ([nan, 1.0, inf], [-0.5, 0.5, 0.0]),  # minimized, NaN is worst of all
        ([1.0, nan, nan, 2.0], [0.5, -0.5, -1 / 6, 1 / 6]),
    ],
)
def test_centred_ranks_of_losses(losses: list[float], ranks: list[float]) -> None:
    torch.testing.assert_close(rank(torch.tensor(losses), "centered", higher_is_better=False), torch.tensor(ranks))


def test_nan_would_be_best_if_it_were_maximized() -> None:
    """So the objective is a loss, of sense min, and what diverges gets the penalty besides."""
    assert rank(torch.tensor([nan, 1.0, 2.0]), "centered", higher_is_better=True).tolist() == [0.5, -0.5, 0.0]


def test_ranks_make_it_blind_to_the_scale_of_the_loss() -> None:
    def center_after(scale: float) -> torch.Tensor:
        problem = Quadratic(torch.zeros(4))
        nes = NES(problem, torch.ones(4), NESConfig(population=8))
        problem._evaluate_batch = lambda b: b.set_evals((b.values**2).sum(1) * scale)  # type: ignore[method-assign]
        nes.step()
        return nes.center

    assert torch.equal(center_after(1.0), center_after(1000.0))


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


def test_sgd_follows_sigma_squared_times_the_gradient_of_salimans() -> None:
    nes = NES(Quadratic(torch.zeros(5)), torch.ones(5), NESConfig(population=8, optimizer="sgd", lr=0.7, sigma=0.2, seed=4))
    for _ in range(3):
        center, sigma, lr = nes.center, nes.sigma, nes.lr
        nes.step()
        torch.testing.assert_close(nes.center, center + lr * sigma**2 * salimans(nes, center, sigma))


def test_under_adam_the_scale_of_the_gradient_cancels() -> None:
    """It moves as torch's Adam does along the gradient of Salimans, which is 1 / sigma^2 = 1111 times as long as EvoTorch's."""
    nes = NES(Quadratic(torch.zeros(5)), torch.ones(5), NESConfig(population=8, sigma=0.03, lr=0.01, sigma_half_life=inf, seed=4))
    x = torch.nn.Parameter(torch.ones(5))
    adam = torch.optim.Adam([x], maximize=True)
    for _ in range(5):
        center, sigma = nes.center, nes.sigma
        adam.param_groups[0]["lr"] = nes.lr
        nes.step()
        x.grad = salimans(nes, center, sigma)
        adam.step()
        torch.testing.assert_close(nes.center, x.detach(), rtol=1e-4, atol=1e-6)
    assert (nes.center - 1).abs().max() > 0.03


def test_sigma_is_not_learned() -> None:
    nes = NES(Quadratic(torch.zeros(3)), torch.ones(3), NESConfig(population=4, sigma=0.2, sigma_half_life=5))
    for generation in range(10):
        nes.step()
        torch.testing.assert_close(nes._search.stdev, torch.full((3,), 0.2 * 0.5 ** (generation / 5)))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resume_is_bit_equal_and_leaves_the_global_generator_alone(optimizer: str) -> None:
    def fresh() -> NES:
        return NES(Quadratic(torch.zeros(5)), torch.ones(5), NESConfig(population=6, seed=3, optimizer=optimizer))

    straight = fresh()
    for _ in range(4):
        straight.step()
    saved = {k: torch.as_tensor(v).clone() for k, v in straight.state_dict().items()}
    for _ in range(3):
        straight.step()
    resumed = fresh()
    resumed.load_state_dict(saved)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    for _ in range(3):
        resumed.step()
    assert same(*({k: torch.as_tensor(v) for k, v in nes.state_dict().items()} for nes in (straight, resumed)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_noise_is_a_function_of_seed_and_generation_alone() -> None:
    def noise(seed: int, generation: int, center: float = 0.0, sigma: float = 0.25) -> torch.Tensor:
        torch.manual_seed(int(1000 * center) + generation)  # whatever the global generator does
        nes = NES(Quadratic(torch.zeros(5)), torch.full((5,), center), NESConfig(population=4, sigma=sigma, sigma_half_life=1e9, seed=seed))
        nes.generation = generation
        nes.step()
        return (nes.candidates - center) / sigma

    expected = noise(3, 8)
    assert torch.equal(noise(3, 8), expected)
    torch.testing.assert_close(noise(3, 8, center=2.0, sigma=0.5), expected)
    assert not torch.allclose(noise(3, 9), expected)
    assert not torch.allclose(noise(4, 8), expected)


def test_a_state_of_another_search_changes_nothing() -> None:
    nes = NES(Quadratic(torch.zeros(5)), torch.ones(5), NESConfig(population=4))
    state = nes.state_dict() | {"generation": 7}
    with pytest.raises(KeyError, match="v"):
        nes.load_state_dict({k: v for k, v in state.items() if k != "v"})
    with pytest.raises(ValueError, match=r"m has the shape \(4,\), not \(5,\)"):
        nes.load_state_dict(state | {"m": torch.zeros(4)})
    assert nes.generation == 0
    assert nes.center.tolist() == [1.0] * 5


@pytest.mark.slow
def test_processes_find_what_this_one_finds_to_the_last_bit(ray_ends: None) -> None:
    here, there = quick(), quick(workers=2)
    learned = start(here)
    results = []
    for config in (here, there):
        problem = FineTuning(learned, config, processes(config))
        problem.tasks = generation_tasks(config, 0)
        nes = NES(problem, learned.theta / problem.scale, config.nes)
        nes.step()
        tasks = [(seed, steps) for seed in range(3) for steps in (2, 3)]
        results.append((nes.evaluations, nes.center, problem.runs(nes.center * problem.scale, "meta-validation", tasks)))
        problem.stop()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


@pytest.mark.slow
def test_a_run_begun_by_one_process_is_ended_by_two(tmp_path: Path, ray_ends: None) -> None:
    meta_train(quick(4), tmp_path / "one", progress=False)
    meta_train(quick(2), tmp_path / "two", progress=False)
    meta_train(quick(4, workers=2), tmp_path / "two", progress=False)
    assert same(bits(tmp_path / "one", 4), bits(tmp_path / "two", 4))
