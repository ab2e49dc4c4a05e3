"""The two passes in Triton, for float32 parameters on a CUDA GPU: a launch each for all layers, and a small one that adds sums up.

It equals the foreach kernel, on an H100 and in Triton's interpreter. Only `fused=True` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from l3rs.directions import Direction
from l3rs.directions.base import bias_correction
from l3rs.optimizer.kernels.memory_layout import COLUMN, MOMENTS, ORDER, SUMS, addresses, align_moments, chunks, held
from l3rs.optimizer.kernels.norms import Norms

CHUNK = 16384  # elements a program takes
BLOCK = 1024
WIDTH = 8  # sums of a chunk, a power of two


@triton.jit
def _pass(
    chunk_layer, chunk_from, chunk_to, p_at, g_at, moments_at, constants, rules, scales, ok, partial, layers,
    SGD: tl.constexpr, ADAM: tl.constexpr, LION: tl.constexpr, LAMB: tl.constexpr, ADAMAX: tl.constexpr, DECAY: tl.constexpr,
    APPLY: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The norms of one chunk, or its update, as APPLY says, along the directions whose flags are set."""
    f32 = tl.pointer_type(tl.float32)
    chunk = tl.program_id(0)
    layer = tl.load(chunk_layer + chunk)
    start, end = tl.load(chunk_from + chunk), tl.load(chunk_to + chunk)
    p, g = tl.load(p_at + layer).to(f32), tl.load(g_at + layer).to(f32)
    good = tl.load(ok) != 0
    zero = tl.zeros((BLOCK,), tl.float32)
    pp, gg, adam, lion, lamb, adamax = zero, zero, zero, zero, zero, zero
    for at in range(start, end, BLOCK):
        i = at + tl.arange(0, BLOCK)
        here = i < end
        gi = tl.load(g + i, mask=here, other=0.0)
        if APPLY:
            gi = tl.where(good, gi, 0.0)  # a step that is given up moves nothing, and its moments take in zeros
        else:
            gg += gi * gi
        if APPLY or LAMB:
            x = tl.load(p + i, mask=here, other=0.0)
        move = zero
        if APPLY and SGD:
            move += tl.load(scales + layer * 6) * gi
        if ADAM:
            m_at, v_at = tl.load(moments_at + layer).to(f32) + i, tl.load(moments_at + layers + layer).to(f32) + i
            m = tl.load(constants + 6) * tl.load(m_at, mask=here, other=0.0) + tl.load(constants + 7) * gi
            v = tl.load(constants + 8) * tl.load(v_at, mask=here, other=0.0) + tl.load(constants + 9) * gi * gi
            d = tl.load(rules + layer * 5 + 1) * m / (tl.sqrt(v) + tl.load(rules + layer * 5))
            d = tl.where(here, d, 0.0)
            if APPLY:
                tl.store(m_at, m, mask=here)
                tl.store(v_at, v, mask=here)
                move += tl.load(scales + layer * 6 + 1) * d
            else:
                adam += d * d
        if LION:
            m_at = tl.load(moments_at + 2 * layers + layer).to(f32) + i
            old = tl.load(m_at, mask=here, other=0.0)
            u = tl.load(constants + 12) * old + tl.load(constants + 13) * gi
            d = tl.where(u > 0, 1.0, tl.where(u < 0, -1.0, 0.0))
            if APPLY:
                tl.store(m_at, tl.load(constants + 14) * old + tl.load(constants + 15) * gi, mask=here)
                move += tl.load(scales + layer * 6 + 2) * d
            else:
                lion += d * d
        if LAMB:
            m_at, v_at = tl.load(moments_at + 3 * layers + layer).to(f32) + i, tl.load(moments_at + 4 * layers + layer).to(f32) + i
            m = tl.load(constants + 18) * tl.load(m_at, mask=here, other=0.0) + tl.load(constants + 19) * gi
            v = tl.load(constants + 20) * tl.load(v_at, mask=here, other=0.0) + tl.load(constants + 21) * gi * gi
            d = tl.load(rules + layer * 5 + 3) * m / (tl.sqrt(v) + tl.load(rules + layer * 5 + 2)) + tl.load(constants + 23) * x
            d = tl.where(here, d, 0.0)
            if APPLY:
                tl.store(m_at, m, mask=here)
                tl.store(v_at, v, mask=here)
                move += tl.load(scales + layer * 6 + 3) * d
            else:
                lamb += d * d
        if ADAMAX:
            m_at, u_at = tl.load(moments_at + 5 * layers + layer).to(f32) + i, tl.load(moments_at + 6 * layers + layer).to(f32) + i
            m = tl.load(constants + 24) * tl.load(m_at, mask=here, other=0.0) + tl.load(constants + 25) * gi
            u = tl.maximum(tl.load(constants + 26) * tl.load(u_at, mask=here, other=0.0), tl.abs(gi) + tl.load(constants + 28))
            d = tl.where(here, tl.load(rules + layer * 5 + 4) * m / u, 0.0)
            if APPLY:
                tl.store(m_at, m, mask=here)
                tl.store(u_at, u, mask=here)
                move += tl.load(scales + layer * 6 + 4) * d
            else:
                adamax += d * d
        if APPLY:
            if DECAY:
                move += tl.load(scales + layer * 6 + 5) * x
            x -= move
            tl.store(p + i, x, mask=here)
            pp += tl.where(here, x * x, 0.0)
    out = partial + chunk * WIDTH
    if APPLY:
        tl.store(out, tl.sum(pp))
    else:
        tl.store(out + 1, tl.sum(gg))
        tl.store(out + 2, tl.sum(adam))
        tl.store(out + 3, tl.sum(lion))
        tl.store(out + 4, tl.sum(lamb))
        tl.store(out + 5, tl.sum(adamax))


