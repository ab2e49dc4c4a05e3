"""small_fc_lopt (arXiv 2203.11860) and muLO (arXiv 2406.00153): one MLP moves every element of every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.optimizer import ParamsT

from l3rs.learned.accumulators import DECAYS, WIDTHS, State, initial_state
from l3rs.learned.base import LearnedRule
from l3rs.learned.mlp import MLP, Member, Rule
from l3rs.learned.theta import Shapes, Theta, count, resolve

HIDDEN = 32
TIMESCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)  # steps
RULE = Rule(
    rho=0.999,
    eps=1e-6,
    delta=1e-5,
    exponent=0.001,
    by_matrix=False,
    clip=1e15,  # so that squares stay finite [choice]; the originals do not clip
    of_vectors=1e-6,
)
ROWS = [i for i in range(sum(WIDTHS)) if i not in (1, 14)]  # of `features`, without the clipped gradient and g s
INPUTS = len(ROWS) + len(TIMESCALES)
NETWORK = "nn/~/"
SHAPES: Shapes = {
    "momentum_decays": (len(DECAYS),),
    "rms_decays": (1,),
    "adafactor_decays": (len(DECAYS),),
    f"{NETWORK}w0": (INPUTS, HIDDEN),
    f"{NETWORK}b0": (HIDDEN,),
    f"{NETWORK}w1": (HIDDEN, HIDDEN),
    f"{NETWORK}b1": (HIDDEN,),
    f"{NETWORK}w2": (HIDDEN, 2),
    f"{NETWORK}b2": (2,),
}


class Decays(NamedTuple):
    """Of momentum, (3,), of the mean square, (), and of the row and column means, (3,)."""

    momentum: Tensor
    second: Tensor
    factors: Tensor


def decays(theta: Theta, dtype: torch.dtype) -> Decays:
    """0.9, 0.99, 0.999 (and 0.999) as the offsets of theta move them: log(1 - decay) by ten times the offset."""

    def moved(initial: Sequence[float], name: str) -> Tensor:
        return 1 - (((1 - torch.tensor(initial, dtype=dtype, device="cpu")).log() / 10 + theta[name].to("cpu", dtype)) * 10).exp()

    second, factors = moved((RULE.rho,), "rms_decays"), moved(DECAYS, "adafactor_decays")
    return Decays(moved(DECAYS, "momentum_decays"), second.clamp(0, 1)[0], factors.clamp(0, 1))


def network(theta: Theta, step: int, like: Tensor) -> MLP:
    """The MLP at a step (0 for the first): what does not depend on the element, the clock's tanh(step / timescale - 1), is in b0."""
    w0, b0, w1, b1, w2, b2 = (theta[NETWORK + name].to(like) for name in ("w0", "b0", "w1", "b1", "w2", "b2"))
    clock = torch.tanh(step / torch.tensor(TIMESCALES, dtype=like.dtype) - 1).to(like)
    padded = w0.new_zeros(sum(WIDTHS), HIDDEN)
    padded[ROWS] = w0[: len(ROWS)]
    return MLP(padded, b0 + clock @ w0[len(ROWS) :], w1, b1, functional.pad(w2, (0, 1)), functional.pad(b2, (0, 1)))


