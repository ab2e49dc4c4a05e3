"""A step in C, for float32 parameters on CPU: `step.c`, built when l3rs is installed where there is a C compiler."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l3rs.directions import Direction
from l3rs.optimizer.decision import Decided, Decider, DecisionTables
from l3rs.optimizer.kernels.memory_layout import COLUMN, MOMENTS, ORDER, SUMS, addresses, align_moments, chunks, held, point_at

_version = attrgetter("_version")
CONSTANTS, PROBES = 4, 256  # as in step.c
CHUNK = 65536  # elements a thread takes at a time: long enough a stretch of memory, and short enough that threads end together
WEIGHTS, NORMS, DECIDE, APPLY = 1, 2, 4, 8  # the parts of a step


class _Step(ctypes.Structure):
    """`Step` in step.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("set", "layers", "chunks")),
        *((name, ctypes.c_void_p) for name in ("chunk_layer", "chunk_from", "chunk_to", "p", "g", "moments")),
        *((name, ctypes.c_void_p) for name in ("steps", "constants", "scales", "partial", "sums", "probes")),
    ]


FORM = (
    *("layers", "groups", "signals", "factors", "points", "scales", "directions", "shown", "constants", "inputs", "hidden1", "hidden2"),
    *("controller", "unit", "sized", "head", "head_bias"),
)
NUMBERS = ("slope", "norm_scale", "norm_floor", "loss_scale", "floor", "root")
TABLES = (  # in the order of decide.h
    *("steps", "ema", "clock", "group", "root_numel", "factors", "log_factors", "totals", "points", "absolute", "constants", "unit"),
    *("size_kind", "size_row", "size_floor", "size_constant", "w1", "b1", "w2", "b2", "w3", "b3", "lam", "mu", "lengths"),
    *("rates", "sums", "scales", "skipped", "work"),
)


class _Decide(ctypes.Structure):
    """`Decide` in decide.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in FORM),
        ("signal", ctypes.c_int64 * 4),
        *((name, ctypes.c_int64 * 6) for name in ("order", "column", "show")),
        *((name, ctypes.c_float) for name in NUMBERS),
        *(("loss", ctypes.c_float), ("ok", ctypes.c_int32)),
        *((f"{name}_at", ctypes.c_void_p) for name in TABLES),
    ]


class Library(NamedTuple):
    """The function of step.c, and the means to run it on torch's threads."""

    step: Callable[..., int]
    parallel: ctypes.c_void_p | None