@triton.jit
def _add_up(first, partial, sums, FROM: tl.constexpr, TO: tl.constexpr, WIDTH: tl.constexpr):
    """The sums of one layer over its chunks, always in the same order."""
    layer = tl.program_id(0)
    lanes, rows = tl.arange(0, WIDTH), tl.arange(0, 32)
    start, end = tl.load(first + layer), tl.load(first + layer + 1)
    total = tl.zeros((WIDTH,), tl.float32)
    for at in range(start, end, 32):
        chunk = at + rows
        total += tl.sum(tl.load(partial + chunk[:, None] * WIDTH + lanes[None, :], mask=(chunk < end)[:, None], other=0.0), axis=0)
    tl.store(sums + layer * WIDTH + lanes, total, mask=(lanes >= FROM) & (lanes < TO))


class TritonKernel:
    """As the native kernel: 3 words per parameter in the first pass and 7 in the second for SGD + Adam, without temporaries.

    It never waits for the device. Addresses of gradients go there only when they have changed, so that a step whose gradients stay in
    place can be captured in a CUDA graph.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        directions: Mapping[str, Direction],
        constants: Mapping[str, tuple[float, ...]],
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.params, self.reduce, self.device = list(params), reduce, params[0].device
        align_moments(params, states)
        self.flags = [name in directions for name in ORDER]
        self.columns = torch.tensor([ORDER.index(name) for name in directions], device=self.device)
        self.sums_of = torch.tensor([SUMS.index(COLUMN[name]) for name in directions], device=self.device)
        self.moments = [[state.get(key) for state in states] for key in MOMENTS]
        self.held = held([*params, *chain(*self.moments)])
        moments = [addresses(row, params) for row in self.moments]
        where = chunks(params, CHUNK)
        counts = torch.bincount(torch.tensor([layer for layer, _, _ in where]), minlength=len(params))
        table = torch.zeros(len(ORDER), 6, dtype=torch.float64)  # beta1, 1 - beta1, beta2, 1 - beta2, eps, weight decay
        self.hyper = {name: (*values, 0.0, 0.0, 0.0, 0.0)[:4] for name, values in constants.items()}
        for name, (beta1, beta2, eps, decay) in self.hyper.items():
            table[ORDER.index(name)] = torch.tensor([beta1, 1 - beta1, beta2, 1 - beta2, eps, decay], dtype=torch.float64)
        self.first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(self.device)
        self.layer, self.start, self.end = (column.contiguous() for column in torch.tensor(where).to(self.device).unbind(dim=1))
        self.p_at = torch.tensor([p.data_ptr() for p in params]).to(self.device)
        self.moments_at = torch.tensor(moments).to(self.device)
        self.constants = table.float().to(self.device)
        self.scales = torch.zeros(len(params), len(ORDER), dtype=torch.float32, device=self.device)
        self.sums, self.partial = (torch.zeros(n, WIDTH, dtype=torch.float32, device=self.device) for n in (len(params), len(where)))
        self.yes = torch.ones((), dtype=torch.int32, device=self.device)
        self.g_at = torch.zeros_like(self.p_at)
        self.addresses, self.versions = [0], [-1]

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        self._point(grads)
        self.rules = torch.stack([self._rule("adam", steps), self._rule("lamb", steps), self._rule("adamax", steps)], dim=1).flatten(1)[
            :, :5
        ]
        self.rules = self.rules.contiguous()
        if self.versions != [p._version for p in self.params]:
            self.sums[:, 0] = torch.stack(torch._foreach_norm(self.params)).square()
        self._run(self.yes, apply=False)
        sums = self.sums if self.reduce is None else self.reduce(self.sums)
        self.ok = ok & sums[:, 1].isfinite().all()
        norms = sums.sqrt()
        rest = torch.where(self.ok, norms, 0)
        return Norms(norms[:, 0], rest[:, 1], torch.cat([norms[:, :1], rest[:, 1:]], dim=1)[:, self.sums_of], self.ok)

    def apply(self, scales: Tensor) -> None:
        self.scales[:, self.columns] = scales
        self._run(self.ok.to(torch.int32), apply=True)
        torch.autograd.graph.increment_version(self.params)
        self.versions = [p._version for p in self.params]

    def _rule(self, name: str, steps: Tensor) -> Tensor:
        """eps and gain of each layer, (L, 2), as in step.c; Adamax needs the gain alone, which comes first."""
        beta1, beta2, eps, _ = self.hyper.get(name, (0.9, 0.999, 0.0, 0.0))
        first = bias_correction(beta1, steps)
        if name == "adamax":
            return torch.stack([1 / first, first], dim=1)
        root = bias_correction(beta2, steps).sqrt()
        return torch.stack([eps * root, root / first], dim=1)

    def _point(self, grads: Sequence[Tensor]) -> None:
        self.kept, found = grads, [g.data_ptr() for g in grads]
        if found != self.addresses:
            table = torch.tensor(found, dtype=torch.int64)
            self.g_at.copy_(table.pin_memory() if self.device.type == "cuda" else table, non_blocking=True)
            self.addresses = found

    def _run(self, ok: Tensor, apply: bool) -> None:
        tables = (self.layer, self.start, self.end, self.p_at, self.g_at, self.moments_at, self.constants, self.rules, self.scales)
        _pass[(len(self.layer),)](*tables, ok, self.partial, len(self.params), *self.flags, APPLY=apply, BLOCK=BLOCK, WIDTH=WIDTH)
        span = (0, 1) if apply else (1, len(SUMS))
        _add_up[(len(self.params),)](self.first, self.partial, self.sums, FROM=span[0], TO=span[1], WIDTH=WIDTH)
