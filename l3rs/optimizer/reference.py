"""The step of L3RS as the paper has it, layer by layer: slow, readable, and what the fast path is tested against.

It shares the names and the shapes of the meta-parameters with the optimizer, and no arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from l3rs.controller.decide import meta_shapes, unflatten
from l3rs.controller.describe import describe, layer_table
from l3rs.directions.base import NOTHING
from l3rs.schedules.schedule import LearnedSchedule

Moments = dict[str, Any]


@dataclass
class Layer:
    """What is remembered of one layer between steps."""

    taken: int = 0  # steps in which it had a gradient
    moments: Moments = field(default_factory=dict)
    averages: dict[tuple[str, float], float] = field(default_factory=dict)


class ReferenceL3RS:
    """L3RS on named parameters, with the base directions that l3rs has, in every form of the controller.

    Args:
        named_parameters: name to parameter.
        total_steps: K.
        learned: the schedule.
    """

    def __init__(self, named_parameters: dict[str, Tensor], total_steps: int, learned: LearnedSchedule) -> None:
        self.parameters, self.total_steps, self.learned = named_parameters, total_steps, learned
        self.meta = unflatten(learned.theta, meta_shapes(learned.config, learned.layers))
        self.layers = {name: Layer() for name in named_parameters}
        self.names = list(named_parameters)
        self.table = layer_table([p.shape for p in named_parameters.values()], self.names)
        self.taken = 0  # k, the number of steps before the present one

    def between(self, usual: float, name: str) -> float:
        """A hyperparameter in (0, 1): sigmoid(logit(usual) + raw)."""
        return 1 / (1 + math.exp(-math.log(usual / (1 - usual)) - float(self.meta[name])))

    def above(self, usual: float, name: str) -> float:
        """A positive hyperparameter: usual * exp(raw)."""
        return usual * math.exp(float(self.meta[name]))

    def directions(self, layer: Layer, theta: Tensor, g: Tensor) -> dict[str, Tensor]:
        """d_p of every base optimizer p, uphill."""
        return {name: getattr(self, name)(layer.moments, layer.taken + 1, theta, g) for name in self.learned.config.directions}

    def sgd(self, moments: Moments, n: int, theta: Tensor, g: Tensor) -> Tensor:
        return g

    def weight_decay(self, moments: Moments, n: int, theta: Tensor, g: Tensor) -> Tensor:
        return theta.clone()

    def moment_ratio(self, of: str, eps: float, moments: Moments, n: int, g: Tensor) -> Tensor:
        """m_hat / (sqrt(v_hat) + eps), of Adam and of LAMB."""
        beta1, beta2 = self.between(0.9, f"{of}/beta1"), self.between(0.999, f"{of}/beta2")
        m: Tensor
        v: Tensor
        m = moments[f"{of} m"] = beta1 * moments.get(f"{of} m", 0.0) + (1 - beta1) * g
        v = moments[f"{of} v"] = beta2 * moments.get(f"{of} v", 0.0) + (1 - beta2) * g**2
        return (m / (1 - beta1**n)) / ((v / (1 - beta2**n)) ** 0.5 + eps)

    def adam(self, moments: Moments, n: int, theta: Tensor, g: Tensor) -> Tensor:
        return self.moment_ratio("adam", self.above(1e-8, "adam/eps"), moments, n, g)

    def lamb(self, moments: Moments, n: int, theta: Tensor, g: Tensor) -> Tensor:
        r = self.moment_ratio("lamb", self.above(1e-6, "lamb/eps"), moments, n, g)
        r = r + self.above(0.01, "lamb/weight_decay") * theta
        return r * (theta.norm() / r.norm()) if theta.norm() > 0 and r.norm() > 0 else r

    def lion(self, moments: Moments, n: int, theta: Tensor, g: Tensor) -> Tensor:
        beta1, beta2 = self.between(0.9, "lion/beta1"), self.between(0.99, "lion/beta2")
        m = moments.get("lion", torch.zeros_like(g))
        moments["lion"] = beta2 * m + (1 - beta2) * g
        return torch.sign(beta1 * m + (1 - beta1) * g)

    def adamax(self, moments: Moments, n: int, theta: Tensor, g: Tensor) -> Tensor:
        beta1, beta2 = self.between(0.9, "adamax/beta1"), self.between(0.999, "adamax/beta2")
        m = moments["adamax m"] = beta1 * moments.get("adamax m", 0.0) + (1 - beta1) * g
        u = beta2 * moments.get("adamax u", torch.zeros_like(g))
        u = torch.maximum(u, g.abs() + self.above(1e-8, "adamax/eps"))
        moments["adamax u"] = u
        return torch.div(m / (1 - beta1**n), u)

    def average(self, layer: Layer, signal: str, factor: float, x: float) -> float:
        """The bias-corrected average: a <- g a + (1 - g) x, then a / (1 - g^n)."""
        a = layer.averages.get((signal, factor), 0.0)
        a = factor * a + (1 - factor) * x
        layer.averages[signal, factor] = a
        return a / (1 - factor ** (layer.taken + 1))

    def features(self, name: str, theta: Tensor, g: Tensor, loss: float, directions: dict[str, Tensor]) -> list[float]:
        """Section 3.2 of the paper, one number after the other."""
        c, layer = self.learned.config, self.layers[name]

        def log_of(x: float) -> float:
            return math.log(x + c.norm_floor) / c.norm_scale

        def log_size(x: Tensor) -> float:
            return log_of(float(x.norm()) / math.sqrt(max(x.numel(), 1)))

        seen = {
            "log_weight_norm": log_size(theta),
            "log_grad_norm": log_size(g),
            "loss": loss / c.loss_scale,
            "log_relative_grad": log_of(self.size(name) * float(g.norm())),
        }
        numbers = [self.average(layer, signal, factor, seen[signal]) for signal in c.signals for factor in c.ema_factors]
        for i in range(c.time_points):
            t_i = i / (c.time_points - 1)
            numbers.append(math.tanh(c.time_slope * (min(self.taken, self.total_steps) / self.total_steps - t_i)))
        numbers += [math.tanh(self.total_steps / s_i - 1) for s_i in c.time_scales]
        numbers += [log_size(d) for p, d in directions.items() if c.direction_norms == "all" or p in ("adam", "lion", "adamax")]
        if c.descriptors:
            numbers += describe(self.table, [p.shape for p in self.parameters.values()], c.norm_scale)[self.names.index(name)].tolist()
        if c.embedding:
            numbers += self.meta["embedding"][self.learned.layers.index(name)].tolist()
        return numbers

    def controller(self, name: str, features: list[float]) -> tuple[float, list[float]]:
        """lambda and mu of one layer: two hidden layers with ReLU, then exp and softmax."""
        meta = self.meta
        if self.learned.config.controller == "layerwise":
            meta = {key: t[self.learned.layers.index(name)] if t.dim() else t for key, t in meta.items()}
        h = torch.tensor(features, dtype=meta["w1"].dtype)
        h = (meta["w1"] @ h + meta["b1"]).clamp_min(0)
        h = (meta["w2"] @ h + meta["b2"]).clamp_min(0)
        logits = (meta["w3"] @ h + meta["b3"]).tolist()
        weights = [math.exp(z) for z in logits[1:]]
        return math.exp(logits[0]), [w / sum(weights) for w in weights]

    def size(self, name: str) -> float:
        """The norm of a layer's weights, or of those that it is the bias or shift of; of the head, the length that moves logits by 1."""
        c, place = self.learned.config, self.names.index(name)
        theta, (head, bias) = self.parameters[name], self.table.head
        if place in (head, bias) and head is not None:
            grads = [None if i is None else self.parameters[self.names[i]].grad for i in (head, bias)]
            root, inputs = math.sqrt(self.table.classes), math.sqrt(self.table.fan_in[head])
            norms = [float(g.norm()) for g in grads if g is not None]
            if len(norms) < 2:
                return root / (c.feature_rms * inputs)
            of_head, of_bias = norms
            return root * max(of_bias / of_head if of_head > 0 else 0.0, 1 / (c.feature_rms_cap * inputs))
        sized_by = self.parameters[self.names[self.table.sized_by[place]]]
        return max(float(sized_by.norm()), c.relative_floor * math.sqrt(theta.numel()))

    def unit(self, name: str) -> float:
        """The length of a step at lambda = 1."""
        c, theta = self.learned.config, self.parameters[name]
        if c.unit == "l2":
            return 1.0
        if c.unit == "relative":
            return c.lr0 * max(float(theta.norm()), c.relative_floor)
        if c.unit == "size":
            return (c.head_logits if self.names.index(name) in self.table.head else c.lr0) * self.size(name)
        return c.lr0 * math.sqrt(theta.numel())

    @torch.no_grad()
    def step(self, loss: float) -> None:
        """update(l) = - lambda(l) * sum_p mu_p(l) * d_p(l) / ||d_p(l)||   (Eq. 2)"""
        present = {name: theta for name, theta in self.parameters.items() if theta.grad is not None}
        found, seen = {}, {}
        for name, theta in present.items():
            g = theta.grad
            assert g is not None
            found[name] = self.directions(self.layers[name], theta, g)
            seen[name] = self.features(name, theta, g, loss, found[name])
        units = {name: self.unit(name) for name in present}  # before any layer moves
        if self.learned.config.controller == "global":
            mean = [sum(column) / len(seen) for column in zip(*seen.values(), strict=True)]
            seen = dict.fromkeys(seen, mean)
        for name, theta in present.items():
            lam, mu = self.controller(name, seen[name])
            update = torch.zeros_like(theta)
            unit = units[name]
            for mu_p, d in zip(mu, found[name].values(), strict=True):
                if d.norm() > NOTHING:
                    update -= lam * unit * mu_p * d / d.norm()
            theta += update
            self.layers[name].taken += 1
        self.taken += 1
