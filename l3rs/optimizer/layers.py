"""The layers that are stepped together, as tables: one row a layer, so that the controller sees and decides all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from l3rs.controller.config import L3RSConfig
from l3rs.controller.decide import Meta, decide
from l3rs.controller.describe import LayerTable, Sizes, describe
from l3rs.controller.features import Averages, TimeFeatures, log_rms, log_scaled, shown_directions
from l3rs.directions import Direction
from l3rs.optimizer.distributed import local, shard_reduction, whole
from l3rs.optimizer.kernels import Norms, choose
from l3rs.optimizer.states import fit, meta


class Controller(NamedTuple):
    """What decides at run time: a schedule's meta-parameters by name, and its directions with their hyperparameters."""

    config: L3RSConfig
    meta: Meta
    directions: Mapping[str, Direction]
    constants: Mapping[str, tuple[float, ...]]

    @property
    def lazy(self) -> tuple[str, ...]:
        """How the keys of states begin that come with the steps, so that nothing is known of them before."""
        return tuple(f"{name}/" for name, d in self.directions.items() if d.lazy)


class Decided(NamedTuple):
    """The last step's lambda, (L,), mu, (L, P), and the bound on the length of each layer's update, in l2 norm, (L,)."""

    lam: Tensor
    mu: Tensor
    lengths: Tensor


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
    made = {kind: initial_state(meta(p), controller) for kind, p in kinds.items()}
    return [made[p.shape, p.dtype] for p in params]


class Network(NamedTuple):
    """All parameters of the optimizer, in order, and what each of them is to the controller."""

    params: Sequence[Tensor]
    table: LayerTable
    place: Mapping[Tensor, int]

    def norm(self, place: int) -> float:
        """The l2 norm of a layer, of all ranks' parts."""
        return float(whole(self.params[place].detach()).float().norm())

    def sizes(self, stepped: Sequence[Tensor], config: L3RSConfig, like: Tensor) -> Sizes:
        """The sizes of the layers that are stepped."""
        numels = [p.numel() for p in self.params]
        return Sizes(self.table, numels, [self.place[p] for p in stepped], self.norm, config, like)

    def descriptors(self, stepped: Sequence[Tensor], config: L3RSConfig) -> Tensor:
        """What the controller is shown of the layers that are stepped, (L, numbers)."""
        return describe(self.table, [p.shape for p in self.params], config.norm_scale)[[self.place[p] for p in stepped]]


