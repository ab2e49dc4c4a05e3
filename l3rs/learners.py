"""The one registry of the optimizers that can be meta-trained: L3RS, and the other learned optimizers.

A learner holds all that differs between them: how it starts, builds an optimizer from meta-parameters, finds and reads them, and scales
the noise of meta-training. Meta-training and deployment use the very same optimizer class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from l3rs.controller.config import L3RSConfig
from l3rs.controller.initial import initial_theta, noise_scale
from l3rs.learned import weights
from l3rs.learned.weights import KINDS, LearnedWeights
from l3rs.networks.create import head_names
from l3rs.networks.description import description_of
from l3rs.optimizer.l3rs import L3RS
from l3rs.schedules import find
from l3rs.schedules.learned import Learned
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError
from l3rs.schedules.sizes import log_sizes

Named = Iterable[tuple[str, nn.Parameter]]


def sizes_of(network: nn.Module) -> tuple[float | None, ...]:
    """The sizes of its layers, to four digits after the point, as in `LearnedSchedule`; none where it has no values yet."""
    head, named = set(head_names(network)), list(network.named_parameters())
    found = log_sizes([p for _, p in named]) or []
    return tuple(None if name in head else round(size, 4) for (name, _), size in zip(named, found, strict=False))


def refuse_unused(settings: Any, because: str, prefix: str = "") -> None:
    """Raises ValueError if a field of these settings, a dataclass, has not its default, as nothing would come of it.

    Args:
        because: what takes no notice of them, such as `search nes`.
        prefix: what an option has before the field's name.
    """
    usual = type(settings)()
    for name in (f.name for f in fields(settings)):
        value = getattr(settings, name)
        if value != getattr(usual, name):
            raise ValueError(f"{prefix}{name} has no effect with {because}: leave it out (got {value})")


@dataclass(frozen=True)
class Start:
    """The settings of the start of meta-training.

    Attributes:
        schedule: the config of L3RS.
        specialist: for L3RS, learns an embedding or an MLP by layer name; a generalist does not.
        files: of L3RS, one schedule by name, path or Hub id, which gives the form too; of another learned optimizer, published
            meta-parameters. None starts anew.
        lr: learning rate of another learned optimizer, see `LearnedWeights`; None takes its usual one.
        seed: of every random draw.
    """

    schedule: L3RSConfig = field(default_factory=L3RSConfig)
    specialist: bool = True
    files: tuple[str, ...] = ()
    lr: float | None = None
    seed: int = 0


class Learner(ABC):
    """An optimizer that can be meta-trained: every flat vector theta of meta-parameters defines one.

    Attributes:
        name: in configs and rows.
        tuned: whether its learning rate needs tuning; if not, it is a multiplier, 1 by default.
        differentiable: whether meta-gradients go through its step.
        by_layer: whether it can learn by the names of one network's layers, as a specialist.
    """

    name: str
    tuned: bool = False
    differentiable: bool = False
    by_layer: bool = False

    def called_after(self, model: str) -> str:
        """The last part of a schedule's default name: the optimizer."""
        return self.name

    @abstractmethod
    def check(self, start: Start) -> None:
        """Raises ValueError if settings belong to another learned optimizer, or contradict each other."""

    @abstractmethod
    def start(self, start: Start, name: str, network: Callable[[], nn.Module]) -> Learned:
        """Makes the first meta-parameters of a meta-training run.

        Args:
            name: of the schedule to come.
            network: makes the network, for a specialist.

        Raises:
            CheckpointError: a file of published meta-parameters cannot be used.
        """

    @abstractmethod
    def build(
        self, learned: Learned, theta: Tensor, named: Named, total_steps: int, lr: float | None = None, guard: bool = True
    ) -> torch.optim.Optimizer:
        """Builds the optimizer that `learned` defines with other meta-parameters, `theta`, (n,).

        Args:
            named: parameters with their names.
            total_steps: K, the length of the run.
            learned: gives the form, and its learning rate.
            theta: the meta-parameters to use.
            lr: of L3RS, VeLO and others, a multiplier of their steps; of those that are `tuned`, a learning rate. None takes the one that
                belongs to `learned`, 1 for L3RS.
            guard: as in `L3RS`; others have none. Meta-training goes without, so that what is learned needs none.
        """

    @abstractmethod
    def load(self, given: str | Path, named: Named = ()) -> Learned:
        """Loads meta-parameters: shipped ones, from a path, or, of L3RS, from the Hub. `auto` chooses by the `named` parameters.

        Raises:
            CheckpointError: there are none, or they cannot be used.
        """

    @abstractmethod
    def read(self, path: Path) -> Learned:
        """Reads a file that meta-training wrote. Raises CheckpointError."""

    @abstractmethod
    def noise_scale(self, learned: Learned, hidden: float) -> Tensor:
        """Gives the strength of the noise on each meta-parameter, (n,); most of them have the strength `hidden`."""


