"""The bookkeeping of L3RS: which layers are stepped now, as tables by device; and the gate that every tensor of theirs passes."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from itertools import chain, compress
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l3rs.directions.base import HALF
from l3rs.optimizer.decision import Decider
from l3rs.optimizer.distributed import local
from l3rs.optimizer.layers import Controller, Layers, Network, expected_states, initial_state
from l3rs.optimizer.states import fit

States = MutableMapping[Tensor, dict[str, Any]]
_dtype, _device, _grad, _learns = map(attrgetter, ("dtype", "device", "grad", "requires_grad"))
ALIKE = (Tensor.numel, _dtype, Tensor.get_device)  # of gradients and their parameters; -1 is the CPU


class Active(NamedTuple):
    """The layers of one device, and their gradients in this step."""

    layers: Layers
    grads: list[Tensor]


class Tables:
    """The layers that have a gradient, device by device.

    Tables hold addresses. They are kept from step to step only as long as every parameter and every tensor of its state is where it was and
    lies there as it did; else they are made anew, where states are made to fit or refused. Each gradient has the size, strides, dtype and
    device of its parameter, or is copied to have them. All this is compared in every step, so it is asked for in lists, at C's speed.

    Args:
        controller: of the learned schedule.
        slots: where each parameter is in what is learned by layer; empty if nothing is.
        network: all parameters, those that are not stepped too.
        sharded: whether parameters are DTensors, of which this rank has parts.
        fused: as in `L3RS`.
    """

    def __init__(self, controller: Controller, slots: Mapping[Tensor, int], network: Network, sharded: bool, fused: bool | None) -> None:
        self.controller, self.slots, self.network, self.sharded, self.fused = controller, slots, network, sharded, fused
        self.by_device: list[Layers] = []
        self.params: list[Tensor] = []
        self._key: Any = None
        self._clock: list[int] = []  # of the groups, as the last step should have left them
        self._untold = torch.zeros((), dtype=torch.int64, device="cpu")  # steps that tables of before have skipped
        self._like: list[list[Any]] = []  # sizes, dtypes and devices of the parameters

    def forget(self) -> None:
        """Makes all tables anew in the next step."""
        if self.by_device:
            skipped = self.by_device[0].decision.skipped
            self._untold = self._untold.to(skipped.device) + skipped
        self.by_device, self._key = [], None

    def active(self, groups: Sequence[dict[str, Any]], states: States) -> list[Active]:
        """What is stepped now: all that requires a gradient and has one.

        Raises:
            ValueError: a gradient is sparse, or a gradient or state is of another shape than its parameter; nothing has changed then.
        """
        params: list[Tensor] = []
        grads: list[Tensor] = []
        owners: list[int] = []
        for g, group in enumerate(groups):
            every = group["params"]
            found = list(map(_grad, every))
            moved = [grad is not None and learns for grad, learns in zip(found, map(_learns, every), strict=True)]
            mine = list(compress(found, moved))
            params += compress(every, moved)
            mine = [local(g) for g in mine] if self.sharded else mine
            grads += torch._foreach_neg(mine) if group["maximize"] and mine else mine
            owners += [g] * len(mine)
        here = [local(p) for p in params] if self.sharded else params
        dense = list(map(Tensor.is_contiguous, here))
        strides = [p.stride() for p, contiguous in zip(here, dense, strict=True) if not contiguous]
        about = (list(map(id, params)), owners, [group["total_steps"] for group in groups], list(map(Tensor.size, here)), dense, strides)
        key = (*about, list(map(Tensor.data_ptr, here)), self._addresses(states))
        clock = [group["step"] for group in groups]
        if key == self._key and clock != self._clock:  # it was written to; a captured graph may hold these tables
            for t in self.by_device:
                t.decision.clock.copy_(torch.tensor(clock, dtype=torch.float32))
        if key != self._key:
            grads = [_fitted(g, p) for g, p in zip(grads, here, strict=True)]
            self._make(params, owners, groups, states)
            self._like = [list(map(f, here)) for f in ALIKE]
            self._key = (*key[:-1], self._addresses(states))  # some states are views of the tables now
        else:
            grads = self._fitting(grads, here, dense, strides)
        self._clock = [step + 1 for step in clock]
        several = len(self.by_device) > 1
        return [Active(t, [grads[i] for i in t.where] if several else grads) for t in self.by_device]

    def pull(self, groups: Sequence[dict[str, Any]]) -> int:
        """Brings the numbers that are kept on devices, the clock and the count of skipped steps, into the groups; gives the new count."""
        decisions = [t.decision for t in self.by_device]
        skipped = int(self._untold) + sum(int(d.skipped) for d in decisions[:1])
        self._untold = torch.zeros((), dtype=torch.int64, device="cpu")
        for group in groups:
            group["skipped"] += skipped
        clocks = list(zip(*(d.clock.tolist() for d in decisions), strict=True))
        for i, (group, found) in enumerate(zip(groups, clocks, strict=False)):
            newest = max(map(int, found))
            if newest != self._clock[i]:  # a CUDA graph that is replayed advances the device's clock alone
                group["step"] = self._clock[i] = max(group["step"], newest)
        for d in decisions:
            d.skipped.zero_()
        return skipped

    def _make(self, params: list[Tensor], owners: Sequence[int], groups: Sequence[dict[str, Any]], states: States) -> None:
        self.forget()
        self.network = self.network.now()
        for p in params:
            if p not in self.network.place:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} was put into a group by hand: use add_param_group, or make a new optimizer"
                )
        made = []
        for device in dict.fromkeys(map(_device, params)):
            where = [i for i, p in enumerate(params) if p.device == device]
            some = [params[i] for i in where]
            slots = [self.slots[p] for p in some] if self.slots else []
            theirs = [state_of(p, states, self.controller) for p in some]
            for p, state, expected in zip(some, theirs, expected_states(some, self.controller), strict=True):
                fit(p, state, expected)
            decision = Decider(some, theirs, slots, self.network, [owners[i] for i in where], groups, self.controller)
            made.append(Layers(some, theirs, decision, self.controller, self.fused, where))
        self.by_device, self.params = made, params

    def _addresses(self, states: States) -> list[int]:
        """Of every tensor in the states, but for what wrapped optimizers keep."""
        lazy = self.controller.lazy
        if not self.sharded and not lazy:
            with suppress(TypeError):  # others may keep what is no tensor there
                return list(map(Tensor.data_ptr, chain.from_iterable(map(dict.values, states.values()))))
        tensors = (t for state in states.values() for key, t in state.items() if isinstance(t, Tensor) and not key.startswith(lazy))
        return [local(t).data_ptr() for t in tensors]

    def _fitting(self, grads: list[Tensor], params: Sequence[Tensor], dense: list[bool], strides: list[Any]) -> list[Tensor]:
        """The gradients, those that do not lie in memory as their parameters do copied. Torch itself sees to their shapes."""
        try:
            if (
                list(map(Tensor.is_contiguous, grads)) == dense
                and [list(map(f, grads)) for f in ALIKE] == self._like
                and not any(map(Tensor.is_neg, grads))
                and [g.stride() for g, contiguous in zip(grads, dense, strict=True) if not contiguous] == strides
            ):
                return grads
        except RuntimeError:  # sparse ones have no strides
            pass
        return [_fitted(g, p) for g, p in zip(grads, params, strict=True)]


def state_of(p: Tensor, states: States, controller: Controller) -> dict[str, Any]:
    """The state of a parameter, made where it has none."""
    state = states[p]
    if not state:
        state.update(initial_state(p, controller))
    return state


def _fitted(grad: Tensor, p: Tensor) -> Tensor:
    if grad.layout != torch.strided:
        raise ValueError(f"a gradient of shape {tuple(grad.shape)} is {grad.layout}; L3RS takes dense ones")
    if grad.shape != p.shape:
        raise ValueError(f"the gradient of a parameter of shape {tuple(p.shape)} must have that shape (got {tuple(grad.shape)})")
    if grad.dtype == p.dtype and grad.device == p.device and grad.stride() == p.stride() and not grad.is_neg():
        return grad
    dtype = torch.float32 if p.dtype in HALF else p.dtype  # in which halves are computed with: a wider gradient loses nothing
    return torch.empty_like(p, dtype=dtype).copy_(grad)