class Layers:
    """The parameters of one device that have a gradient, and everything about them that is the same from step to step.

    The numbers of each layer that change, its count of steps and its averages, are rows of two tables, and the entries of its state are
    views of these rows.

    Args:
        params: L of them.
        states: their states in the optimizer.
        slots: where each is in what is learned by layer; empty if nothing is.
        network: all parameters of the optimizer.
        groups: the number of each one's parameter group.
        param_groups: of the optimizer, for k and K.
        controller: of the learned schedule.
        fused: as of `L3RS`.
        where: the places of these parameters among those of all devices.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        slots: Sequence[int],
        network: Network,
        groups: Sequence[int],
        param_groups: Sequence[dict[str, Any]],
        controller: Controller,
        fused: bool | None,
        where: Sequence[int],
    ) -> None:
        config, device = controller.config, params[0].device
        self.config, self.device, self.where = config, device, where
        for p, state, expected in zip(params, states, expected_states(params, controller), strict=True):
            fit(p, state, expected)
        self.steps = torch.stack([state["step"] for state in states])
        self.averages = Averages(torch.stack([state["ema"] for state in states]), config)
        for state, step, ema in zip(states, self.steps.unbind(), self.averages.values.unbind(), strict=True):
            state["step"], state["ema"] = step, ema
        self.root_numel = torch.tensor([float(max(p.numel(), 1)) for p in params], dtype=torch.float32, device=device).sqrt()
        self.time = TimeFeatures([group["total_steps"] for group in param_groups], config, device)
        self.clock = torch.tensor([float(group["step"]) for group in param_groups], dtype=torch.float32, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.group = torch.tensor(groups, device=device)
        learned = {name: t.to(device) for name, t in controller.meta.items()}
        rows = torch.tensor(slots, device=device)
        self.constants = [network.descriptors(params, config).to(device)] if config.descriptors else []
        self.constants += [learned["embedding"][rows]] if config.embedding else []
        self.sizes = network.sizes(params, config, self.root_numel) if config.sized else None
        self.shown = [k for k, name in enumerate(config.directions) if name in shown_directions(config)]
        self.mlp = {n: t[rows] if config.controller == "layerwise" else t for n, t in learned.items() if n[0] in "wb" and len(n) == 2}
        self.trusted = [(k, d) for k, d in enumerate(controller.directions.values()) if type(d).trust is not Direction.trust]
        reduce = shard_reduction(params)  # where parameters are sharded, this rank steps its parts
        if reduce is not None:
            params, states = [local(p) for p in params], [{key: local(t) for key, t in state.items()} for state in states]
        self.kernel = choose(params, states, controller.directions, controller.constants, reduce, fused)
        self.decided: Decided | None = None

    def spread(self, values: Sequence[float | Tensor]) -> float | Tensor:
        """A number of each group as one for all layers where it is the same, else by layer, (L,)."""
        if not any(isinstance(v, Tensor) for v in values):
            if len(set(values)) == 1:
                return values[0]
            table = torch.tensor(values, dtype=torch.float32)
            if self.device.type == "cuda":  # from pinned memory, so that the copy is not waited for
                table = table.pin_memory()
            return table.to(self.device, non_blocking=True)[self.group]
        return torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device).reshape(()) for v in values])[self.group]

    def step(self, grads: Sequence[Tensor], loss: Tensor | None, ok: Tensor, lr: Tensor | float) -> None:
        """One step of all layers.

        Args:
            grads: of each, downhill being their negative.
            loss: (), or (L,) where layers see it differently; None where the schedule sees none.
            ok: a bool, whether the loss is finite.
            lr: the multiplier, one for all or (L,).
        """
        self.steps += 1
        norms = self.kernel.measure(grads, self.steps, ok)
        sizes = self.sizes(norms.weights, norms.grads) if self.sizes else None
        lam, mu = decide(self.mlp, self._features(norms, loss, sizes), self.config.controller)
        lengths = torch.where(norms.ok, lam * self._units(norms, sizes) * lr, 0)
        self.kernel.apply(torch.where(norms.directions > 0, lengths.unsqueeze(1) * mu / norms.directions, 0))
        self.decided = Decided(lam, mu, lengths)
        self.clock += 1
        self.skipped += ~norms.ok

    def _units(self, norms: Norms, sizes: Tensor | None) -> Tensor | float:
        """The length, in l2 norm, of a layer's step at lambda = 1."""
        c = self.config
        if c.unit == "l2":
            return 1.0
        if c.unit == "size":
            assert self.sizes is not None
            return self.sizes.multiplier * cast(Tensor, sizes)
        if c.unit == "relative":
            return c.lr0 * norms.weights.clamp_min(c.relative_floor)
        return c.lr0 * self.root_numel

    def _features(self, norms: Norms, loss: Tensor | None, sizes: Tensor | None) -> Tensor:
        """The controller's inputs for all layers, (L, F), in the order of `feature_names`; advances the averages."""
        c = self.config
        directions = norms.directions.clone() if self.trusted else norms.directions
        for k, direction in self.trusted:
            trust = direction.trust(directions[:, k], norms.weights)
            directions[:, k] *= 1.0 if trust is None else trust
        if len(self.shown) < len(c.directions):
            directions = directions[:, self.shown]
        logs = log_rms(
            torch.cat([norms.weights.unsqueeze(1), norms.grads.unsqueeze(1), directions], dim=1), self.root_numel.unsqueeze(1), c
        )
        seen = {"log_weight_norm": logs[:, 0], "log_grad_norm": logs[:, 1]}
        if loss is not None:
            seen["loss"] = (loss / c.loss_scale).expand(len(logs))
        if sizes is not None:
            seen["log_relative_grad"] = log_scaled(sizes * norms.grads, c)
        signals = torch.stack([seen[signal] for signal in c.signals], dim=1) if c.signals else logs[:, :0]
        averages = self.averages.update(signals, self.steps, norms.ok).flatten(1)
        return torch.cat([averages, self.time(self.clock)[self.group], logs[:, 2:], *self.constants], dim=1)


def finite(grads: Sequence[Tensor]) -> Tensor:
    """A bool on their device: whether all gradients are finite."""
    return torch.stack(torch._foreach_norm(list(grads))).isfinite().all()
