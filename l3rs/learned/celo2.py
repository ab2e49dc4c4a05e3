"""Celo2 and Celo2-base (arXiv 2602.19142): a learned direction for every element, and a learning rate of yours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from l3rs.learned.accumulators import State, initial_state
from l3rs.learned.base import LearnedRule
from l3rs.learned.layout import jax_order
from l3rs.learned.mlp import Member, Rule
from l3rs.learned.theta import count, mlp, mlp_shapes, resolve
from l3rs.optimizer.arguments import at_least_zero, run_length

HIDDEN = 8
SHAPES = mlp_shapes(HIDDEN)
RULE = Rule(rho=0.95, eps=1e-8, delta=1e-9, exponent=0.0, by_matrix=True)
NEWTON_SCHULZ, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
TOGETHER = 1 << 19  # elements orthogonalized together, so that what is between two products stays in the caches
BETAS, EPS = (0.9, 0.95), 1e-8  # of Adam, for vectors
VECTORS = ("adamw", "adam", "learned")


class Celo2(LearnedRule):
    r"""Celo2, "Towards Learned Optimization Free Lunch" (arXiv 2602.19142).

    An MLP of two layers of 8 sees 30 features of each element and gives a direction d, whose matrices (input by output channels, for each
    spatial position) are orthogonalized by Newton and Schulz's iteration, and scaled to a root mean square of 1. The step is
    p <- p - lr (d + weight_decay p): like Muon, it needs a learning rate, and schedulers drive it.

    Vectors, and what `adam_names` matches, are moved by Adam. Both published forms are here:

    - `vectors="adamw"`, that of the model card, `optax.adamw(mult * lr, 0.9, 0.95)`: m_hat / (sqrt(v_hat) + 1e-8), bias-corrected, and
      the multiple is up to you (`adam_lr_mult`, 1 by default);
    - `vectors="adam"`, that of meta-training: m / sqrt(v + 1e-8), not corrected, with 20 times the learning rate;
    - `vectors="learned"`: the learned direction for them too.

    Celo2-base is `orthogonalize=False, vectors="learned"`.

    Args:
        params: parameters, named or not, or groups of them. A group may have its own lr, weight_decay, total_steps, maximize, vectors and
            adam_lr_mult.
        theta: the meta-parameters: (SIZE,), or the published file, `theta.state`, or PyLO's safetensors, or `"icons-celo2-base"`, shipped.
        lr: learning rate.
        total_steps: K, the number of steps of the whole run, over which the learning rate falls to 0 along a cosine, by the clock that is
            saved and that added groups share. None leaves it as it is, for schedulers.
        weight_decay: decoupled, multiplied by the learning rate.
        orthogonalize: whether matrices are.
        vectors: see above.
        adam_lr_mult: of Adam's learning rate; None is the published one, 1 or 20.
        adam_names: a regular expression; parameters whose name holds it go to Adam whatever their shape. The model card has "embed".
        maximize: whether gradients point uphill of what is wanted.
        fused: as in `VeLO`. Adam's part is in torch operations always.

    Raises:
        ValueError: an option is not what it should be; theta is of another size, or cannot be read (a `CheckpointError`); `adam_names` is
            given and parameters have no names; or a parameter is sharded.
        TypeError: a parameter is complex or not floating.
    """

    SIZE = count(SHAPES)
    rule, hidden = RULE, HIDDEN
    multiplies = False
    _kept = (*LearnedRule._kept, "adam_names")
    _newer = ("total_steps",)

    def __init__(
        self,
        params: ParamsT,
        theta: Tensor | str | Path | Sequence[str | Path],
        lr: float | Tensor = 1e-3,
        *,
        total_steps: int | None = None,
        weight_decay: float = 0.0,
        orthogonalize: bool = True,
        vectors: str = "adamw",
        adam_lr_mult: float | None = None,
        adam_names: str | None = None,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        self.adam_names = adam_names
        defaults = {"lr": lr, "total_steps": total_steps, "weight_decay": weight_decay, "orthogonalize": orthogonalize}
        of_vectors = {"vectors": vectors, "adam_lr_mult": adam_lr_mult}
        super().__init__(params, resolve(theta, SHAPES), {**defaults, **of_vectors, "maximize": maximize}, fused)

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        if group["total_steps"] is not None:
            group["total_steps"] = run_length(group["total_steps"])
        if group["vectors"] not in VECTORS:
            raise ValueError(f"vectors must be one of {', '.join(VECTORS)} (got {group['vectors']!r})")
        for name in ("weight_decay", "adam_lr_mult"):
            if group[name] is not None:
                group[name] = at_least_zero(name, group[name])
        if self.adam_names is not None and "param_names" not in group:
            raise ValueError(f"adam_names is {self.adam_names!r}, and the parameters have no names: pass model.named_parameters()")

    def _set_rate(self, group: dict[str, Any]) -> None:
        if group["total_steps"] is not None:
            done = min(group["step"] / group["total_steps"], 1)
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 + math.cos(math.pi * done)) / 2

    def _by_adam(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether Adam moves this parameter."""
        if group["vectors"] != "learned" and p.dim() < 2:
            return True
        if self.adam_names is None:
            return False
        mine = next(name for q, name in zip(group["params"], group["param_names"], strict=True) if q is p)
        return re.search(self.adam_names, mine) is not None

    def _initial_state(self, p: Tensor, group: dict[str, Any], like: Tensor) -> State:
        if self._by_adam(p, group):
            step = torch.zeros((), dtype=torch.float32, device=like.device)
            return {"adam/step": step, "adam/m": torch.zeros_like(like), "adam/v": torch.zeros_like(like)}
        return initial_state(like)

    def _update(self, members: Sequence[Member], loss: Tensor | None) -> Iterator[Tensor]:
        by_mlp = [m for m in members if "adam/m" not in m.state]
        networks = {kind: mlp(self._theta_for(p)) for kind, p in {(m.p.device, m.p.dtype): m.p for m in by_mlp}.items()}
        directions = self._portions.directions(by_mlp, [networks[m.p.device, m.p.dtype] for m in by_mlp])
        for m in members:
            lr, decay = m.group["lr"], m.group["weight_decay"]
            if "adam/m" in m.state:
                corrected = m.group["vectors"] != "adam"
                mult = m.group["adam_lr_mult"]
                lr = lr * ((1.0 if corrected else 20.0) if mult is None else mult)
                change = adam(m, corrected)
            else:
                change = normalized(next(directions), m.group["orthogonalize"])
            yield change.add_(m.p, alpha=decay).mul_(lr) if decay else change.mul_(lr)


