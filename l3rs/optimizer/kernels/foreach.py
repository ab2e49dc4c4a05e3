"""The two passes in torch's foreach operations: any device, any floating dtype, any direction."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from l3rs.directions import Direction
from l3rs.directions.base import HALF
from l3rs.optimizer.decision import Decider
from l3rs.optimizer.kernels.norms import Norms


class ForeachKernel:
    """Keeps the directions between the passes: one temporary of the size of the parameters for each direction that is not a view."""

    name = "torch operations"

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        directions: Mapping[str, Direction],
        constants: Mapping[str, tuple[float, ...]],
        reduce: Callable[[Tensor], Tensor] | None,
        decision: Decider,
    ) -> None:
        self.decision = decision
        self.params, self.all_states, self.directions, self.constants, self.reduce = list(params), states, directions, constants, reduce
        self.states = {name: [_own(name, state) for state in states] for name in directions}
        self.half = [p.dtype in HALF for p in params]
        self.wide: list[Tensor] = []  # the parameters, those of half precision as float32
        self.uphill: list[list[Tensor]] = []

    def step(
        self, grads: Sequence[Tensor], loss: Tensor | None, ok: Tensor | None, lrs: Sequence[float | Tensor], signs: Sequence[float]
    ) -> None:
        decision = self.decision
        if loss is not None:
            loss = loss.to(decision.device, torch.float32)
            ok = loss.isfinite() if ok is None else ok
        elif ok is None:
            ok = torch.ones((), dtype=torch.bool, device=decision.device)
        decision.steps += 1
        norms = self.measure(grads, decision.steps, ok)
        seen = loss * decision.spread(signs) if loss is not None and decision.config.sees_loss else None
        self.apply(decision(norms, seen, decision.spread(lrs)))

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        grads = [g.float() if half else g for g, half in zip(grads, self.half, strict=True)]
        self.wide = [p.float() if half else p for p, half in zip(self.params, self.half, strict=True)]
        each = torch._foreach_norm(list(grads))
        grad_norms = self._whole(each)
        squares = torch.stack(torch._foreach_mul(each, each)) if self.reduce is None else grad_norms  # in their own dtypes, as moments are
        ok = ok & squares.isfinite().all()
        if ok.device.type != "cpu":  # without asking the device, which would wait for it
            grads = [torch.where(ok, g, 0) for g in grads]
        elif not ok:
            grads = [torch.zeros_like(g) for g in grads]
        self.uphill = []
        for name, direction in self.directions.items():
            uphill = direction.update(grads, self.wide, self.states[name], steps, self.constants[name])
            if not _same(uphill, self.wide):  # of a mixed list, those that are parameters are kept as they are now
                uphill = [d.clone() if d is p else d for d, p in zip(uphill, self.wide, strict=True)]
            self.uphill.append(uphill)
            if direction.lazy:
                for state, own in zip(self.all_states, self.states[name], strict=True):
                    state.update({f"{name}/{key}": value for key, value in own.items()})
        weight_norms, grad_norms = self._norms(self.wide), torch.where(ok, grad_norms, 0)
        known = ((self.wide, weight_norms), (grads, grad_norms))  # a direction may be the parameters or gradients themselves
        found = [next((norms for tensors, norms in known if _same(d, tensors)), None) for d in self.uphill]
        norms = [self._norms(d) if there is None else there for d, there in zip(self.uphill, found, strict=True)]
        return Norms(weight_norms, grad_norms, torch.stack(norms, dim=1), ok)

    def apply(self, scales: Tensor) -> None:
        moves = list(zip(self.uphill, scales.unbind(dim=1), strict=True))
        moves.sort(key=lambda move: move[0][0] is not self.wide[0])  # weight decay, whose direction is p itself, before p changes
        one = [torch.ones((), dtype=torch.float32)] * len(self.params)
        for tensors, scale in moves:
            if scale.device.type == "cpu":
                torch._foreach_addcmul_(self.wide, tensors, one, (-scale).tolist())
            else:
                torch._foreach_addcmul_(self.wide, tensors, list(scale.unbind()), value=-1)
        for p, wide, half in zip(self.params, self.wide, self.half, strict=True):
            if half:
                p.copy_(wide)
        self.wide, self.uphill = [], []

    def _norms(self, tensors: Sequence[Tensor]) -> Tensor:
        return self._whole(torch._foreach_norm(list(tensors)))

    def _whole(self, each: Sequence[Tensor]) -> Tensor:
        """The norms of layers, (L,), from those of this rank's parts."""
        norms = torch.stack(list(each)).float()
        return norms if self.reduce is None else self.reduce(norms.square()).sqrt()


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether all of these are the others themselves."""
    return all(map(operator.is_, one, other))


def _own(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A direction's part of a parameter's state, which is kept under its name."""
    return {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}
