"""The decision of a step: from what the first pass measured to the length and the mix of every layer's update.

Here in torch operations, which `ForeachKernel` needs between its passes. The compiled kernels do the same in C and in Triton, on the same
tables (`DecisionTables`), and all three advance the same states: so any of them may take the next step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from l3rs.controller.config import CONTROLLERS, SIGNALS
from l3rs.controller.decide import decide
from l3rs.controller.features import Averages, TimeFeatures, log_rms, log_scaled, shown_directions
from l3rs.directions import Direction
from l3rs.directions.base import NOTHING

if TYPE_CHECKING:
    from l3rs.optimizer.kernels import Norms
    from l3rs.optimizer.layers import Controller, Network

UNIT_KINDS = {"rms": 0, "l2": 0, "relative": 1, "size": 2}  # the multiplier alone, times the norm of the weights, times the size
BY_NORM, CONSTANT, OF_THE_HEAD = 0, 1, 2  # what the size of a layer is


class Decided(NamedTuple):
    """The last step's lambda, (L,), mu, (L, P), and the bound on the length of each layer's update, in l2 norm, (L,)."""

    lam: Tensor
    mu: Tensor
    lengths: Tensor


class DecisionTables(NamedTuple):
    """All that compiled kernels read and write of a decision: whole numbers, numbers, and tensors, each contiguous on one device.

    Attributes:
        form: by name: the numbers of layers, groups, signals, factors, points and scales of time, directions, directions shown, constants
            of a layer, inputs, hidden units; the kinds of controller and unit (places in `CONTROLLERS` and `UNIT_KINDS`); the places of
            the head's weights and biases, -1 without such a pair.
        signals: each one's place in `SIGNALS`.
        shown: the places of the directions whose norm is a feature.
        numbers: by name.
        tensors: by name; float32, but for places, which are int64, and for log_factors, float64.
    """

    form: dict[str, int]
    signals: tuple[int, ...]
    shown: tuple[int, ...]
    numbers: dict[str, float]
    tensors: dict[str, Tensor]


class Decider:
    """The controller of the L layers of one device.

    The numbers of each layer that change, its count of steps and its averages, are rows of two tables, and the entries of its state are
    views of these rows.

    Args:
        params: of the layers.
        states: of these.
        slots: where each is in what is learned by layer; empty if nothing is.
        network: all parameters of the optimizer.
        groups: the number of each one's parameter group.
        param_groups: of the optimizer, for k and K.
        controller: of the learned schedule.

    Attributes:
        result: of the last step; None before the first.
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
    ) -> None:
        config, device = controller.config, params[0].device
        self.config, self.device = config, device
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
        self.result: Decided | None = None

    def __call__(self, norms: Norms, loss: Tensor | None, lr: Tensor | float) -> Tensor:
        """What each direction of each layer is multiplied by, (L, P). Advances the averages, the clock and the count of skipped steps.

        Args:
            norms: of this step.
            loss: (), or (L,) where layers see it differently; None where the schedule sees none.
            lr: the multiplier, one for all or (L,).
        """
        sizes = self.sizes(norms.weights, norms.grads) if self.sizes else None
        lam, mu = decide(self.mlp, self._features(norms, loss, sizes), self.config.controller)
        lengths = torch.where(norms.ok, lam * self._units(norms, sizes) * lr, 0)
        self.result = Decided(lam, mu, lengths)
        self.clock += 1
        self.skipped += ~norms.ok
        return torch.where(norms.directions > NOTHING, lengths.unsqueeze(1) * mu / norms.directions, 0)

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

    def tables(self) -> DecisionTables:
        """The same, for compiled kernels.

        Raises:
            ValueError: a table has another form than the config says, or a place that there is not.
        """
        c, sizes, layers = self.config, self.sizes, len(self.steps)
        constants = torch.cat(self.constants, dim=1) if self.constants else self.steps.new_zeros(layers, 0)
        w1, w2 = self.mlp["w1"], self.mlp["w2"]
        pair = (-1, -1) if sizes is None or sizes.pair is None else tuple(sizes.pair)
        form = {
            "layers": layers,
            "groups": len(self.clock),
            "signals": len(c.signals),
            "factors": len(c.ema_factors),
            "points": c.time_points,
            "scales": len(c.time_scales),
            "directions": len(c.directions),
            "shown": len(self.shown),
            "constants": constants.shape[1],
            "inputs": w1.shape[-1],
            "hidden1": w1.shape[-2],
            "hidden2": w2.shape[-2],
            "controller": CONTROLLERS.index(c.controller),
            "unit": UNIT_KINDS[c.unit],
            "sized": int(sizes is not None),
            "head": pair[0],
            "head_bias": pair[1],
        }
        numbers = {
            "slope": c.time_slope,
            "norm_scale": c.norm_scale,
            "norm_floor": c.norm_floor,
            "loss_scale": c.loss_scale,
            "floor": c.relative_floor,
            "root": 0.0 if sizes is None else sizes.root,
        }
        ones = torch.ones_like(self.root_numel)
        units = {"rms": c.lr0 * self.root_numel, "l2": ones, "relative": c.lr0 * ones}
        size_kind = torch.zeros_like(self.group)
        if sizes is not None:
            if sizes.fixed is not None:
                size_kind[sizes.fixed] = CONSTANT
            if sizes.pair is not None:
                size_kind[sizes.of_head] = OF_THE_HEAD
        tensors = {
            "steps": self.steps,
            "ema": self.averages.values,
            "clock": self.clock,
            "group": self.group,
            "root_numel": self.root_numel,
            "factors": self.averages.factors,
            "totals": self.time.totals,
            "points": self.time.points,
            "absolute": self.time.absolute,
            "log_factors": torch.tensor([math.log(g) if g > 0 else -math.inf for g in c.ema_factors], dtype=torch.float64),
            "unit": units[c.unit] if sizes is None or c.unit != "size" else sizes.multiplier,
            "size_kind": size_kind,
            "size_row": size_kind if sizes is None else sizes.rows,
            "size_floor": ones if sizes is None else sizes.floor,
            "size_constant": ones if sizes is None else sizes.constants,
            "constants": constants,
            "lam": torch.zeros_like(ones),
            "lengths": torch.zeros_like(ones),
            **self.mlp,
            "mu": self.steps.new_zeros(layers, len(c.directions)),
        }
        tensors = {name: t.to(self.device).contiguous() for name, t in tensors.items()}
        places = tuple(map(SIGNALS.index, c.signals))
        tables = DecisionTables(form, places, tuple(self.shown), numbers, tensors)
        _check(tables)
        return tables