class SmallFC(LearnedRule):
    """small_fc_lopt, "Practical tradeoffs between memory, compute, and performance in learned optimizers" (arXiv 2203.11860).

    An MLP of two layers of 32 sees 39 numbers of each element: 28 features, each divided by its root mean square over the tensor (the
    gradient, the parameter, momentum at three decays, their mean squares, Adafactor's row and column means, and ratios of these), and the
    clock on eleven scales. It gives a direction d and a log magnitude k, and the step is p <- p - 0.001 lr d exp(0.001 k). The seven decays
    are meta-parameters too. There is no learning rate to tune: `lr` is 1; and no loss to give, and no number of steps.

    Each step of a trajectory is checked against learned_optimization's `AdafacMLPLOpt` with 32 hidden units (version 0.0.1 of PyPI, with
    the 1e-6 beside a vector's mean squares that later revisions, and PyLO, have). No published weights were run.

    Args:
        params: parameters, or groups of them. A group may have its own lr and maximize.
        theta: the meta-parameters: (SIZE,), or a file: flax's msgpack, or PyLO's safetensors, which have the MLP alone; the offsets of its
            decays are then those that PyLO has for every such file, or those of a second file.
        lr: a multiplier.
        maximize: whether gradients point uphill of what is wanted.
        fused: as in `VeLO`.

    Raises:
        ValueError: an option is not what it should be, or theta is of another size, or cannot be read (a `CheckpointError`); or a
            parameter is sharded.
        TypeError: a parameter is complex or not floating.
    """

    STEP = 0.001
    SIZE = count(SHAPES)
    hidden = HIDDEN
    _kept = (*LearnedRule._kept, "rule")

    def __init__(
        self,
        params: ParamsT,
        theta: Tensor | str | Path | Sequence[str | Path],
        lr: float | Tensor = 1.0,
        *,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        values = resolve(theta, SHAPES)
        betas = decays(values, torch.float64)
        self.rule = RULE._replace(rho=betas.second.item(), momentum=tuple(betas.momentum.tolist()), factors=tuple(betas.factors.tolist()))
        super().__init__(params, values, {"lr": lr, "maximize": maximize}, fused)

    def _initial_state(self, p: Tensor, group: dict[str, Any], like: Tensor) -> State:
        return initial_state(like)

    def _update(self, members: Sequence[Member], loss: Tensor | None) -> Iterator[Tensor]:
        made: dict[object, MLP] = {}
        mlps = []
        for m in members:
            key = (m.p.dtype, m.p.device, m.group["step"])
            if key not in made:
                made[key] = network(self._theta_for(m.p), m.group["step"], m.p)
            mlps.append(made[key])
        for m, d in zip(members, self._portions.directions(members, mlps), strict=True):
            yield d.mul_(self._size(m))

    def _size(self, m: Member) -> float | Tensor:
        """What the MLP's output is multiplied with."""
        size: float | Tensor = self.STEP * m.group["lr"]
        return size


class MuLO(SmallFC):
    """muLO, "muLO: Compute-Efficient Meta-Generalization of Learned Optimizers" (arXiv 2406.00153): small_fc_lopt for any width.

    The step is ten times that of `SmallFC`, and that of hidden tensors, whose inputs and outputs both grow with the network's width, is
    divided by their fan-in (of a kernel, input channels times positions [choice]; the paper has none). Groups say which are hidden, with
    `"hidden": True`; `mup_groups` makes such groups.

    The paper's networks are in the maximal update parametrization too: their output layer is divided by its fan-in and drawn with variance
    1. That is up to the network. PyLO divides by the width relative to a base network's instead. Arguments as for `SmallFC`; the division
    is checked by hand, against the paper's equation 3.

    Raises:
        ValueError: as `SmallFC`; or a hidden tensor has fewer than two axes.
    """

    STEP = 0.01

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        hidden = group.setdefault("hidden", False)
        if not isinstance(hidden, bool):
            raise ValueError(f"hidden must be True or False, for all tensors of a group (got {hidden!r})")
        for p in group["params"]:
            if hidden and p.dim() < 2:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is in a hidden group; hidden tensors have at least two axes")

    def _size(self, m: Member) -> float | Tensor:
        size = super()._size(m)
        return size / m.p[0].numel() if m.group["hidden"] else size


def mup_groups(params: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """Groups for `MuLO`, from parameters in the network's order, named or not: of the tensors of two or more axes all but the first and the
    last, the input and the output layer, are hidden [choice]."""
    items: list[Any] = list(params)
    tensors = [item if isinstance(item, Tensor) else item[1] for item in items]
    hidden = set([i for i, p in enumerate(tensors) if p.dim() > 1][1:-1])
    split = {which: [item for i, item in enumerate(items) if (i in hidden) == which] for which in (True, False)}
    return [{"params": some, "hidden": which} for which, some in split.items() if some]


__all__ = ["MuLO", "SmallFC", "mup_groups"]
