"""The two passes in C, for float32 parameters on CPU: `step.c`, built when l3rs is installed where there is a C compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from l3rs.directions import Direction
from l3rs.optimizer.kernels.memory_layout import COLUMN, MOMENTS, ORDER, SUMS, addresses, align_moments, chunks, held
from l3rs.optimizer.kernels.norms import Norms

_version = attrgetter("_version")
CONSTANTS = 4
CHUNK = 65536  # elements a thread takes at a time: long enough a stretch of memory, and short enough that threads end together


class _Step(ctypes.Structure):
    """`Step` in step.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("set", "layers", "chunks")),
        *((name, ctypes.c_void_p) for name in ("chunk_layer", "chunk_from", "chunk_to", "p", "g", "moments")),
        *((name, ctypes.c_void_p) for name in ("steps", "constants", "scales", "partial", "sums")),
    ]


class Library(NamedTuple):
    """The functions of step.c, and the means to run them on torch's threads."""

    weights: Callable[..., None]
    norms: Callable[..., None]
    apply: Callable[..., None]
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
    if c is None:
        return None
    functions = [c.l3rs_weights, c.l3rs_norms, c.l3rs_apply]
    for function in functions:
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int], None
    weights, norms, apply = functions
    return Library(weights, norms, apply, openmp())


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

    The norms of the parameters are taken at the end of the second pass, and taken again only if a parameter's version says that it has
    changed since; a change through `p.data`, which leaves the version as it was, is seen one step late in the controller's features.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        directions: Mapping[str, Direction],
        constants: Mapping[str, tuple[float, ...]],
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.library, self.params, self.reduce = library(), list(params), reduce
        align_moments(params, states)
        self.moments = [[state.get(key) for state in states] for key in MOMENTS]
        self.held = held([*params, *chain(*self.moments)])
        columns = [ORDER.index(name) for name in directions]
        self.columns, self.sums_of = torch.tensor(columns), torch.tensor([SUMS.index(COLUMN[name]) for name in directions])
        self.versions: list[int] = []

        where = chunks(params, CHUNK)
        moments = [addresses(row, params) for row in self.moments]
        table = torch.zeros(len(ORDER), CONSTANTS, dtype=torch.float64)
        for name, values in constants.items():
            table[ORDER.index(name), : len(values)] = torch.tensor(values, dtype=torch.float64)
        self.scales = torch.zeros(len(params), len(ORDER), dtype=torch.float32)
        self.sums = torch.zeros(len(params), len(SUMS), dtype=torch.float64)
        self.grads = torch.zeros(len(params), dtype=torch.int64)
        self.pointers = self.grads.numpy()
        self.step = _Step(sum(1 << column for column in columns), len(params), len(where))
        self.kept = {
            "chunk_layer": torch.tensor([chunk[0] for chunk in where], dtype=torch.int64),
            "chunk_from": torch.tensor([chunk[1] for chunk in where], dtype=torch.int64),
            "chunk_to": torch.tensor([chunk[2] for chunk in where], dtype=torch.int64),
            "p": torch.tensor(addresses(params, params), dtype=torch.int64),
            "g": self.grads,
            "moments": torch.tensor(moments, dtype=torch.int64),
            "constants": table,
            "scales": self.scales,
            "partial": torch.zeros(len(where), len(SUMS), dtype=torch.float64),
            "sums": self.sums,
        }
        for name, tensor in self.kept.items():
            setattr(self.step, name, tensor.data_ptr())
        self.numel = sum(p.numel() for p in params)

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        self.step.steps = steps.data_ptr()
        self._point(grads)
        seen = list(map(_version, self.params))
        if self.versions != seen:
            self._run("weights")
        self._run("norms")
        sums = self._sums()
        ok = ok & sums[:, 1].isfinite().all()
        if not ok:
            self._point([torch.zeros_like(p) for p in self.params])
            self._run("norms")
            sums = self._sums()
        norms = sums.sqrt_().float()
        return Norms(norms[:, 0], norms[:, 1], norms.index_select(1, self.sums_of), ok)

    def apply(self, scales: Tensor) -> None:
        self.scales.index_copy_(1, self.columns, scales)
        self._run("apply")
        torch.autograd.graph.increment_version(self.params)
        self.versions = list(map(_version, self.params))

    def _point(self, grads: Sequence[Tensor]) -> None:
        """Tells the kernel where the gradients are."""
        found = list(map(Tensor.data_ptr, grads))
        if 0 in found:  # of no elements; or, from forward differentiation, zeros that take no memory
            grads = [torch.zeros_like(p) if g._is_zerotensor() else g for g, p in zip(grads, self.params, strict=True)]
            found = list(map(Tensor.data_ptr, grads))
        self.kept_grads = grads
        self.pointers[:] = found

    def _sums(self) -> Tensor:
        return self.sums.clone() if self.reduce is None else self.reduce(self.sums.clone())

    def _run(self, name: str) -> None:
        assert self.library is not None
        threads = min(torch.get_num_threads(), self.numel // CHUNK + 1)
        getattr(self.library, name)(ctypes.addressof(self.step), self.library.parallel, threads)