def shared_library(folder: Path, name: str) -> ctypes.CDLL | None:
    """A compiled C file of a folder; None if it was not built, or not for this machine."""
    try:
        return ctypes.CDLL(str(folder / f"{name}.so"))  # so called on every system, see setup.py
    except OSError:
        return None


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The compiled step.c; None if it was not built."""
    c = shared_library(Path(__file__).parent, "_step")
    if c is None or not hasattr(c, "l3rs_step2"):  # one that an older l3rs has left is none
        return None
    c.l3rs_step2.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    c.l3rs_step2.restype = ctypes.c_int
    return Library(c.l3rs_step2, openmp())


def openmp() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP runtime that torch has loaded (GCC's, or LLVM's, which has it too): a second pool would fight with it."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            try:
                return ctypes.cast(ctypes.CDLL(str(folder / name)).GOMP_parallel, ctypes.c_void_p)
            except (OSError, AttributeError):
                return None
    return None


class NativeKernel:
    """Reads 3 words per parameter in the first pass and moves 7 in the second, for SGD + Adam, without temporaries.

    The norms of the parameters are taken at the end of the second pass, and taken again only if a parameter has changed since: by its
    version, or, as a change through `p.data` leaves that as it was, by `PROBES` of its elements. A change that misses all of these is seen
    one step late.
    """

    name = "C"

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        directions: Mapping[str, Direction],
        constants: Mapping[str, tuple[float, ...]],
        reduce: Callable[[Tensor], Tensor] | None,
        decision: Decider,
    ) -> None:
        self.library, self.params, self.reduce, self.decision = library(), list(params), reduce, decision
        align_moments(params, states)
        self.moments = [[state.get(key) for state in states] for key in MOMENTS]
        self.held = held([*params, *chain(*self.moments)])
        self.versions: list[int] = []
        self.kept_grads: Sequence[Tensor] = ()

        where = chunks(params, CHUNK)
        moments = [addresses(row, params) for row in self.moments]
        table = torch.zeros(len(ORDER), CONSTANTS, dtype=torch.float64)
        for name, values in constants.items():
            table[ORDER.index(name), : len(values)] = torch.tensor(values, dtype=torch.float64)
        tables = decision.tables()
        self.scales = torch.zeros(len(params), len(ORDER), dtype=torch.float32)
        self.sums = torch.zeros(len(params), len(SUMS), dtype=torch.float64)
        self.whole = self.sums if reduce is None else torch.zeros_like(self.sums)  # over all ranks
        self.pointers = torch.zeros(len(params), dtype=torch.int64)
        self.step_of_c = _Step(sum(1 << ORDER.index(name) for name in directions), len(params), len(where))
        self.kept = {
            "chunk_layer": torch.tensor([chunk[0] for chunk in where], dtype=torch.int64),
            "chunk_from": torch.tensor([chunk[1] for chunk in where], dtype=torch.int64),
            "chunk_to": torch.tensor([chunk[2] for chunk in where], dtype=torch.int64),
            "p": torch.tensor(addresses(params, params), dtype=torch.int64),
            "g": self.pointers,
            "moments": torch.tensor(moments, dtype=torch.int64),
            "steps": tables.tensors["steps"],
            "constants": table,
            "scales": self.scales,
            "partial": torch.zeros(len(where), len(SUMS), dtype=torch.float64),
            "sums": self.sums,
            "probes": torch.full((len(params), PROBES), math.nan, dtype=torch.float32),
        }
        for name, tensor in self.kept.items():
            setattr(self.step_of_c, name, tensor.data_ptr())
        self.decide = self._decide(tables, list(directions))
        self.rates = self.tables["rates"].numpy()
        self.told: Any = None
        self.g_at = self.pointers.numpy()
        self.result = Decided(*(tables.tensors[key] for key in ("lam", "mu", "lengths")))
        self.numel = sum(p.numel() for p in params)

    def _decide(self, tables: DecisionTables, directions: Sequence[str]) -> _Decide:
        """All that `decide` in C is told; `decision.py` has checked it."""
        f, decide = tables.form, _Decide()
        size = f["layers"] * f["inputs"] + f["hidden1"] + f["hidden2"] + f["points"] + f["scales"] + 2 * f["factors"]
        self.tables = {
            **tables.tensors,
            "rates": torch.zeros(2, f["groups"], dtype=torch.float32),
            "sums": self.whole,
            "scales": self.scales,
            "skipped": self.decision.skipped,
            "work": torch.zeros(size, dtype=torch.float32),
        }
        for name in FORM:
            setattr(decide, name, f[name])
        for name in NUMBERS:
            setattr(decide, name, tables.numbers[name])
        for name in TABLES:
            setattr(decide, f"{name}_at", self.tables[name].data_ptr())
        decide.signal[: len(tables.signals)] = tables.signals
        for k, name in enumerate(directions):
            decide.order[k], decide.column[k], decide.show[k] = ORDER.index(name), SUMS.index(COLUMN[name]), k in tables.shown
        return decide

    def step(
        self, grads: Sequence[Tensor], loss: Tensor | None, ok: Tensor | None, lrs: Sequence[float | Tensor], signs: Sequence[float]
    ) -> None:
        """As `Layers.step`."""
        self._point(grads)
        known = list(map(float, lrs))
        if (known, signs) != self.told:
            self.rates[:] = (known, signs)
            self.told = (known, signs)
        self.decide.loss = 0.0 if loss is None else float(loss)
        self.decide.ok = math.isfinite(self.decide.loss) and (ok is None or bool(ok))
        parts = NORMS | DECIDE | APPLY
        if self.versions != list(map(_version, self.params)):
            parts |= WEIGHTS
        if not self.decide.ok or self._run(parts):
            self.decide.ok = 0
            self._point([torch.zeros_like(p) for p in self.params])  # so the moments take in zeros
            self._run(parts)
        self.decision.result = self.result
        torch.autograd.graph.increment_version(self.params)
        self.versions = list(map(_version, self.params))
        self.kept_grads = ()  # so that zero_grad frees them

    def _point(self, grads: Sequence[Tensor]) -> None:
        """Tells the kernel where the gradients are."""
        self.kept_grads, self.g_at[:] = point_at(grads, self.params)

    def _run(self, parts: int) -> int:
        """Takes these parts of a step; 1 where it ended before it wrote anything, for a gradient is not finite."""
        if self.reduce is None:
            return self._call(parts)
        self._call(parts & (WEIGHTS | NORMS))
        self.whole.copy_(self.reduce(self.sums))
        return self._call(parts & (DECIDE | APPLY))

    def _call(self, parts: int) -> int:
        assert self.library is not None
        threads = min(torch.get_num_threads(), self.numel // CHUNK + 1)
        return self.library.step(ctypes.addressof(self.step_of_c), ctypes.addressof(self.decide), parts, self.library.parallel, threads)
