"""Natural evolution strategies as in Salimans et al. 2017 (arXiv 1703.03864), on EvoTorch's functional PGPE.

With antithetic pairs theta + sigma e_i and theta - sigma e_i, where e_i is drawn from N(0, I), the mean theta descends along

    g = 1 / (n sigma) sum over i of (r_i+ - r_i-) / 2 e_i,

n pairs, whose losses count by their rank r among all of the generation, from -1/2 to 1/2. An optimizer, Adam or SGD, takes the step. The
standard deviation sigma is not learned: like the learning rate it halves at regular intervals, x_g = x_0 * 0.5^(g / half_life).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from l3rs.extras import require

require("l3rs.meta", "meta")


@contextmanager
def something_called_ray() -> Iterator[None]:
    """Where Ray is not installed, gives EvoTorch's import the names that it asks for; in one process it uses none of them."""
    if find_spec("ray") is not None:
        yield
        return
    ray, util = ModuleType("ray"), ModuleType("ray.util")
    vars(ray).update(remote=lambda of: of, ObjectRef=object, util=util)
    vars(util).update(ActorPool=object)
    sys.modules |= {"ray": ray, "ray.util": util}
    try:
        yield
    finally:
        del sys.modules["ray"], sys.modules["ray.util"]


os.environ.setdefault("EVOTORCH_VERBOSE_LEVEL", "-1")  # read at import: no log handlers of its own
with warnings.catch_warnings(), something_called_ray():
    warnings.simplefilter("ignore", DeprecationWarning)  # two of its dependencies', at import
    from evotorch import Problem
    from evotorch.algorithms.functional import pgpe, pgpe_ask, pgpe_tell
    from evotorch.algorithms.searchalgorithm import SearchAlgorithm

from l3rs.meta.config import NESConfig  # noqa: E402

__all__ = ["NES", "Problem", "pgpe", "pgpe_ask", "pgpe_tell"]


class NES(SearchAlgorithm):
    """Minimizes a problem's objective from a starting point.

    One `step()` samples, evaluates and updates. Noise is a function of (seed, generation), and the whole state is a few tensors. So a run
    resumed from `state_dict()` gives the same bits.

    Attributes:
        candidates: (population, n), of the last generation.
        evaluations: (population, 1 + eval_data_length), of the last generation: the loss, and the problem's further data.

    Args:
        problem: to minimize, of sense "min": with "max" EvoTorch ranks a NaN best.
        center: (n,), the start.
        config: population, sigma, learning rate, half-lives, seed.
    """

    def __init__(self, problem: Problem, center: Tensor, config: NESConfig) -> None:
        super().__init__(problem, generation=self._get_generation, center=self._get_center)
        self.config, self.generation = config, 0
        self._search = pgpe(
            center_init=center,
            center_learning_rate=config.lr,
            stdev_init=config.sigma,
            stdev_learning_rate=0.0,
            stdev_max_change=None,
            objective_sense="min",
            ranking_method="centered",
            optimizer=config.optimizer,
            symmetric=True,
        )

    def _get_generation(self) -> int:
        return self.generation

    def _get_center(self) -> Tensor:
        center: Tensor = self._search.optimizer_state.center
        return center

    @property
    def center(self) -> Tensor:
        """The mean of the search distribution, (n,)."""
        return self._get_center()

    @property
    def sigma(self) -> float:
        """The noise standard deviation of the coming generation."""
        return float(self.config.sigma * 0.5 ** (self.generation / self.config.sigma_half_life))

    @property
    def lr(self) -> float:
        """The learning rate of the coming generation."""
        return float(self.config.lr * 0.5 ** (self.generation / self.config.lr_half_life))

    def _step(self) -> None:
        s = self._search
        self._search = s = s._replace(
            stdev=torch.full_like(s.stdev, self.sigma),
            optimizer_state=s.optimizer_state._replace(center_learning_rate=torch.tensor(self.lr)),
        )
        with torch.random.fork_rng(devices=()):  # EvoTorch samples from the global generator
            torch.manual_seed(self.config.seed * 1_000_003 + self.generation)
            candidates = pgpe_ask(s, popsize=self.config.population)
        batch = self.problem.generate_batch(len(candidates), empty=True)
        batch.set_values(candidates)
        self.problem.evaluate(batch)
        self.candidates, self.evaluations = candidates, batch.evals.clone()
        losses = self.evaluations[:, 0]
        self._search = pgpe_tell(s, candidates, losses)
        self.generation += 1
        self.update_status(
            {"mean_loss": losses.mean().item(), "best_loss": losses.min().item(), "spread": losses.std(unbiased=False).item()}
        )

    @property
    def _kept(self) -> tuple[str, ...]:
        """The fields of the centre's optimizer to save; its learning rate follows from the generation."""
        return {"adam": ("center", "m", "v", "t"), "sgd": ("center", "velocity")}[self.config.optimizer]

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors and numbers that `load_state_dict` takes."""
        return {"generation": self.generation, **{name: getattr(self._search.optimizer_state, name) for name in self._kept}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a saved state. Raises KeyError or ValueError, and changes nothing, if it belongs to another search."""
        s = self._search.optimizer_state
        fields = {name: torch.as_tensor(state[name], dtype=getattr(s, name).dtype) for name in self._kept}
        wrong = [name for name, value in fields.items() if value.shape != getattr(s, name).shape]
        if wrong:
            raise ValueError(f"{wrong[0]} has the shape {tuple(fields[wrong[0]].shape)}, not {tuple(getattr(s, wrong[0]).shape)}")
        generation = int(state["generation"])  # all is well: only now change anything
        self.generation, self._search = generation, self._search._replace(optimizer_state=s._replace(**fields))