def adam(m: Member, corrected: bool) -> Tensor:
    """Adam's direction of one parameter; the published forms differ in the correction and in the place of epsilon."""
    b1, b2 = BETAS
    first, second = m.state["adam/m"], m.state["adam/v"]
    first.lerp_(m.g, 1 - b1)
    second.mul_(b2).addcmul_(m.g, m.g, value=1 - b2)
    m.state["adam/step"] += 1
    if not corrected:
        return first * (second + EPS).rsqrt()
    n = float(m.state["adam/step"])
    step: Tensor = (first / (1 - b1**n)) / ((second / (1 - b2**n)).sqrt() + EPS)
    return step


def normalized(d: Tensor, orthogonalize: bool) -> Tensor:
    """A direction with a root mean square of 1 over its matrix."""
    if orthogonalize and d.dim() > 1:
        d = newton_schulz(d)
    return d.mul_((d.square().mean(RULE.axes(d), keepdim=True) + 1e-9).rsqrt())


def newton_schulz(d: Tensor) -> Tensor:
    """The nearest orthogonal matrices, about, for each spatial position; in the memory of `d` where its layout allows that."""
    order = jax_order(d.dim())
    shape = [d.shape[axis] for axis in order]
    matrices = d.permute(order).reshape(-1, *shape[-2:])  # (spatial positions, in, out)
    for some in matrices.split(max(1, TOGETHER // max(1, shape[-2] * shape[-1]))):
        some.copy_(_orthogonal(some) if shape[-2] <= shape[-1] else _orthogonal(some.mT).mT)
    back: Tensor = matrices.reshape(shape).permute([order.index(axis) for axis in range(d.dim())])
    return back


def _orthogonal(x: Tensor) -> Tensor:
    """Five steps of a quintic iteration (Jordan et al. 2024, Muon) for wide matrices, (n, rows, columns)."""
    x = x.contiguous()
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-8)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b gram + c gram^2) x
    return x
