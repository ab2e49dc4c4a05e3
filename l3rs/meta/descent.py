"""Searches that follow meta-gradients: Adam on the schedule's meta-parameters, alone or before evolution strategies."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.nes import NES
from l3rs.meta.problem import FineTuning

BETAS = 0.9, 0.99  # of Adam: a run has some hundred steps, and the second moment remembers a hundred


class Search(Protocol):
    """What meta-training asks of a search, one step at a time."""

    @property
    def generation(self) -> int:
        """How many steps it has taken."""
        ...

    @property
    def evaluations(self) -> Tensor:
        """The last step's, (n, 3): the loss of each candidate or task, whether it diverged, whether it met an error."""
        ...

    @property
    def status(self) -> Any:
        """The last step's mean_loss, best_loss and spread."""
        ...

    @property
    def center(self) -> Tensor:
        """Where it is, (n,), divided by the scale of the noise."""
        ...

    @property
    def sigma(self) -> float:
        """Standard deviation of the coming step's noise; 0 without any."""
        ...

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        ...

    def step(self) -> None:
        """Evaluates and updates, once."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers from which `load_state_dict` goes on, to the same bits."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved state. Raises KeyError or ValueError, and changes nothing, where it is not one of this search."""


def clipped(g: Tensor, largest: float) -> Tensor:
    """`g`, or where its norm is above `largest`, its direction at that norm: no single task decides a step."""
    long = g.double()  # in which no finite float32 gradient has a norm beyond what can be written
    return (long * (largest / max(float(long.norm()), largest))).to(g)


class Descent:
    """Adam on the mean of the tasks' meta-gradients, each clipped to a norm, with a learning rate that falls to 0 along a cosine.

    Gradients are summed in the order of the tasks, so that the sum does not depend on the number of processes. A task whose run diverged
    or met an error teaches nothing in that step.

    Args:
        problem: gives the meta-gradients of the tasks that were set in it.
        center: (n,), where to start, divided by `problem.scale`.
        config: learning rate and clip.
        steps: length of the cosine.
    """

    def __init__(self, problem: FineTuning, center: Tensor, config: MetaTrainConfig, steps: int) -> None:
        self.problem, self.config, self.steps = problem, config.gradient, steps
        self.generation, self._parameter = 0, nn.Parameter(center * problem.scale)
        self._adam = torch.optim.Adam([self._parameter], config.gradient.lr, betas=BETAS)
        self.evaluations, self.status = torch.zeros(0, 3), dict[str, float]()

    @property
    def theta(self) -> Tensor:
        """The meta-parameters, (n,)."""
        return self._parameter.detach().clone()

    @property
    def center(self) -> Tensor:
        return self.theta / self.problem.scale

    @property
    def sigma(self) -> float:
        return 0.0

    @property
    def lr(self) -> float:
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * min(self.generation / self.steps, 1)))

    def step(self) -> None:
        found = self.problem.gradients(self.theta)
        self.evaluations = torch.tensor([(task.loss, float(task.diverged), float(bool(task.error))) for task in found])
        losses = self.evaluations[:, 0]
        self.status = {
            "mean_loss": losses.mean().item(), "best_loss": losses.min().item(), "spread": losses.std(unbiased=False).item(),
        }  # fmt: skip
        taught = [clipped(task.theta, self.config.clip) for task in found if not (task.diverged or task.error)]
        if taught:
            self._parameter.grad = sum(taught[1:], start=taught[0]) / len(taught)
            self._adam.param_groups[0]["lr"] = self.lr
            self._adam.step()
        self.generation += 1

    def state_dict(self) -> dict[str, Any]:
        return {"generation": self.generation, "theta": self.theta, **self._adam.state_dict()["state"].get(0, {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        kept = {name: torch.as_tensor(t) for name, t in state.items() if name != "generation"}
        generation, theta = int(state["generation"]), kept.pop("theta")
        if kept and kept.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise KeyError(", ".join(kept))
        wrong = next((name for name, t in {"theta": theta, **kept}.items() if name != "step" and t.shape != self._parameter.shape), None)
        if wrong is not None:
            raise ValueError(
                f"{wrong} must have the shape {tuple(self._parameter.shape)} (got {tuple({'theta': theta, **kept}[wrong].shape)})"
            )
        self.generation = generation  # all is there; only now is anything changed
        with torch.no_grad():
            self._parameter.copy_(theta)
        self._adam.load_state_dict({**self._adam.state_dict(), "state": {0: kept} if kept else {}})


class DescentThenNES:
    """`Descent` for a share of the generations, and evolution strategies from where it ended.

    Args:
        problem, center, config: as in `Descent`.
    """

    def __init__(self, problem: FineTuning, center: Tensor, config: MetaTrainConfig) -> None:
        self.problem, self.config = problem, config
        self.first = config.descends
        self.descent = Descent(problem, center, config, self.first)
        self.nes: NES | None = None

    @property
    def now(self) -> Descent | NES:
        """The search of the last step."""
        return self.descent if self.nes is None else self.nes

    @property
    def generation(self) -> int:
        return self.descent.generation + (0 if self.nes is None else self.nes.generation)

    @property
    def center(self) -> Tensor:
        return self.now.center

    @property
    def _turns(self) -> bool:
        """Whether the coming step is the first of the evolution strategies."""
        return self.nes is None and self.descent.generation >= self.first

    @property
    def sigma(self) -> float:
        return self.config.nes.sigma if self._turns else self.now.sigma

    @property
    def lr(self) -> float:
        return self.config.nes.lr if self._turns else self.now.lr

    @property
    def evaluations(self) -> Tensor:
        return self.now.evaluations

    @property
    def status(self) -> Any:
        return self.now.status

    def step(self) -> None:
        if self._turns:
            self.nes = NES(self.problem, self.descent.center, self.config.nes)
        self.now.step()

    def state_dict(self) -> dict[str, Any]:
        theirs = {"descent": self.descent.state_dict()} | ({} if self.nes is None else {"nes": self.nes.state_dict()})
        return {f"{which}/{name}": value for which, state in theirs.items() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Any]] = {"descent": {}, "nes": {}}
        for key, value in state.items():
            which, _, name = key.partition("/")
            parts[which][name] = value
        nes = None
        if parts["nes"]:
            nes = NES(self.problem, self.descent.center, self.config.nes)
            nes.load_state_dict(parts["nes"])
        self.descent.load_state_dict(parts["descent"])
        self.nes = nes


def search_for(problem: FineTuning, center: Tensor, config: MetaTrainConfig) -> Search:
    """The search that the config names."""
    if config.search == "gradient":
        return Descent(problem, center, config, config.generations)
    if config.search == "both":
        return DescentThenNES(problem, center, config)
    return NES(problem, center, config.nes)
