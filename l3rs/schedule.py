"""A learned schedule: its config, the layers it knows by name, and its meta-parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from l3rs.config import L3RSConfig


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
class LearnedSchedule:
    """A learned schedule, as meta-training makes and checkpoints keep it.

    Attributes:
        config: everything about it that is not learned.
        layers: the parameter names that it has an embedding for; empty for a generalist, which fits any network.
        theta: float32 (n,), the meta-parameters in the order of `meta_shapes(config, layers)`.
        name: what it is called in messages.
        training: how it was meta-trained; free-form, for people.
    """

    config: L3RSConfig
    layers: tuple[str, ...]
    theta: Tensor
    name: str = "unnamed"
    training: dict[str, Any] = field(default_factory=dict)

    def slots(self, names: Sequence[str]) -> list[int]:
        """Where in the embedding each of `names` is; empty for a generalist.

        Raises:
            ValueError: some layer has no slot; the message names the first few.
        """
        if not self.layers:
            return []
        number = {layer: i for i, layer in enumerate(self.layers)}
        missing = [n for n in names if n not in number]
        if missing or not names:
            shown = ", ".join(missing[:3]) if names else "none of the parameters has a name (pass model.named_parameters())"
            raise ValueError(
                f"{self.name} knows {len(self.layers)} layers by name, but not {shown}"
                f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; use learned='auto' or a generalist"
            )
        return [number[n] for n in names]

    def build(self, theta: Tensor, named_parameters: Iterable[tuple[str, nn.Parameter]], total_steps: int) -> torch.optim.Optimizer:
        """L3RS with the meta-parameters `theta` in place of its own."""
        from l3rs.optimizer import L3RS

        return L3RS(named_parameters, total_steps, LearnedSchedule(self.config, self.layers, theta, self.name))
