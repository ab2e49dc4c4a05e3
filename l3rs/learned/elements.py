"""The pass of VeLO, Celo, Celo2 and small_fc_lopt over the elements of parameters in C, for float32 on CPU: `elements.c`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l3rs.learned.accumulators import CLIP_FEATURE, State, initial_state
from l3rs.learned.layout import factored_axes
from l3rs.learned.mlp import MLP, Rule
from l3rs.optimizer.kernels.native import openmp, shared_library

BLOCK, FEATURES, VECTOR_FEATURES, HIDDEN, DECAYS, SIDE, STATS = 64, 30, 15, 32, 3, 9, 9  # as in elements.c
IN_ORDER, PERIODIC, ANYWHERE = range(3)
CHUNK = 16384  # elements that a thread takes at a time, about

_int, _pointer, _float = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class _Side(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("mean", "index", "values", "sum")),
        *((name, _int) for name in ("count", "stride", "kind")),
        ("over", ctypes.c_double),
    ]


class _Elements(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("rows", "length", "block", "positions", "features", "vector", "hidden", "outer", "inner")),
        *((name, _int) for name in ("chunk", "chunks", "first")),
        *((name, _pointer) for name in ("g", "p")),
        ("momentum", _pointer * DECAYS),
        *((name, _pointer) for name in ("second", "out")),
        *((name, _Side) for name in ("row", "col")),
        *((name, _pointer) for name in ("w0", "b0", "w1", "b1", "w2", "b2", "scale", "stats")),
    ]


class _Rule(ctypes.Structure):
    _fields_ = [
        *((name, _float * DECAYS) for name in ("keep", "fresh", "keep_mean", "fresh_mean")),
        *((name, _float) for name in ("keep_second", "fresh_second", "eps", "delta", "bound", "clip", "exponent", "of_vectors")),
    ]


class _Portion(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("count", "chunks")),
        *((name, _pointer) for name in ("owner", "partial", "parameters")),
        ("rule", _Rule),
    ]


class Library(NamedTuple):
    """The functions of elements.c, and the means to run them on torch's threads."""

    measure: Any
    step: Any
    parallel: ctypes.c_void_p | None


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The compiled elements.c; None if it was not built."""
    c = shared_library(Path(__file__).parent, "_elements")
    if c is None or not all(hasattr(c, name) for name in ("l3rs_elements_measure", "l3rs_elements_step")):
        return None  # also one that an older l3rs has left
    for function in (c.l3rs_elements_measure, c.l3rs_elements_step):
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int], None
    return Library(c.l3rs_elements_measure, c.l3rs_elements_step, openmp())


@dataclass(frozen=True)
class Side:
    """Where the elements of a row find their row's, or column's, numbers: element e of row o at o * stride + index[e]."""

    index: Tensor
    stride: int
    kind: int


def side(shape: tuple[int, ...], kept: tuple[int, ...], block: int) -> Side:
    """Of numbers of shape `kept`, which is `shape` with size 1 along one axis."""
    where = torch.arange(math.prod(kept), dtype=torch.int32).view(kept)
    index = where.expand(shape)[0].flatten().contiguous()
    order = torch.arange(len(index))
    kind = IN_ORDER if torch.equal(index.long(), order) else PERIODIC if torch.equal(index, index[order % block]) else ANYWHERE
    return Side(index, where.stride(0) if kept[0] > 1 else 0, kind)


class Plan(NamedTuple):
    """All that follows from a parameter's shape."""

    rows: int
    length: int
    block: int
    row: Side
    col: Side
    outer: int
    inner: int
    over: tuple[int, int]
    state: dict[str, tuple[int, ...]]


@lru_cache(maxsize=1024)
def plan(shape: tuple[int, ...]) -> Plan:
    positions = math.prod(shape[2:])
    block = BLOCK // positions * positions if positions <= BLOCK else BLOCK
    state = {key: tuple(t.shape) for key, t in initial_state(torch.empty(shape, dtype=torch.float32, device="meta")).items()}
    axes = factored_axes(shape)
    if axes is None:
        alike = side((1, *shape), (1, *shape), BLOCK)
        return Plan(1, shape[0], BLOCK, alike, alike, 1, 1, (1, 1), state)
    d1, d0 = axes
    without = [tuple(1 if axis == reduced else n for axis, n in enumerate(shape)) for reduced in (d0, d1)]
    row, col = (side(shape, kept, block) for kept in without)
    outer, inner = math.prod(without[0][:d1]), math.prod(without[0][d1 + 1 :])
    return Plan(shape[0], math.prod(shape[1:]), block, row, col, outer, inner, (shape[d0], shape[d1]), state)


