"""VeLO (arXiv 2211.09760) and Celo (arXiv 2501.12670): an LSTM watches each tensor and makes the MLP that moves its elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.optimizer import ParamsT

from l3rs.learned.accumulators import State, initial_state
from l3rs.learned.base import LearnedRule
from l3rs.learned.mlp import MLP, Member, Rule
from l3rs.learned.theta import Shapes, count, lstm_shapes, mlp, mlp_shapes, resolve
from l3rs.optimizer.arguments import run_length

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RULE = Rule(rho=0.999, eps=1e-6, delta=1e-5, exponent=0.001, by_matrix=False)
PROGRESS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # reference points of k / K
HALF_LIVES = 10  # averages of the loss
FAR = 999999999999.0  # what the smallest average starts from
STEP = 0.001  # multiplies the step
STACK_SCALE = 100.0
HIDDEN = 4  # width of the MLPs


class Form(NamedTuple):
    """How VeLO and Celo differ.

    Attributes:
        rows: numbers of a tensor that the LSTM sees.
        lstm: its width.
        stack: MLPs that are mixed.
        exponential: the step size is exp of the LSTM's output times 0.1, or the output itself.
    """

    rows: int
    lstm: int
    stack: int
    exponential: bool

    @property
    def shapes(self) -> Shapes:
        """Names and shapes of the meta-parameters."""
        return {**lstm_shapes(self.rows, self.lstm, self.stack), **mlp_shapes(HIDDEN, self.stack)}


class VeLO(LearnedRule):
    """VeLO, "Training Versatile Learned Optimizers by Scaling Up" (arXiv 2211.09760), in its published form, HyperV2.

    Quirks that the published weights depend on are kept: one of the three layers that mix the tensors' features is computed for nothing
    (and so is left out), the deviation of r is taken from the mean of m, and the MLP is 100 times the mean of the mixed stack.

    There is no learning rate to tune: `lr` multiplies the learned step and is 1. The loss has to be given: `step(loss=loss)`,
    `step(closure)`, or `observe(loss)` before a bare step. The tensors that have a gradient see each other; so a head alone, the rest
    frozen, is as if there were no rest.

    Args:
        params: parameters, or groups of them. A group may have its own lr and maximize.
        theta: the meta-parameters: (SIZE,), or the published files: `theta.state`, or the two safetensors of PyLO.
        total_steps: K, the number of steps of the whole run.
        lr: a multiplier.
        maximize: whether gradients and the loss are of what is to be maximized.
        fused: takes the step in compiled code, for parameters of 32 bits or fewer. None does so where it can: on CPU, if a C compiler was
            there at installation, and on CUDA by Triton. False takes torch operations; True raises ValueError where it cannot.
        process_group: the ranks that train together, whose losses are averaged; None is all.

    Raises:
        ValueError: an option is not what it should be, or theta is of another size, or cannot be read (a `CheckpointError`); or a
            parameter is sharded.
        TypeError: a parameter is complex or not floating.
    """

    FORM = Form(rows=30, lstm=512, stack=256, exponential=False)
    SIZE = count(FORM.shapes)
    rule, hidden = RULE, HIDDEN
    watches_loss = True

    def __init__(
        self,
        params: ParamsT,
        theta: Tensor | str | Path | Sequence[str | Path],
        total_steps: int,
        lr: float | Tensor = 1.0,
        *,
        maximize: bool = False,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.process_group = process_group
        losses = {"losses": 0, "loss_means": None, "loss_least": None}
        defaults = {"lr": lr, "total_steps": total_steps, "maximize": maximize, **losses}
        super().__init__(params, resolve(theta, self.FORM.shapes), defaults, fused)

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        group["total_steps"] = run_length(group["total_steps"])

    def _initial_state(self, p: Tensor, group: dict[str, Any], like: Tensor) -> State:
        hidden, cell = (self.theta[f"lstm_init_state/{name}"][0].to(like, copy=True) for name in ("hidden", "cell"))
        return {**initial_state(like), "hidden": hidden, "cell": cell}

    def _update(self, members: Sequence[Member], loss: Tensor | None) -> Iterator[Tensor]:
        assert loss is not None
        like = members[0].p
        theta = self._theta_for(like)
        of_loss = self._loss_features(-loss if members[0].group["maximize"] else loss, like)
        moments = self._portions.moments(members)
        x = self._rows(members, moments, of_loss)
        h, c = self._lstm(theta, x, *(torch.stack([m.state[name].to(like) for m in members]) for name in ("hidden", "cell")))
        torch._foreach_copy_([m.state[name] for name in ("hidden", "cell") for m in members], [*h, *c])
        size = (h @ theta["rnn_params/step_size/w"] + theta["rnn_params/step_size/b"])[:, 0]
        sizes = 0.1 * size.exp() if self.FORM.exponential else size
        controls = h @ theta["rnn_params/rnn_to_controls/w"] + theta["rnn_params/rnn_to_controls/b"]
        mlps = [network.like(m.p) for m, network in zip(members, self._mlps(theta, controls), strict=True)]
        lengths = (moments[:, 0] + 1e-9).sqrt() * sizes * STEP
        scaled = {id(group): (lengths * group["lr"]).unbind() for group in {id(m.group): m.group for m in members}.values()}
        for i, (m, d) in enumerate(zip(members, self._portions.directions(members, mlps), strict=True)):
            yield d.mul_(scaled[id(m.group)][i].to(d))

    def _mlps(self, theta: dict[str, Tensor], controls: Tensor) -> Iterator[MLP]:
        """Each tensor's own MLP, 100 times the mean of controls_k stack_k."""
        stack = mlp(theta)
        mixed = controls @ torch.cat([t.flatten(1) for t in stack], 1) * (STACK_SCALE / len(stack.b0))
        shapes = [t.shape[1:] for t in stack]
        for row in mixed:
            parts = row.split([shape.numel() for shape in shapes])
            yield MLP(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))

    # -- what the LSTM sees ------------------------------------------------------------------------------------------------------------

    def _loss_features(self, loss: Tensor, like: Tensor) -> Tensor:
        """How the averages of the loss compare, (HALF_LIVES - 1,), each with the next longer one; advances them."""
        group = self.param_groups[0]
        t = group["losses"]  # fewer than steps, where some were skipped
        shortest, longest = 1.0, math.log10(group["total_steps"])
        gamma = torch.exp(-1 / torch.logspace(shortest, longest, HALF_LIVES, dtype=like.dtype))
        means = torch.tensor(group["loss_means"] or [0.0] * HALF_LIVES, dtype=like.dtype)
        least = torch.tensor(group["loss_least"] or [FAR] * HALF_LIVES, dtype=like.dtype)
        loss = loss.to(means)
        correction = 1 - gamma ** (t + 1)
        largest = loss if t == 0 else (means / correction).max()
        means = gamma * means + (1 - gamma) * torch.minimum(loss, 2 * largest.abs())
        corrected = means / correction
        least = torch.minimum(least, corrected)
        for g in self.param_groups:
            g["losses"], g["loss_means"], g["loss_least"] = t + 1, means.tolist(), least.tolist()
        if t < 2:
            return torch.zeros(HALF_LIVES - 1, dtype=like.dtype, device=like.device)
        above = corrected - least
        found: Tensor = (above[:-1] / (corrected[1:] - least[:-1]).clamp(min=1e-8) - 1).clamp(-1, 1)
        return found.to(like)

    def _rows(self, members: Sequence[Member], moments: Tensor, of_loss: Tensor) -> Tensor:
        """What the LSTM sees of each tensor, (L, rows), from its moments, (L, 9), of before this step's gradient."""
        like = members[0].p
        squares, mean_r, var_r, mean_m, var_m = moments[:, :1], moments[:, 1:2], moments[:, 2:3], moments[:, 3::2], moments[:, 4::2]
        n = squares.clamp(min=1e-9).rsqrt()  # means are of tensors divided by the root mean square of p
        deviations = [var_m * n.square(), (var_r + (mean_r - mean_m).square()) * n.square()]  # E (x - a)^2 = var x + (E x - a)^2
        progress = torch.tensor([[m.group["step"] / m.group["total_steps"]] for m in members], dtype=like.dtype)
        time = torch.tanh(10 * (progress - torch.tensor(PROGRESS, dtype=like.dtype))).to(like)
        rank = functional.one_hot(torch.tensor([min(sum(size > 1 for size in m.param.shape), 4) for m in members]), 5).to(like)
        of_loss = of_loss.expand(len(members), -1)
        return torch.cat([time, of_loss, _log(mean_r * n), rank, *map(_log, deviations)], 1)[:, : self.FORM.rows]

    @staticmethod
    def _lstm(theta: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step for all tensors, from (L, rows); what each contributes to the others is a maximum over them."""
        shared = torch.relu(x @ theta["rnn_params/linear_1/w"] + theta["rnn_params/linear_1/b"]).amax(0)
        z = x @ theta["rnn_params/linear_2/w"] + theta["rnn_params/linear_2/b"] + shared
        gates = torch.cat([z, h], 1) @ theta["rnn_params/rnn/linear/w"] + theta["rnn_params/rnn/linear/b"]
        i, g, f, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def _log(x: Tensor) -> Tensor:
    """Half of log(1e-8 + 10 |x|), clipped to -5 and 5 before."""
    return 0.5 * torch.log(1e-8 + (10 * x).abs()).clamp(-5, 5)


class Celo(VeLO):
    """Celo, "Celo: Training Versatile Learned Optimizers on a Compute Diet" (arXiv 2501.12670): a smaller VeLO.

    The LSTM has 64 units and sees the clock and the loss alone, and instead of mixing MLPs there is one; the step size is an exponential.
    Arguments as for VeLO.
    """

    FORM = Form(rows=18, lstm=64, stack=1, exponential=True)
    SIZE = count(FORM.shapes)

    def _mlps(self, theta: dict[str, Tensor], controls: Tensor) -> Iterator[MLP]:
        return itertools.repeat(MLP(*(t[0] for t in mlp(theta))), len(controls))


__all__ = ["Celo", "VeLO"]
