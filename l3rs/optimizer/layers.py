"""The layers that are stepped together, as tables: one row a layer, so that the controller sees and decides all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l3rs.controller.config import L3RSConfig
from l3rs.controller.decide import Meta, meta_shapes, unflatten
from l3rs.controller.describe import LayerTable, describe, layer_table
from l3rs.controller.layer_sizes import Sizes
from l3rs.directions import Direction, direction
from l3rs.directions.base import HALF
from l3rs.optimizer.decision import Decided, Decider
from l3rs.optimizer.distributed import full, local, shard_reduction
from l3rs.optimizer.kernels import Kernel, kernel_class
from l3rs.optimizer.states import stand_in
from l3rs.schedules.schedule import LearnedSchedule


class Controller(NamedTuple):
    """What decides at run time: a schedule's meta-parameters by name, and its directions with their hyperparameters."""

    config: L3RSConfig
    meta: Meta
    directions: Mapping[str, Direction]
    constants: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, learned: LearnedSchedule) -> Controller:
        """That of a schedule."""
        config = learned.config
        directions = {name: direction(name) for name in config.directions}
        numbers = unflatten(learned.theta.detach().float(), meta_shapes(config, learned.layers))
        raw = {name: {h: float(numbers[f"{name}/{h}"]) for h in d.hyperparameters} for name, d in directions.items()}
        return cls(config, numbers, directions, {name: d.constants(raw[name]) for name, d in directions.items()})

    @property
    def lazy(self) -> tuple[str, ...]:
        """How the keys of states begin that come with the steps, so that nothing is known of them before."""
        return tuple(f"{name}/" for name, d in self.directions.items() if d.lazy)


def initial_state(param: Tensor, controller: Controller) -> dict[str, Tensor]:
    """The state of one parameter before its first step: how many it has taken, its averages, and what its directions keep."""
    state = {f"{name}/{key}": t for name, d in controller.directions.items() for key, t in d.init(param).items()}
    like: dict[str, Any] = {"dtype": torch.float32, "device": param.device}
    state["step"] = torch.zeros((), **like)
    state["ema"] = torch.zeros(len(controller.config.signals), len(controller.config.ema_factors), **like)
    return state


def expected_states(params: Sequence[Tensor], controller: Controller) -> list[dict[str, Tensor]]:
    """The states that parameters of these shapes and dtypes start with, for comparison: on the meta device."""
    kinds = {(p.shape, p.dtype): p for p in params}
    made = {kind: initial_state(stand_in(p), controller) for kind, p in kinds.items()}
    return [made[p.shape, p.dtype] for p in params]


class Network(NamedTuple):
    """All parameters of the optimizer, in order, and what each of them is to the controller."""

    params: Sequence[Tensor]
    names: Sequence[str] | None
    given_head: str | None
    shapes: Sequence[torch.Size]
    table: LayerTable
    place: Mapping[Tensor, int]

    @classmethod
    def of(cls, params: Sequence[Tensor], names: Sequence[str] | None, head: str | None, shapes: Sequence[torch.Size] = ()) -> Network:
        """Of parameters with names, if they have some, and of these shapes, or their own; `head` is as in `L3RS`."""
        shapes = shapes or [p.shape for p in params]
        return cls(params, names, head, shapes, layer_table(shapes, names, head), {p: i for i, p in enumerate(params)})

    def now(self) -> Network:
        """The same network, as its shapes are now: a head may have been given more classes. Memory that was freed makes no other shape."""
        shapes = [p.shape if p.numel() else before for p, before in zip(self.params, self.shapes, strict=True)]
        return self if shapes == self.shapes else Network.of(self.params, self.names, self.given_head, shapes)

    def norm(self, place: int) -> float:
        """The l2 norm of a layer, of all ranks' parts."""
        return float(full(self.params[place].detach()).float().norm())

    def sizes(self, stepped: Sequence[Tensor], config: L3RSConfig, like: Tensor) -> Sizes:
        """The sizes of the layers that are stepped."""
        numels = [shape.numel() for shape in self.shapes]
        return Sizes(self.table, numels, [self.place[p] for p in stepped], self.norm, config, like)

    def descriptors(self, stepped: Sequence[Tensor], config: L3RSConfig) -> Tensor:
        """What the controller is shown of the layers that are stepped, (L, numbers)."""
        return describe(self.table, self.shapes, config.norm_scale)[[self.place[p] for p in stepped]]


class Layers:
    """The parameters of one device that have a gradient, and what is the same from step to step: their decision, and their kernel.

    Args:
        params: L of them.
        states: their states in the optimizer, which fit them.
        decision: of these layers.
        controller: of the learned schedule.
        fused: as in `L3RS`.
        where: the places of these parameters among those of all devices.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        decision: Decider,
        controller: Controller,
        fused: bool | None,
        where: Sequence[int],
    ) -> None:
        self.device, self.where, self.decision = params[0].device, where, decision
        reduce = shard_reduction(params)  # where parameters are sharded, this rank steps its parts
        if reduce is not None:
            params, states = [local(p) for p in params], [{key: local(t) for key, t in state.items()} for state in states]
        kind = kernel_class(params, controller.directions, controller.config, fused)
        self.kernel: Kernel = kind(params, states, controller.directions, controller.constants, reduce, decision)

    @property
    def decided(self) -> Decided | None:
        """What the last step was; None before the first."""
        return self.decision.result

    def step(
        self, grads: Sequence[Tensor], loss: Tensor | None, ok: Tensor | None, lrs: Sequence[float | Tensor], signs: Sequence[float]
    ) -> None:
        """One step of all layers.

        Args:
            grads: of each, downhill being their negative.
            loss: of one element, or None; a schedule that does not see it only asks whether it is finite.
            ok: a bool on this device, whether all devices may step; None where this is the only one.
            lrs: the multiplier of each group.
            signs: of the loss, of each group: -1 where it is maximized.
        """
        self.kernel.step(grads, loss, ok, lrs, signs)


def finite(grads: Sequence[Tensor]) -> Tensor:
    """A bool on their device: whether all gradients are finite, and their squares too."""
    wide = [g.float() if g.dtype in HALF else g for g in grads]  # a sum of squares overflows early in float16
    norms = torch._foreach_norm(wide)
    return torch.stack(torch._foreach_mul(norms, norms)).isfinite().all()
