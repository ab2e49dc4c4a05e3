"""A learned schedule: its config, the layers it knows by name, and its meta-parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from l3rs.config import L3RSConfig
from l3rs.errors import CheckpointError
from l3rs.hub import HubMixin


class LearnedOptimizer(Protocol):
    """Anything that can be meta-trained: a flat vector of meta-parameters, and an optimizer for every vector."""

    @property
    def theta(self) -> Tensor:
        """The meta-parameters to start from, float32 (n,)."""
        ...

    def build(self, theta: Tensor, named_parameters: Iterable[tuple[str, nn.Parameter]], total_steps: int) -> torch.optim.Optimizer:
        """The optimizer that meta-parameters `theta` define, for a run of `total_steps` steps."""
        ...


@dataclass(frozen=True, eq=False)
class LearnedSchedule(HubMixin):
    """A learned schedule, as meta-training makes and checkpoints keep it.

    Attributes:
        config: everything about it that is not learned.
        layers: the parameter names that it has learned something for, an embedding or an MLP; empty for a generalist, which fits any
            network.
        theta: float32 (n,), the meta-parameters in the order of `meta_shapes(config, layers)`.
        name: what it is called in messages.
        training: how it was meta-trained; free-form, for people.
    """

    config: L3RSConfig
    layers: tuple[str, ...]
    theta: Tensor
    name: str = "unnamed"
    training: dict[str, Any] = field(default_factory=dict)

    def slots(self, count: int, names: Sequence[str] | None, match: str = "name") -> list[int]:
        """Where each of `count` layers finds what was learned for it, in `layers`; empty for a generalist.

        Names are compared without what wrappers put before them (DistributedDataParallel, torch.compile, a module that holds the
        network). Slots may stay unused. A head of another name gets the head's slots: the head is the module of the last of `layers`, and
        the network's is the one module none of whose parameters is known while others are.

        Args:
            names: of the layers; None if they have none.
            match: `name`, or `position`: the first layer takes the first slot, and so on.

        Raises:
            ValueError: some layer has no slot; the message names the first few and what can be done.
        """
        if not self.layers:
            return []
        if match == "position":
            if count > len(self.layers):
                raise ValueError(f"{self.name} has slots for {len(self.layers)} layers, and there are {count}, with match='position'")
            return list(range(count))
        advice = "; use learned='auto', a generalist, or match='position' if the layers come in the same order"
        if names is None:
            raise ValueError(f"{self.name} knows layers by name, and the parameters have none: pass model.named_parameters(){advice}")
        number = {layer: i for i, layer in enumerate(self.layers)}
        variants = [self._with_known_head(variant) for variant in _without_wrappers(names)]
        missing = [[name for name in variant if name not in number] for variant in variants]
        best = min(range(len(variants)), key=lambda i: len(missing[i]))
        if missing[best]:
            shown, more = ", ".join(missing[best][:3]), len(missing[best]) - 3
            raise ValueError(
                f"{self.name} knows {len(self.layers)} layers by name, but not {shown}{f' and {more} more' if more > 0 else ''}{advice}"
            )
        return [number[name] for name in variants[best]]

    def _with_known_head(self, names: list[str]) -> list[str]:
        """`names`, with those of a head that is called otherwise replaced by those of the head here."""
        head = self.layers[-1].rpartition(".")[0]
        unknown = [name for name in names if name not in set(self.layers)]
        modules = {name.rpartition(".")[0] for name in unknown}
        if len(modules) != 1 or len(unknown) == len(names) or any(name.startswith(f"{head}.") for name in names if name not in unknown):
            return names
        renamed = {name: f"{head}.{name.rpartition('.')[2]}" for name in unknown}
        return [renamed.get(name, name) for name in names] if set(renamed.values()) <= set(self.layers) else names

    def build(self, theta: Tensor, named_parameters: Iterable[tuple[str, nn.Parameter]], total_steps: int) -> torch.optim.Optimizer:
        """L3RS with the meta-parameters `theta` in place of its own."""
        from l3rs.optimizer import L3RS

        return L3RS(named_parameters, total_steps, LearnedSchedule(self.config, self.layers, theta, self.name))

    @classmethod
    def _read(cls, path: Path) -> LearnedSchedule:
        from l3rs.checkpoint import read  # a floor up, as in `build`

        learned = read(path)
        if not learned.theta.isfinite().all():  # `read` itself takes them: meta-training may come by such, and goes on
            raise CheckpointError(f"{path} holds meta-parameters that are not finite; it may be damaged")
        return learned

    def _write(self, path: Path) -> None:
        from l3rs.checkpoint import save

        save(self, path)


def _without_wrappers(names: Sequence[str]) -> Iterator[list[str]]:
    """`names` without `_orig_mod.` and `module.`; then without one module after the other that stands before all of them."""
    names = [name.replace("_orig_mod.", "").removeprefix("module.") for name in names]
    yield names
    while names and all("." in name for name in names) and len({name.split(".", 1)[0] for name in names}) == 1:
        names = [name.split(".", 1)[1] for name in names]
        yield names
