"""The pass of VeLO, Celo and Celo2 over the elements of a parameter in C, for float32 on CPU: `elements.c`."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from l3rs.kernels.native import openmp, shared_library

if TYPE_CHECKING:
    from l3rs.learned.accumulators import State
    from l3rs.learned.mlp import MLP, Rule

BLOCK, FEATURES, OF_VECTORS, HIDDEN, DECAYS, SIDE = 64, 30, 15, 8, 3, 9  # as in elements.c
IN_ORDER, PERIODIC, ANYWHERE = range(3)
CHUNK = 16384  # elements that a thread takes at a time, about


class _Side(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p), ("index", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("count", "stride", "kind"))]


class _Elements(ctypes.Structure):
    """`Elements` in elements.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "length", "block", "chunk", "chunks", "features", "vector", "hidden")),
        *((name, ctypes.c_void_p) for name in ("g", "p")),
        ("momentum", ctypes.c_void_p * DECAYS),
        *((name, ctypes.c_void_p) for name in ("second", "out")),
        *((name, _Side) for name in ("row", "col")),
        *((name, ctypes.c_float * DECAYS) for name in ("keep", "fresh")),
        *((name, ctypes.c_float) for name in ("keep_second", "fresh_second", "eps", "clip", "exponent")),
        *((name, ctypes.c_void_p) for name in ("scale", "w0", "b0", "w1", "b1", "w2", "b2", "partial")),
    ]


class Library(NamedTuple):
    """The functions of elements.c, and the means to run them on torch's threads."""

    scales: Any
    outputs: Any
    parallel: ctypes.c_void_p | None


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The compiled elements.c; None if it was not built."""
    c = shared_library("_elements")
    if c is None:
        return None
    for function in (c.l3rs_elements_scales, c.l3rs_elements_outputs):
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int], None
    return Library(c.l3rs_elements_scales, c.l3rs_elements_outputs, openmp())


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


class ElementsKernel:
    """For all parameters of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        positions = math.prod(shape[2:])
        self.shape, self.positions = shape, positions
        self.rows, self.length = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
        self.block = BLOCK // positions * positions if positions <= BLOCK else BLOCK
        self.chunk = max(1, CHUNK // max(self.length, 1))
        self.sides: dict[tuple[int, ...], Side] = {}

    def __call__(self, state: State, g: Tensor, p: Tensor, factors: tuple[Tensor, Tensor, Tensor | None], mlp: MLP, rule: Rule) -> Tensor:
        """Advances momentum and mean square, and gives what the MLP makes of every element; arguments as of `direction`."""
        c = library()
        assert c is not None
        vector = p.dim() == 1
        a, b, of_momentum = factors
        row, col = (state["square"], state["square"]) if vector else (state["row"], state["col"])
        kept = [self._side(row, a), self._side(col, b if of_momentum is None else of_momentum)]
        features = OF_VECTORS if rule.by_matrix and vector else FEATURES
        chunks = -(-self.rows // self.chunk)
        partial = torch.empty(chunks, FEATURES, BLOCK)
        g, p, out = g.contiguous(), p.contiguous(), torch.empty(self.shape)
        weights = [mlp.w0[:features].T, mlp.b0, mlp.w1.T, mlp.b1, mlp.w2[:, :2].T, mlp.b2]
        weights = [w.contiguous() for w in weights]
        from l3rs.learned.accumulators import CLIP_FEATURE
        from l3rs.learned.accumulators import DECAYS as betas

        keep = torch.tensor([*betas, rule.rho])
        fresh = (1 - keep).tolist()
        e = _Elements(self.rows, self.length, self.block, self.chunk, chunks, features, vector, len(mlp.b0), g.data_ptr(), p.data_ptr())
        e.momentum = (ctypes.c_void_p * DECAYS)(*(m.data_ptr() for m in state["momentum"]))
        e.second, e.out, e.partial = state["second"].data_ptr(), out.data_ptr(), partial.data_ptr()
        for name, (values, s) in zip(("row", "col"), kept, strict=True):
            setattr(e, name, _Side(values.data_ptr(), s.index.data_ptr(), values.shape[1], s.stride, s.kind))
        e.keep, e.fresh = (ctypes.c_float * DECAYS)(*betas), (ctypes.c_float * DECAYS)(*fresh[:DECAYS])
        e.keep_second, e.fresh_second, e.eps, e.clip, e.exponent = rule.rho, fresh[DECAYS], rule.eps, CLIP_FEATURE, rule.exponent
        for name, w in zip(("w0", "b0", "w1", "b1", "w2", "b2"), weights, strict=True):
            setattr(e, name, w.data_ptr())
        threads = torch.get_num_threads()
        c.scales(ctypes.addressof(e), c.parallel, threads)
        scale = self._normalizers(partial[:, :features], rule)
        e.scale = scale.data_ptr()
        c.outputs(ctypes.addressof(e), c.parallel, threads)
        return out

    def _side(self, squares: Tensor, factor: Tensor) -> tuple[Tensor, Side]:
        """A side's numbers, (SIDE, count), and where they are found."""
        kept = tuple(squares.shape[1:])
        if kept not in self.sides:
            shape = self.shape if len(self.shape) > 1 else (1, *self.shape)
            self.sides[kept] = side(shape, kept if len(kept) > 1 else (1, *kept), self.block)
        return torch.cat([squares, factor, (squares + 1e-8).rsqrt()]).view(SIDE, -1), self.sides[kept]

    def _normalizers(self, partial: Tensor, rule: Rule) -> Tensor:
        """What each feature is multiplied with, lane by lane, (features, BLOCK), from the sums of its squares."""
        positions = self.positions if rule.by_matrix else 1
        total = partial.sum(0, dtype=torch.float64)[:, : self.block].view(len(partial[0]), -1, positions).sum(1)
        root = (total * (positions / (self.rows * self.length)) + rule.delta).rsqrt().float()
        return root.repeat(1, -(-BLOCK // positions))[:, :BLOCK].contiguous()


@lru_cache(maxsize=256)
def _of_shape(shape: tuple[int, ...]) -> ElementsKernel:
    return ElementsKernel(shape)


def kernel(p: Tensor, by_matrix: bool) -> ElementsKernel | None:
    """The kernel for a parameter, or None where it cannot be used: not float32, not on CPU, not built, or without elements."""
    if p.device.type != "cpu" or p.dtype != torch.float32 or not p.numel() or library() is None:
        return None
    if by_matrix and math.prod(p.shape[2:]) > BLOCK:  # a block holds every spatial position
        return None
    return _of_shape(tuple(p.shape))
