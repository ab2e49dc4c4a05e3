"""The one registry of what can be meta-trained: L3RS, and the other learned optimizers.

Whatever differs between them is here: how meta-training starts, how an optimizer is built from meta-parameters, how these are found and
read, and how strong the noise of meta-training is on each. What was meta-trained is what is deployed: the very same optimizer class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from l3rs.controller.config import L3RSConfig
from l3rs.controller.initial import initial_theta, noise_scale
from l3rs.learned import weights
from l3rs.learned.weights import KINDS, LearnedWeights
from l3rs.networks.describe import describe
from l3rs.optimizer.l3rs import L3RS
from l3rs.schedules import find
from l3rs.schedules.learned import Learned
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError

Named = Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Start:
    """Where meta-training starts.

    Attributes:
        schedule: of L3RS: everything that is not learned.
        specialist: of L3RS: whether something is learned by layer name, an embedding or an MLP, or nothing is (a generalist).
        files: of published meta-parameters of another learned optimizer; none is a random start.
        lr: of another learned optimizer, see `LearnedWeights`; None is its usual one.
        seed: of what is drawn.
    """

    schedule: L3RSConfig = field(default_factory=L3RSConfig)
    specialist: bool = True
    files: tuple[str, ...] = ()
    lr: float | None = None
    seed: int = 0


class Learner(ABC):
    """One optimizer that can be meta-trained: a flat vector theta of meta-parameters, and an optimizer for every vector.

    Attributes:
        name: in configs and rows.
        tuned: whether its learning rate wants tuning; else it is a multiplier, 1 by default.
    """

    name: str
    tuned: bool = False

    @abstractmethod
    def check(self, start: Start) -> None:
        """Raises ValueError where the settings are those of another learned optimizer, or do not go together."""

    @abstractmethod
    def start(self, start: Start, name: str, network: Callable[[], nn.Module]) -> Learned:
        """The meta-parameters that meta-training starts from.

        Args:
            name: what comes out is called.
            network: makes the network, for those that are for its layers.

        Raises:
            CheckpointError: a file of published meta-parameters cannot be used.
        """

    @abstractmethod
    def build(self, learned: Learned, theta: Tensor, named: Named, total_steps: int, lr: float | None = None) -> torch.optim.Optimizer:
        """The optimizer that the meta-parameters `theta`, (n,), define in the place of those of `learned`.

        Args:
            named: parameters with their names.
            total_steps: K, the length of the run.
            lr: None is what belongs to `learned`.
        """

    @abstractmethod
    def load(self, given: str | Path, names: Iterable[str] = ()) -> Learned:
        """What was learned for it: shipped, from a path, or from the Hub. `names` are those of the parameters, for `auto`.

        Raises:
            CheckpointError: there is none, or it cannot be used.
        """

    @abstractmethod
    def read(self, path: Path) -> Learned:
        """Reads a file that meta-training wrote. Raises CheckpointError."""

    @abstractmethod
    def noise_scale(self, learned: Learned, hidden: float) -> Tensor:
        """How strong the noise of meta-training is on each meta-parameter, (n,); `hidden` is that of most of them."""


class _L3RS(Learner):
    name = "l3rs"

    def check(self, start: Start) -> None:
        if start.files or start.lr is not None:
            raise ValueError("start and lr are of another optimizer than l3rs, whose start is `schedule`, and which has no learning rate")
        if start.schedule.by_layer != start.specialist:
            raise ValueError(
                f"specialist is {start.specialist}, with schedule.embedding {start.schedule.embedding} and schedule.controller "
                f"{start.schedule.controller}: a specialist has an embedding or is layerwise, and nothing else does"
            )

    def start(self, start: Start, name: str, network: Callable[[], nn.Module]) -> LearnedSchedule:
        layers: tuple[str, ...] = ()
        description = None
        if start.specialist:
            made = network()
            layers, description = tuple(layer for layer, _ in made.named_parameters()), describe(made)
        theta = initial_theta(start.schedule, layers, start.seed, description)
        return LearnedSchedule(start.schedule, layers, theta, name)

    def build(self, learned: Learned, theta: Tensor, named: Named, total_steps: int, lr: float | None = None) -> L3RS:
        schedule = replace(cast(LearnedSchedule, learned), theta=theta)
        return L3RS(named, total_steps, schedule, lr=1.0 if lr is None else lr)

    def load(self, given: str | Path, names: Iterable[str] = ()) -> LearnedSchedule:
        return find.resolve(given, list(names))

    def read(self, path: Path) -> LearnedSchedule:
        return LearnedSchedule.read(path)

    def noise_scale(self, learned: Learned, hidden: float) -> Tensor:
        schedule = cast(LearnedSchedule, learned)
        return noise_scale(schedule.config, schedule.layers, hidden)


class _Other(Learner):
    """One of `KINDS`."""

    def __init__(self, name: str) -> None:
        self.name, self.tuned = name, KINDS[name].tuned

    def check(self, start: Start) -> None:
        if start.lr is not None and not 0 < start.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite (got {start.lr})")

    def start(self, start: Start, name: str, network: Callable[[], nn.Module]) -> LearnedWeights:
        return weights.starting_weights(self.name, start.lr, name, start.seed, start.files)

    def build(self, learned: Learned, theta: Tensor, named: Named, total_steps: int, lr: float | None = None) -> torch.optim.Optimizer:
        lr = cast(LearnedWeights, learned).lr if lr is None else lr
        return KINDS[self.name].build(named, theta, total_steps, lr)

    def load(self, given: str | Path, names: Iterable[str] = ()) -> LearnedWeights:
        return weights.load(given, self.name)

    def read(self, path: Path) -> LearnedWeights:
        return LearnedWeights.read(path)

    def noise_scale(self, learned: Learned, hidden: float) -> Tensor:
        return torch.full((len(learned.theta),), hidden)


LEARNERS: Mapping[str, Learner] = MappingProxyType({learner.name: learner for learner in (_L3RS(), *map(_Other, KINDS))})
"""All that can be meta-trained, by name."""


def load(given: str | Path, **hub: Any) -> Learned:
    """A schedule of L3RS, or the weights of another learned optimizer: shipped, from a path, or from the Hub.

    Args:
        given: as of `l3rs.schedules.find.locate`.
        hub: `token`, `revision` and so on, as of `l3rs.load`.

    Raises:
        CheckpointError: there is none, or it is neither; the message says what to do.
    """
    path = find.locate(given, **hub)
    try:
        return LearnedSchedule.read(path)
    except CheckpointError as error:
        try:
            return LearnedWeights.read(path)
        except CheckpointError:
            raise find.explained(error, given) from None


def build(learned: Learned, named: Named, total_steps: int, lr: float | None = None) -> torch.optim.Optimizer:
    """The optimizer of what was learned, whichever it is, for a run of `total_steps` steps."""
    return LEARNERS[learned.kind].build(learned, learned.theta, named, total_steps, lr)


__all__ = ["LEARNERS", "Learner", "Start", "build", "load"]