class ElementsKernel:
    """For parameters that are stepped together, as long as their states stay where they are in memory.

    Args:
        shapes: of the parameters.
        states: of each.
        rule: of the optimizer.
        hidden: width of the MLP.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], states: Sequence[State], rule: Rule, hidden: int) -> None:
        assert hidden <= HIDDEN, f"elements.c has room for {HIDDEN} units a layer, not {hidden}"
        self.hidden, self.shapes, plans = hidden, list(shapes), [plan(shape) for shape in shapes]
        self.parameters = (_Elements * len(shapes))()
        self.kept: list[Tensor] = []
        single: dict[str, Any] = {"dtype": torch.float32}
        self.scale = torch.empty(len(shapes), FEATURES, BLOCK, **single)
        self.stats = torch.zeros(len(shapes), STATS, dtype=torch.float64)
        owner: list[int] = []
        for k, (e, shape, state, where) in enumerate(zip(self.parameters, shapes, states, plans, strict=True)):
            vector = len(shape) == 1
            e.rows, e.length, e.block, e.outer, e.inner = where.rows, where.length, where.block, where.outer, where.inner
            e.positions = math.prod(shape[2:]) if rule.by_matrix else 1
            e.features, e.vector, e.hidden = VECTOR_FEATURES if rule.by_matrix and vector else FEATURES, vector, hidden
            e.chunk = max(1, CHUNK // max(where.length, 1))
            e.chunks, e.first = -(-where.rows // e.chunk), len(owner)
            owner += [k] * e.chunks
            e.momentum = (_pointer * DECAYS)(*(m.data_ptr() for m in state["momentum"]))
            e.second, e.scale, e.stats = state["second"].data_ptr(), self.scale[k].data_ptr(), self.stats[k].data_ptr()
            means = (state["square"], state["square"]) if vector else (state["row"], state["col"])
            e.row, e.col = (self._side(mean, s, over) for mean, s, over in zip(means, (where.row, where.col), where.over, strict=True))
        self.partial, owners = torch.empty(len(owner), FEATURES, BLOCK, **single), torch.tensor(owner, dtype=torch.int32)
        self.kept.append(owners)
        keep = torch.tensor([*rule.momentum, *rule.factors, rule.rho], **single)
        kept, fresh = keep.tolist(), (1 - keep).tolist()
        decays = [(_float * DECAYS)(*of[at : at + DECAYS]) for at in (0, DECAYS) for of in (kept, fresh)]
        numbers = (kept[-1], fresh[-1], rule.eps, rule.delta, rule.clip, CLIP_FEATURE, rule.exponent, rule.of_vectors)
        c_rule = _Rule(*decays, *numbers)
        tables = owners.data_ptr(), self.partial.data_ptr(), ctypes.addressof(self.parameters)
        self.portion = _Portion(len(shapes), len(owner), *tables, c_rule)

    def _side(self, mean: Tensor, where: Side, over: int) -> _Side:
        count = mean[0].numel()
        values, sums = torch.empty(SIDE, count, dtype=torch.float32), torch.empty(count, dtype=torch.float64)
        self.kept += [values, sums, where.index]
        return _Side(mean.data_ptr(), where.index.data_ptr(), values.data_ptr(), sums.data_ptr(), count, where.stride, where.kind, over)

    def _point(self, grads: Sequence[Tensor], params: Sequence[Tensor]) -> None:
        self.now = [(g.contiguous(), p.contiguous()) for g, p in zip(grads, params, strict=True)]
        for e, (g, p) in zip(self.parameters, self.now, strict=True):
            e.g, e.p = g.data_ptr(), p.data_ptr()

    def _check(self, mlp: MLP, features: int) -> None:
        """Raises ValueError if the MLP does not have the sizes that C goes by, or is of another dtype."""
        h = self.hidden
        shapes = [(mlp.w0.shape[0], h), (h,), (h, h), (h,), (h, 3), (3,)]
        if mlp.w0.shape[0] < features or any(w.shape != shape or w.dtype != torch.float32 for w, shape in zip(mlp, shapes, strict=True)):
            raise ValueError(f"the MLP must have {features} inputs or more and {h} units, in float32 (got {[tuple(w.shape) for w in mlp]})")

    def _run(self, name: str) -> None:
        c = library()
        assert c is not None
        getattr(c, name)(ctypes.addressof(self.portion), c.parallel, torch.get_num_threads())

    def measure(self, grads: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
        """Of each parameter, (L, 9), float64: sums of p^2; of r and r^2; of each momentum and its square."""
        self._point(grads, params)
        self._run("measure")
        return self.stats.clone()

    def __call__(self, grads: Sequence[Tensor], params: Sequence[Tensor], mlps: Sequence[MLP]) -> list[Tensor]:
        """Advances the states, and gives what each parameter's MLP makes of its elements: direction times exp(exponent * log magnitude)."""
        self._point(grads, params)
        found = [torch.empty(shape, dtype=torch.float32) for shape in self.shapes]
        held = []
        pointers: dict[int, tuple[int, ...]] = {}
        for e, mlp, out in zip(self.parameters, mlps, found, strict=True):
            e.out = out.data_ptr()
            if id(mlp) not in pointers:
                self._check(mlp, e.features)
                weights = [w.contiguous() for w in mlp]
                held.append(weights)
                pointers[id(mlp)] = tuple(w.data_ptr() for w in weights)
            e.w0, e.b0, e.w1, e.b1, e.w2, e.b2 = pointers[id(mlp)]
        self._run("step")
        del self.now
        return found


def refused(p: Tensor, state: State, by_matrix: bool, g: Tensor | None = None) -> bool:
    """Whether neither this kernel nor, on CUDA, that of Triton can be used: it is not there, or a tensor's device, dtype, shape or layout
    is not what it goes by."""
    if p.device.type not in ("cpu", "cuda") or p.dtype != torch.float32 or not p.numel():
        return True
    if p.device.type == "cuda" and (find_spec("triton") is None or p.numel() >= 2**31):  # places are 32-bit numbers there
        return True
    if p.device.type == "cpu" and (library() is None or (by_matrix and math.prod(p.shape[2:]) > BLOCK)):  # a block holds every position
        return True
    if g is not None and (g.shape != p.shape or g.dtype != p.dtype or g.device != p.device or g.is_neg() or g._is_zerotensor()):
        return True
    shapes = plan(tuple(p.shape)).state
    return not all(
        t.shape == shapes[key] and t.dtype == p.dtype and t.device == p.device and t.is_contiguous()
        for key, t in state.items()
        if key in shapes
    )
