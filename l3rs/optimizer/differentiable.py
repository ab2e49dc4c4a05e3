"""The step of L3RS as a differentiable function, for meta-gradients: all layers at once, on flat vectors, nothing in place.

It says what `reference.py` says layer by layer, and is tested against it. Derivatives are exact, with three remarks: Lion's sign has
none; an element whose gradient has always been zero passes none on (Adam's ratio has an infinite slope there); and a layer whose
direction is zero has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from l3rs.controller.decide import Decision, Meta, decide, meta_shapes
from l3rs.controller.describe import describe, layer_table
from l3rs.controller.features import shown_directions
from l3rs.controller.layer_sizes import Sizes
from l3rs.directions import adam, adamax, lamb, lion
from l3rs.directions.base import NOTHING
from l3rs.schedules.schedule import LearnedSchedule


class State(NamedTuple):
    """What a run carries from step to step.

    Attributes:
        theta: (n,), all parameters, one layer after the other.
        averages: (L, signals, factors), the adaptive features before their bias correction.
        moments: of the directions, each (n,), in the order of `DifferentiableL3RS.moments`.
    """

    theta: Tensor
    averages: Tensor
    moments: tuple[Tensor, ...]


KEPT: Mapping[str, tuple[str, ...]] = {"adam": ("m", "v"), "lamb": ("m", "v"), "lion": ("m",), "adamax": ("m", "u")}


class DifferentiableL3RS:
    """L3RS for the layers of one network, in every form of the controller, with the directions that l3rs has.

    Args:
        learned: gives the config and the layers that it knows by name.
        network: all parameters by name; those that require a gradient have one in every step.
        total_steps: K.

    Attributes:
        meta_shapes: names and shapes of the meta-parameters.

    Raises:
        ValueError: the schedule mixes a direction that is not built in, whose derivative is not known.
    """

    def __init__(self, learned: LearnedSchedule, network: Mapping[str, Tensor], total_steps: int) -> None:
        self.config, self.meta_shapes = learned.config, meta_shapes(learned.config, learned.layers)
        self.total_steps: int | Tensor = total_steps  # a tensor where the step is captured
        unknown = [name for name in self.config.directions if not hasattr(self, name)]
        if unknown:
            raise ValueError(f"directions must be built in to have a gradient (got {unknown[0]!r})")
        every, shapes = list(network.values()), [p.shape for p in network.values()]
        trained = [i for i, p in enumerate(every) if p.requires_grad]
        names = list(network)
        self.layer_sizes = [every[i].numel() for i in trained]
        self.slots = torch.tensor(learned.slots(len(trained), [names[i] for i in trained]), dtype=torch.long, device=every[0].device)
        self.moments = tuple(f"{name} {moment}" for name in self.config.directions for moment in KEPT.get(name, ()))
        table = layer_table(shapes, names)
        self.descriptors = describe(table, shapes, self.config.norm_scale)[trained].to(every[0])
        numels = [p.numel() for p in every]
        like = every[0].detach()
        self.sizes: Sizes | None = None
        if self.config.sized:
            self.sizes = Sizes(table, numels, trained, lambda i: float(every[i].detach().norm()), self.config, like)
        self.shown = [k for k, name in enumerate(self.config.directions) if name in shown_directions(self.config)]

    def start(self, theta: Tensor) -> State:
        """The state before the first step."""
        averages = theta.new_zeros(len(self.layer_sizes), len(self.config.signals), len(self.config.ema_factors))
        return State(theta, averages, tuple(torch.zeros_like(theta) for _ in self.moments))

    # -- base directions: d of all layers, and the moments after this step ------------------------------------------------------------

    def sgd(self, meta: Meta, moments: dict[str, Tensor], n: int | Tensor, theta: Tensor, g: Tensor) -> Tensor:
        return g

    def weight_decay(self, meta: Meta, moments: dict[str, Tensor], n: int | Tensor, theta: Tensor, g: Tensor) -> Tensor:
        return theta

    def adam(self, meta: Meta, moments: dict[str, Tensor], n: int | Tensor, theta: Tensor, g: Tensor) -> Tensor:
        return _moment_ratio("adam", above(adam.EPS, meta["adam/eps"]), meta, moments, n, g)

    def lamb(self, meta: Meta, moments: dict[str, Tensor], n: int | Tensor, theta: Tensor, g: Tensor) -> Tensor:
        """Without its trust ratio, which normalizing takes away."""
        ratio = _moment_ratio("lamb", above(lamb.EPS, meta["lamb/eps"]), meta, moments, n, g)
        return ratio + above(lamb.WEIGHT_DECAY, meta["lamb/weight_decay"]) * theta

    def lion(self, meta: Meta, moments: dict[str, Tensor], n: int | Tensor, theta: Tensor, g: Tensor) -> Tensor:
        beta1, beta2 = between(lion.BETA1, meta["lion/beta1"]), between(lion.BETA2, meta["lion/beta2"])
        m = moments["lion m"]
        moments["lion m"] = beta2 * m + (1 - beta2) * g
        return torch.sign(beta1 * m + (1 - beta1) * g)

    def adamax(self, meta: Meta, moments: dict[str, Tensor], n: int | Tensor, theta: Tensor, g: Tensor) -> Tensor:
        beta1, beta2 = between(adamax.BETA1, meta["adamax/beta1"]), between(adamax.BETA2, meta["adamax/beta2"])
        m = moments["adamax m"] = beta1 * moments["adamax m"] + (1 - beta1) * g
        u = moments["adamax u"] = torch.maximum(beta2 * moments["adamax u"], g.abs() + above(adamax.EPS, meta["adamax/eps"]))
        return m / (u * (1 - beta1**n))

    # -- the step ----------------------------------------------------------------------------------------------------------------------

    def norms(self, x: Tensor) -> Tensor:
        """l2 norm of each layer, (L,), of a flat vector."""
        return cast(Tensor, _LayerNorms.apply(x, self.layer_sizes))  # type: ignore[no-untyped-call]

    def time(self, taken: int | Tensor, like: Tensor) -> Tensor:
        """tanh(a (k/K - t_i)), and tanh(K / s_i - 1)."""
        c = self.config
        k, whole = (torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in (taken, self.total_steps))
        points, scales = constant([i / (c.time_points - 1) for i in range(c.time_points)], like), constant(c.time_scales, like)
        return torch.cat([torch.tanh(c.time_slope * ((k / whole).clamp(max=1) - points)), torch.tanh(whole / scales - 1)])

    def features(
        self,
        meta: Meta,
        averages: Tensor,
        weights: Tensor,
        grads: Tensor,
        sizes: Tensor | None,
        directions: Tensor,
        loss: Tensor,
        taken: int | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What the controller sees, (L, F), in the order of `feature_names`, and the averages after this step."""
        c, number = self.config, len(self.layer_sizes)
        root = constant([math.sqrt(max(size, 1)) for size in self.layer_sizes], weights)

        def log_size(norms: Tensor) -> Tensor:
            return torch.log(norms + c.norm_floor) / c.norm_scale

        seen = {
            "log_weight_norm": lambda: log_size(weights / root),
            "log_grad_norm": lambda: log_size(grads / root),
            "loss": lambda: (loss / c.loss_scale).expand(number),
            "log_relative_grad": lambda: log_size(cast(Tensor, sizes) * grads),
        }
        factors = constant(c.ema_factors, weights)
        signals = torch.stack([seen[signal]() for signal in c.signals], dim=1) if c.signals else weights.new_zeros(number, 0)
        averages = factors * averages + (1 - factors) * signals.unsqueeze(2)
        corrected = averages / (1 - factors ** (taken + 1))
        logs = log_size(directions.index_select(1, constant(self.shown, self.slots)) / root.unsqueeze(1))
        blocks = [corrected.flatten(1), self.time(taken, weights).expand(number, -1), logs]
        if c.descriptors:
            blocks.append(self.descriptors)
        if c.embedding:
            blocks.append(meta["embedding"].index_select(0, self.slots))
        return torch.cat(blocks, dim=1), averages

    def units(self, weights: Tensor, sizes: Tensor | None) -> Tensor:
        """The length of a step at lambda = 1, (L,)."""
        c = self.config
        if c.unit == "l2":
            return torch.ones_like(weights)
        if c.unit == "relative":
            return c.lr0 * weights.clamp_min(c.relative_floor)
        if c.unit == "size":
            return cast(Sizes, self.sizes).multiplier * cast(Tensor, sizes)
        return c.lr0 * constant(self.layer_sizes, weights).sqrt()

    def step(self, meta: Meta, state: State, g: Tensor, loss: Tensor, taken: int | Tensor) -> State:
        """update(l) = - lambda(l) * sum_p mu_p(l) * d_p(l) / ||d_p(l)||   (Eq. 2)

        Args:
            meta: the meta-parameters by name.
            state: before the step.
            g: (n,), the gradient at `state.theta`.
            loss: (), of this step's batch.
            taken: k, the number of steps before this one; as a tensor, (), where the step is captured and done again for every k.
        """
        c, theta, moments = self.config, state.theta, dict(zip(self.moments, state.moments, strict=True))
        d = [getattr(self, name)(meta, moments, taken + 1, theta, g) for name in c.directions]
        weights, grads = self.norms(theta), self.norms(g)
        norms = torch.stack([grads if x is g else weights if x is theta else self.norms(x) for x in d], dim=1)
        shown = norms
        if "lamb" in c.directions:  # its trust ratio gives it the weights' norm, in the features alone
            of_lamb = constant([float(name == "lamb") for name in c.directions], norms) > 0
            trusted = of_lamb & (norms > 0) & (weights > 0).unsqueeze(1)
            shown = torch.where(trusted, weights.unsqueeze(1), norms)
        sizes = self.sizes(weights, grads) if self.sizes else None
        features, averages = self.features(meta, state.averages, weights, grads, sizes, shown, loss, taken)
        lam, mu = self.decide(meta, features, taken)
        lengths = lam * self.units(weights, sizes)
        there = norms > NOTHING
        scales = torch.where(there, lengths.unsqueeze(1) * mu / torch.where(there, norms, 1), 0)
        for scale, x in zip(scales.unbind(dim=1), d, strict=True):
            theta = cast(Tensor, _Moved.apply(theta, scale, x, self.layer_sizes))  # type: ignore[no-untyped-call]
        return State(theta, averages, tuple(moments.values()))

    def decide(self, meta: Meta, features: Tensor, taken: int | Tensor) -> Decision:
        """lambda and mu of all layers in the step after `taken` others."""
        mlp = {name: t for name, t in meta.items() if len(name) == 2}
        if self.config.controller == "layerwise":
            mlp = {name: t.index_select(0, self.slots) for name, t in mlp.items()}
        return decide(mlp, features, self.config.controller)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers on the device and in the dtype of a tensor, made once: copies to a device cannot be captured."""
    return _constant(tuple(values), like.dtype, like.device)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def between(usual: float, raw: Tensor) -> Tensor:
    """A hyperparameter in (0, 1): sigmoid(logit(usual) + raw)."""
    return torch.sigmoid(math.log(usual / (1 - usual)) + raw)


def above(usual: float, raw: Tensor) -> Tensor:
    """A positive hyperparameter: usual * exp(raw)."""
    return usual * raw.exp()


def _moment_ratio(of: str, eps: Tensor, meta: Meta, moments: dict[str, Tensor], n: int | Tensor, g: Tensor) -> Tensor:
    """m_hat / (sqrt(v_hat) + eps), of Adam and of LAMB."""
    beta1, beta2 = between(adam.BETA1, meta[f"{of}/beta1"]), between(adam.BETA2, meta[f"{of}/beta2"])  # LAMB has the same
    before = moments[f"{of} m"], moments[f"{of} v"]
    d, moments[f"{of} m"], moments[f"{of} v"] = _MomentRatio.apply(g, *before, beta1, beta2, eps, n)  # type: ignore[no-untyped-call]
    return cast(Tensor, d)


# -- what is computed for every element, with its derivative written out: torch's own would be three times as many passes over memory ------

TINY = 1e-30  # in the place of a root of 0, over which 0 is divided
PIECE = 1 << 16  # elements at a time, so that what comes between stays in the cache


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    at_a_time = PIECE if tensors[0].device.type == "cpu" else max(len(tensors[0]), 1)
    return zip(*(t.split(at_a_time) for t in tensors), strict=True)


def _scaled(x: Tensor, numbers: Tensor, sizes: list[int]) -> Tensor:
    """x, (n,), times a number of each layer, (L,)."""
    if x.device.type == "cpu":
        scaled = torch.empty_like(x)
        for part, number, out in zip(x.split(sizes), numbers.tolist(), scaled.split(sizes), strict=True):
            torch.mul(part, number, out=out)
        return scaled
    return x * numbers[_layer_of(tuple(sizes), x.device)]


@lru_cache(maxsize=16)
def _layer_of(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The layer of each element, (n,)."""
    return torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))


