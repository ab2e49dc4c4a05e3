"""The step of L3RS as the paper has it, layer by layer: slow, readable, and what the fast path is tested against.

It shares the names and the shapes of the meta-parameters with the optimizer, and no arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l3rs.controller import meta_shapes, unflatten
from l3rs.schedule import LearnedSchedule


@dataclass
class Layer:
    """What is remembered of one layer between steps."""

    m: Tensor | float = 0.0
    v: Tensor | float = 0.0
    averages: dict[tuple[str, float], float] = field(default_factory=dict)


class ReferenceL3RS:
    """L3RS on named parameters, SGD and Adam as base directions.

    Args:
        named_parameters: name to parameter.
        total_steps: K.
        learned: the schedule.
    """

    def __init__(self, named_parameters: dict[str, Tensor], total_steps: int, learned: LearnedSchedule) -> None:
        self.parameters, self.total_steps, self.learned = named_parameters, total_steps, learned
        self.meta = unflatten(learned.theta, meta_shapes(learned.config, learned.layers))
        self.layers = {name: Layer() for name in named_parameters}
        self.taken = 0  # k, the number of steps before the present one

    def directions(self, layer: Layer, g: Tensor) -> dict[str, Tensor]:
        """The directions of SGD and Adam, uphill."""

        def usual(value: float, name: str) -> float:
            return 1 / (1 + math.exp(-math.log(value / (1 - value)) - float(self.meta[f"adam/{name}"])))

        n = self.taken + 1
        found = {"sgd": g}
        if "adam" in self.learned.config.directions:
            beta1, beta2, eps = usual(0.9, "beta1"), usual(0.999, "beta2"), 1e-8 * math.exp(float(self.meta["adam/eps"]))
            layer.m = beta1 * layer.m + (1 - beta1) * g
            layer.v = beta2 * layer.v + (1 - beta2) * g**2
            m_hat, v_hat = layer.m / (1 - beta1**n), layer.v / (1 - beta2**n)
            found["adam"] = m_hat / (v_hat**0.5 + eps)
        return {name: found[name] for name in self.learned.config.directions}

    def average(self, layer: Layer, signal: str, factor: float, x: float) -> float:
        """The bias-corrected average: a <- g a + (1 - g) x, then a / (1 - g^n)."""
        a = layer.averages.get((signal, factor), 0.0)
        a = factor * a + (1 - factor) * x
        layer.averages[signal, factor] = a
        return a / (1 - factor ** (self.taken + 1))

    def features(self, name: str, theta: Tensor, g: Tensor, loss: float, directions: dict[str, Tensor]) -> list[float]:
        """Section 3.2 of the paper, one number after the other."""
        c, layer = self.learned.config, self.layers[name]

        def log_size(x: Tensor) -> float:
            return math.log(float(x.norm()) / math.sqrt(x.numel()) + c.norm_floor) / c.norm_scale

        signals = {"weights": log_size(theta), "gradient": log_size(g), "loss": loss / c.loss_scale}
        numbers = [self.average(layer, signal, factor, x) for signal, x in signals.items() for factor in c.ema_factors]
        for i in range(c.time_points):
            t_i = i / (c.time_points - 1)
            numbers.append(math.tanh(c.time_slope * (min(self.taken, self.total_steps) / self.total_steps - t_i)))
        numbers += [math.tanh(self.total_steps / s_i - 1) for s_i in c.time_scales]
        numbers += [log_size(d) for d in directions.values()]
        if c.embedding:
            numbers += self.meta["embedding"][self.learned.layers.index(name)].tolist()
        return numbers

    def controller(self, features: list[float]) -> tuple[float, list[float]]:
        """lambda and mu of one layer: two hidden layers with ReLU, then exp and softmax."""
        h = torch.tensor(features, dtype=self.meta["w1"].dtype)
        h = (self.meta["w1"] @ h + self.meta["b1"]).clamp_min(0)
        h = (self.meta["w2"] @ h + self.meta["b2"]).clamp_min(0)
        logits = (self.meta["w3"] @ h + self.meta["b3"]).tolist()
        weights = [math.exp(z) for z in logits[1:]]
        return math.exp(logits[0]), [w / sum(weights) for w in weights]

    def unit(self, theta: Tensor) -> float:
        """The length of a step at lambda = 1."""
        c = self.learned.config
        if c.unit == "l2":
            return 1.0
        if c.unit == "relative":
            return c.lr0 * max(float(theta.norm()), c.relative_floor)
        return c.lr0 * math.sqrt(theta.numel())

    @torch.no_grad()
    def step(self, loss: float) -> None:
        """update(l) = - lambda(l) * sum_p mu_p(l) * d_p(l) / ||d_p(l)||   (Eq. 2)"""
        for name, theta in self.parameters.items():
            g = theta.grad
            if g is None:
                continue
            directions = self.directions(self.layers[name], g)
            lam, mu = self.controller(self.features(name, theta, g, loss, directions))
            update = torch.zeros_like(theta)
            for mu_p, d in zip(mu, directions.values(), strict=True):
                if d.norm() > 0:
                    update -= lam * self.unit(theta) * mu_p * d / d.norm()
            theta += update
        self.taken += 1
