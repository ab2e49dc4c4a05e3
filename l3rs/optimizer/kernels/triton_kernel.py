"""A step of float32 parameters on a CUDA GPU in three launches: measure, decide, move. `triton_code.py` has the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from l3rs.controller.config import CONTROLLERS
from l3rs.directions import Direction
from l3rs.optimizer.decision import Decided, Decider
from l3rs.optimizer.kernels.memory_layout import COLUMN, MOMENTS, ORDER, SUMS, addresses, align_moments, chunks, held, point_at
from l3rs.text import first_line

CHUNK = 16384  # elements a program takes
BLOCK = 1024
WIDTH = 8  # sums of a chunk, a power of two
WIDEST = 128  # inputs and hidden units of a controller, which one program holds


@lru_cache(maxsize=8)
def unusable(device: torch.device) -> str | None:
    """Why Triton cannot be used on this device; None if a kernel runs there. It also needs a C compiler, at run time."""
    try:
        code = import_module("l3rs.optimizer.kernels.triton_code")
        with _on(device):
            code.touch[(1,)](torch.zeros(1, dtype=torch.int32, device=device))
    except ImportError:
        return "Triton is not installed"
    except Exception as error:  # of the driver, the compiler, or Triton itself: many kinds
        return f"Triton runs no kernel here ({type(error).__name__}: {first_line(error)})"
    return None


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Launches go to the current device."""
    here = device.type != "cuda" or device.index in (None, torch.cuda.current_device())
    return nullcontext() if here else torch.cuda.device(device)