def _check(tables: DecisionTables) -> None:
    """Raises ValueError where a table is not as its form says: compiled code is told no shapes, and trusts every place."""
    f, t = tables.form, tables.tensors
    each = (f["layers"],) if f["controller"] == CONTROLLERS.index("layerwise") else ()
    layers, outputs = (f["layers"],), 1 + f["directions"]
    shapes: Mapping[str, tuple[int, ...]] = {
        **dict.fromkeys(("steps", "group", "root_numel", "unit", "size_kind", "size_row", "size_floor", "size_constant"), layers),
        "lam": layers,
        "lengths": layers,
        "mu": (*layers, f["directions"]),
        "constants": (*layers, f["constants"]),
        "ema": (*layers, f["signals"], f["factors"]),
        "factors": (f["factors"],),
        "log_factors": (f["factors"],),
        "clock": (f["groups"],),
        "totals": (f["groups"],),
        "points": (f["points"],),
        "absolute": (f["groups"], f["scales"]),
        "w1": (*each, f["hidden1"], f["inputs"]),
        "b1": (*each, f["hidden1"]),
        "w2": (*each, f["hidden2"], f["hidden1"]),
        "b2": (*each, f["hidden2"]),
        "w3": (*each, outputs, f["hidden2"]),
        "b3": (*each, outputs),
    }
    places = {"group": f["groups"], "size_row": f["layers"], "size_kind": OF_THE_HEAD + 1}
    for name, shape in shapes.items():
        dtype = torch.int64 if name in places else torch.float64 if name == "log_factors" else torch.float32
        if tuple(t[name].shape) != shape or t[name].dtype != dtype:
            raise ValueError(f"{name} of a controller must be {dtype} of shape {shape} (got {t[name].dtype}, {tuple(t[name].shape)})")
    inputs = f["signals"] * f["factors"] + f["points"] + f["scales"] + f["shown"] + f["constants"]
    if inputs != f["inputs"]:
        raise ValueError(f"a controller of {f['inputs']} inputs must see as many features (got {inputs})")
    for name, end in places.items():
        if not ((t[name] >= 0) & (t[name] < end)).all():
            raise ValueError(f"{name} must be places from 0 to {end - 1} (got {t[name].tolist()})")
    if max(f["head"], f["head_bias"]) >= f["layers"] or (f["head"] < 0) != (f["head_bias"] < 0):
        raise ValueError(f"the head's places must be two of {f['layers']} layers (got {f['head']} and {f['head_bias']})")