class _L3RS(Learner):
    name = LearnedSchedule.kind
    differentiable = by_layer = True

    def called_after(self, model: str) -> str:
        """The model."""
        return model

    def check(self, start: Start) -> None:
        if start.lr is not None:
            raise ValueError(f"lr is a setting of other optimizers: l3rs has no learning rate (got {start.lr})")
        if len(start.files) > 1:
            raise ValueError(f"start must be one schedule, for l3rs (got {', '.join(start.files)})")
        if start.files:
            return  # the form is the file's
        if start.schedule.by_layer != start.specialist:
            raise ValueError(
                f"specialist is {start.specialist}, with schedule.embedding {start.schedule.embedding} and schedule.controller "
                f"{start.schedule.controller}: a specialist needs an embedding or a layerwise controller, and a generalist neither"
            )

    def start(self, start: Start, name: str, network: Callable[[], nn.Module]) -> LearnedSchedule:
        if start.files:
            return self._going_on(start, name, network)
        if not start.specialist:
            return LearnedSchedule(start.schedule, (), initial_theta(start.schedule, (), start.seed), name)
        made = network()
        layers = tuple(layer for layer, _ in made.named_parameters())
        theta = initial_theta(start.schedule, layers, start.seed, description_of(made))
        return LearnedSchedule(start.schedule, layers, theta, name, sizes=sizes_of(made))

    def _going_on(self, start: Start, name: str, network: Callable[[], nn.Module]) -> LearnedSchedule:
        """Takes up the meta-parameters and the form of an existing schedule, under a new name."""
        (given,) = start.files
        found = find.load(given)
        usual = L3RSConfig()
        for setting in (f.name for f in fields(usual)):
            wanted, its = getattr(start.schedule, setting), getattr(found.config, setting)
            if wanted not in (its, getattr(usual, setting)):
                raise ValueError(f"schedule.{setting} must be that of the start {given}, {its}, or left out (got {wanted})")
        if start.specialist != bool(found.layers):
            what = f"knows {len(found.layers)} layers by name" if found.layers else "knows no layer by name"
            raise ValueError(f"specialist must be {bool(found.layers)} with the start {given}, which {what} (got {start.specialist})")
        sizes = found.sizes
        if found.layers:
            made = network()
            names = [layer for layer, _ in made.named_parameters()]
            try:
                found.slots(len(names), names)
            except ValueError as error:
                raise ValueError(f"start must fit the network (got {given}: {str(error).partition(';')[0]})") from None
            if tuple(names) == found.layers:
                sizes = sizes_of(made)
        return replace(found, name=name, training={}, sizes=sizes)

    def build(self, learned: Learned, theta: Tensor, named: Named, total_steps: int, lr: float | None = None, guard: bool = True) -> L3RS:
        schedule = replace(cast(LearnedSchedule, learned), theta=theta)
        return L3RS(named, total_steps, schedule, lr=1.0 if lr is None else lr, guard=guard)

    def load(self, given: str | Path, named: Named = ()) -> LearnedSchedule:
        return find.resolve(given, list(named)).schedule

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
        refuse_unused(start.schedule, f"optimizer {self.name}", "schedule.")

    def start(self, start: Start, name: str, network: Callable[[], nn.Module]) -> LearnedWeights:
        return weights.starting_weights(self.name, start.lr, name, start.seed, start.files)

    def build(
        self, learned: Learned, theta: Tensor, named: Named, total_steps: int, lr: float | None = None, guard: bool = True
    ) -> torch.optim.Optimizer:
        lr = cast(LearnedWeights, learned).lr if lr is None else lr
        return KINDS[self.name].build(named, theta, total_steps, lr)

    def load(self, given: str | Path, named: Named = ()) -> LearnedWeights:
        return weights.load(given, self.name)

    def read(self, path: Path) -> LearnedWeights:
        return LearnedWeights.read(path)

    def noise_scale(self, learned: Learned, hidden: float) -> Tensor:
        return torch.full((len(learned.theta),), hidden)


LEARNERS: Mapping[str, Learner] = MappingProxyType({learner.name: learner for learner in (_L3RS(), *map(_Other, KINDS))})
"""All that can be meta-trained, by name."""


def load(given: str | Path, **hub: Any) -> Learned:
    """Loads a schedule of L3RS, or the weights of another learned optimizer: shipped, from a path, or from the Hub.

    Args:
        given: a name, path or Hub id, see `l3rs.schedules.find.locate`.
        hub: `token`, `revision` and other arguments of `l3rs.load`.

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
    """Builds the optimizer of a schedule or of other weights, for a run of `total_steps` steps."""
    return LEARNERS[learned.kind].build(learned, learned.theta, named, total_steps, lr)


__all__ = ["LEARNERS", "Learner", "Start", "build", "load"]