class _LayerNorms(torch.autograd.Function):
    """l2 norm of each layer; the derivative at 0 is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        norms = torch.stack(torch._foreach_norm(list(x.split(sizes))))
        ctx.save_for_backward(x, norms)
        ctx.sizes = sizes
        return norms

    @staticmethod
    def backward(ctx: Any, of_norms: Tensor) -> tuple[Tensor, None]:
        x, norms = ctx.saved_tensors
        return _scaled(x, torch.where(norms > 0, of_norms / norms, 0), ctx.sizes), None


class _Moved(torch.autograd.Function):
    """theta - scale(l) * d, layer by layer."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, scale: Tensor, d: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(scale, d)
        ctx.sizes = sizes
        return theta - _scaled(d, scale, sizes)

    @staticmethod
    def backward(ctx: Any, of_moved: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        scale, d = ctx.saved_tensors
        dots = [torch.dot(a, b) for a, b in zip(of_moved.split(ctx.sizes), d.split(ctx.sizes), strict=True)]
        return of_moved, -torch.stack(dots), _scaled(of_moved, -scale, ctx.sizes), None


class _MomentRatio(torch.autograd.Function):
    """d = m_hat / (sqrt(v_hat) + eps) after m <- beta1 m + (1 - beta1) g and v <- beta2 v + (1 - beta2) g^2; gives d, m and v.

    With q = d' / (1 - beta1^n) / (sqrt(v_hat) + eps), where x' is the derivative of the end with respect to x:
    m' += q, v' -= q m / (sqrt(v_hat) + eps) / (2 sqrt(v_hat) (1 - beta2^n)), and from there to g, to the moments before and to the betas.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, m: Tensor, v: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor, n: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        d, m_after, v_after = torch.empty_like(g), torch.empty_like(g), torch.empty_like(g)
        c1, c2 = 1 - beta1**n, 1 - beta2**n
        for g_, m_, v_, d_, m2, v2 in _pieces(g, m, v, d, m_after, v_after):
            torch.lerp(g_, m_, beta1, out=m2)
            torch.mul(v_, beta2, out=v2).addcmul_(g_ * (1 - beta2), g_)
            torch.div(m2, (v2 / c2).sqrt_().add_(eps).mul_(c1), out=d_)
        ctx.save_for_backward(g, m, v, m_after, v_after, beta1, beta2, eps)
        ctx.n = n
        return d, m_after, v_after

    @staticmethod
    def backward(ctx: Any, of_d: Tensor, of_m: Tensor, of_v: Tensor) -> tuple[Tensor | None, ...]:
        g, m, v, m_after, v_after, beta1, beta2, eps = ctx.saved_tensors
        n = ctx.n
        c1, c2 = 1 - beta1**n, 1 - beta2**n
        of_g, of_m_before, of_v_before = torch.empty_like(g), torch.empty_like(g), torch.empty_like(g)
        of_beta1, of_beta2, of_eps, of_c1, of_c2 = (torch.zeros_like(eps) for _ in range(5))
        parts = (of_d, of_m, of_v, g, m, v, m_after, v_after, of_g, of_m_before, of_v_before)
        for d_, m_, v_, g_, m0, v0, m1, v1, to_g, to_m, to_v in _pieces(*parts):
            root = (v1 / c2).sqrt_()
            below = root + eps
            q = (v1.sign() / c1).mul_(d_).div_(below)  # 0 where v is
            of_root = (q * m1).div_(below).neg_()  # which is also that of eps
            of_eps += of_root.sum()
            of_c1 -= torch.dot(q, m1) / c1
            of_vhat = of_root.div_(root.clamp_min_(TINY)).mul_(0.5)
            of_c2 -= torch.dot(of_vhat, v1) / c2**2
            torch.add(v_, of_vhat.div_(c2), out=to_v)
            torch.add(m_, q, out=to_m)
            of_beta1 += torch.dot(to_m, m0 - g_)
            of_beta2 += torch.dot(to_v, torch.addcmul(v0, g_, g_, value=-1))
            torch.addcmul(to_m * (1 - beta1), to_v, g_ * (2 * (1 - beta2)), out=to_g)
            to_m.mul_(beta1)
            to_v.mul_(beta2)
        of_beta1 -= of_c1 * n * beta1 ** (n - 1)
        of_beta2 -= of_c2 * n * beta2 ** (n - 1)
        return of_g, of_m_before, of_v_before, of_beta1, of_beta2, of_eps, None