class TritonKernel:
    """Reads 3 words per parameter to measure and moves 7 to step, for SGD + Adam, without temporaries.

    It never waits for the device, and every number that changes lies there: a step whose gradients stay in place can be captured in a CUDA
    graph. What the host knows goes there only when it has changed: addresses of gradients, and the lr of groups.

    The norms of the parameters are those that the last step took, unless a parameter's version says that it has changed since; a change
    through `p.data` leaves the version as it was, and is seen one step late.

    Sums of sharded parameters are added over ranks between measure and decide; a controller of the mean over all layers takes one launch
    more.

    Args:
        code: has the kernels; None takes `triton_code`.
    """

    name = "Triton"

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        directions: Mapping[str, Direction],
        constants: Mapping[str, tuple[float, ...]],
        reduce: Callable[[Tensor], Tensor] | None,
        decision: Decider,
        code: Any = None,
    ) -> None:
        self.code = import_module("l3rs.optimizer.kernels.triton_code") if code is None else code
        self.params, self.reduce, self.decision, self.device = list(params), reduce, decision, params[0].device
        align_moments(params, states)
        moments = [[state.get(key) for state in states] for key in MOMENTS]
        self.held = held([*params, *(t for row in moments for t in row)])
        tables = decision.tables()
        form, t = tables.form, tables.tensors
        self.layers, self.groups, self.mean = form["layers"], form["groups"], form["controller"] == CONTROLLERS.index("global")

        where = chunks(params, CHUNK) or [(0, 0, 0)]
        counts = torch.bincount(torch.tensor([layer for layer, _, _ in where]), minlength=len(params))
        table = torch.zeros(len(ORDER), 8, dtype=torch.float64)
        for name, values in constants.items():
            beta1, beta2, eps, decay = (*values, 0.0, 0.0, 0.0, 0.0)[:4]
            logs = (math.log(b) if b > 0 else -math.inf for b in (beta1, beta2))
            table[ORDER.index(name)] = torch.tensor([beta1, 1 - beta1, beta2, 1 - beta2, eps, decay, *logs], dtype=torch.float64)
        here: dict[str, Any] = {"device": self.device}
        layer, start, end = (column.contiguous() for column in torch.tensor(where).to(self.device).unbind(dim=1))
        self.grid = len(where)
        self.first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(self.device)
        self.partial = torch.zeros(self.grid, WIDTH, dtype=torch.float32, **here)
        self.g_at = torch.zeros(self.layers, dtype=torch.int64, **here)
        self.verdict = torch.ones((), dtype=torch.int32, **here)
        self.yes = torch.ones((), dtype=torch.bool, **here)
        self.loss, self.nothing = (torch.zeros((), dtype=torch.float32, **here) for _ in range(2))
        self.rates = torch.zeros(2, self.groups, dtype=torch.float32, **here)
        self.lr_cells = self.rates[0].unbind()
        scales = torch.zeros(self.layers, len(ORDER), dtype=torch.float32, **here)
        if reduce is not None:
            self.rows, self.sums = torch.arange(self.layers + 1, **here), torch.zeros(self.layers, WIDTH, dtype=torch.float32, **here)
        self.pass_args = (
            *(layer, start, end, torch.tensor(addresses(params, params)).to(self.device), self.g_at),
            *(torch.tensor([addresses(row, params) for row in moments]).to(self.device), table.to(self.device)),
            *(t["steps"], scales, self.verdict, self.partial, self.layers),
        )
        flags = {name.upper().removeprefix("WEIGHT_"): name in directions for name in ORDER}
        self.pass_forms = {**flags, "BLOCK": BLOCK, "WIDTH": WIDTH}
        inputs, hidden1, hidden2 = (max(16, 2 ** (form[key] - 1).bit_length()) for key in ("inputs", "hidden1", "hidden2"))
        numbers = torch.tensor(list(tables.numbers.values()), dtype=torch.float32, **here)
        features = torch.zeros(self.layers if self.mean else 0, inputs, dtype=torch.float32, **here)
        self.decide_args = (
            *(self.rates, scales, self.verdict, features, numbers, self.layers, self.groups),
            *(form[key] for key in ("inputs", "hidden1", "hidden2", "constants", "head", "head_bias")),
            *(t[key] for key in ("steps", "ema", "clock", "group", "root_numel", "factors", "log_factors", "totals", "points", "absolute")),
            *(t[key] for key in ("constants", "unit", "size_kind", "size_row", "size_floor", "size_constant")),
            *(t[key] for key in ("w1", "b1", "w2", "b2", "w3", "b3", "lam", "mu", "lengths")),
        )
        self.decide_forms = {
            "LAYERWISE": form["controller"] == CONTROLLERS.index("layerwise"),
            "UNIT": form["unit"],
            "SIZED": bool(form["sized"]),
            "SIGNALS": _digits(tables.signals, 2),
            "N_SIGNALS": form["signals"],
            "FACTORS": form["factors"],
            "POINTS": form["points"],
            "SCALES": form["scales"],
            "DIRECTIONS": form["directions"],
            "WIDTH": WIDTH,
            "ORDERS": _digits([ORDER.index(name) for name in directions], 3),
            "COLUMNS": _digits([SUMS.index(COLUMN[name]) for name in directions], 3),
            "SHOWN": sum(1 << k for k in tables.shown),
            "INPUTS": inputs,
            "HIDDEN1": hidden1,
            "HIDDEN2": hidden2,
        }
        self.result = Decided(t["lam"], t["mu"], t["lengths"])
        self.versions: list[int] = []
        self.kept: Sequence[Tensor] = ()
        self.addresses: list[int] = []
        self.told: Any = None

    def step(
        self, grads: Sequence[Tensor], loss: Tensor | None, ok: Tensor | None, lrs: Sequence[float | Tensor], signs: Sequence[float]
    ) -> None:
        """As `Layers.step`."""
        self._point(grads)
        self._tell(lrs, signs)
        cell, others = self._cell(loss), self.yes if ok is None else ok
        with _on(self.device):
            changed = self.versions != [p._version for p in self.params]  # else the last step has taken the norms of the weights
            forms = (False, True) if not self.versions else (changed,)  # both at first: none may be compiled while a graph is captured
            for weights in forms:
                self.code.measure[(self.grid,)](*self.pass_args, WEIGHTS=weights, **self.pass_forms)
            first, sums = self.first, self.partial
            if self.reduce is not None:
                self.code.add_up[(self.layers,)](first, sums, self.sums, WIDTH=WIDTH)
                first, sums = self.rows, self.reduce(self.sums)
            for phase in (1, 2) if self.mean else (0,):
                self.code.decide[(self.layers,)](first, sums, cell, others, *self.decide_args, PHASE=phase, **self.decide_forms)
            self.code.move[(self.grid,)](*self.pass_args, self.decision.clock, self.decision.skipped, self.groups, **self.pass_forms)
        self.decision.result = self.result
        torch.autograd.graph.increment_version(self.params)
        self.versions = [p._version for p in self.params]
        self.kept = ()  # so that zero_grad frees them; whatever takes their memory comes later in the stream

    def _point(self, grads: Sequence[Tensor]) -> None:
        """Tells where the gradients are."""
        self.kept, found = point_at(grads, self.params)
        if found != self.addresses:
            self._send(self.g_at, torch.tensor(found, dtype=torch.int64))
            self.addresses = found

    def _tell(self, lrs: Sequence[float | Tensor], signs: Sequence[float]) -> None:
        """Tells the lr of every group, and the signs of the loss. An lr that lies on a device is copied there, in every step."""
        there = [isinstance(lr, Tensor) and lr.device.type != "cpu" for lr in lrs]
        known = [0.0 if far else float(lr) for lr, far in zip(lrs, there, strict=True)]
        if (known, signs) != self.told:
            self._send(self.rates, torch.tensor([known, signs], dtype=torch.float32))
            self.told = (known, signs)
        for cell, lr, far in zip(self.lr_cells, lrs, there, strict=True):
            if far:
                cell.copy_(lr.reshape(()), non_blocking=True)  # type: ignore[union-attr]

    def _cell(self, loss: Tensor | None) -> Tensor:
        """The loss as a number on the device."""
        if loss is None:
            return self.nothing
        if loss.device == self.device and loss.dtype == torch.float32:
            return loss
        if loss.device.type == "cpu":
            return self.loss.fill_(loss.item())  # a number in a launch, which no copy waits for
        return self.loss.copy_(loss, non_blocking=True)

    def _send(self, to: Tensor, table: Tensor) -> None:
        to.copy_(table.pin_memory() if self.device.type == "cuda" else table, non_blocking=True)


def _digits(values: Sequence[int], bits: int) -> int:
    """Small numbers as one, which is part of a kernel's form."""
    return sum(value << (bits * k) for k, value in enumerate(values))
