"""The pass of VeLO, Celo, Celo2 and small_fc_lopt over the elements of parameters in Triton, for float32 on CUDA.

It does what `elements.c` does, and in the same order: means of squares along two axes, then momentum, mean square and the sums of squared
features, then the features again and the MLP. Features stay in registers. All parameters of a portion go through each kernel together: a
program finds its addresses in tables.

A parameter is seen as (A0, X, A1, Y, A2), where X and Y are the two factored axes; a vector as (1, 1, 1, 1, n). What is normalized
together is a segment: a parameter, or one spatial position of it, whose elements lie `stride` apart. Sums are added in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from l3rs.learned.accumulators import CLIP_FEATURE, DECAYS, WIDTHS, State
from l3rs.learned.layout import factored_axes
from l3rs.learned.mlp import MLP, Rule

FEATURES = sum(WIDTHS)
WIDTH, MOMENTS = 32, 16  # of a row of sums, powers of two
BLOCK, WIDE = 512, 128  # elements of a program, of MLPs that are narrow, and of those of 16 units or more
TILE = 32  # outputs of a program that takes means, and elements of each that it reads at a time


@triton.jit
def _means(tile_side, tile_from, sides, now, decays, bound, TILE: tl.constexpr):
    """Takes the mean of the squared gradient along one axis into the averages at three decays, for some of what is kept."""
    f32 = tl.pointer_type(tl.float32)
    at = sides + tl.load(tile_side + tl.program_id(0)) * 5
    g = tl.load(now + tl.load(at) * 4).to(f32)
    length, stride = tl.load(at + 1).to(tl.int32), tl.load(at + 2).to(tl.int32)
    mean, count = tl.load(at + 3).to(f32), tl.load(at + 4).to(tl.int32)
    lanes = tl.arange(0, TILE)
    kept = tl.load(tile_from + tl.program_id(0)).to(tl.int32) + lanes
    here = kept < count
    first = kept // stride * (length * stride) + kept % stride
    sums = tl.zeros((TILE, TILE), tl.float32)
    if stride == 1:  # rows of a matrix: neighbours in memory are added
        for start in range(0, length, TILE):
            along = start + lanes
            mask = here[:, None] & (along < length)[None, :]
            x = tl.load(g + first[:, None] + along[None, :], mask=mask, other=0.0)
            x = tl.minimum(tl.maximum(x, -bound), bound)
            sums += tl.where(mask, x * x + 1e-30, 0.0)
        total = tl.sum(sums, axis=1)
    else:
        for start in range(0, length, TILE):
            along = start + lanes
            mask = (along < length)[:, None] & here[None, :]
            x = tl.load(g + along[:, None] * stride + first[None, :], mask=mask, other=0.0)
            x = tl.minimum(tl.maximum(x, -bound), bound)
            sums += tl.where(mask, x * x + 1e-30, 0.0)
        total = tl.sum(sums, axis=0)
    total /= length
    for k in tl.static_range(3):
        to = mean + k * count + kept
        old = tl.load(to, mask=here, other=0.0)
        tl.store(to, tl.load(decays + 6 + k) * old + tl.load(decays + 9 + k) * total, mask=here)


@triton.jit
def _levels(tile_owner, tile_from, levels, over, TILE: tl.constexpr):
    """Row means, averaged again over d1, plus 1e-9: what they are divided by."""
    f32 = tl.pointer_type(tl.float32)
    at = levels + tl.load(tile_owner + tl.program_id(0)) * 5
    length, stride = tl.load(at).to(tl.int32), tl.load(at + 1).to(tl.int32)
    mean, count, to = tl.load(at + 2).to(f32), tl.load(at + 3).to(tl.int32), over + tl.load(at + 4)
    lanes = tl.arange(0, TILE)
    kept = tl.load(tile_from + tl.program_id(0)).to(tl.int32) + lanes
    here = kept < count
    first = kept // stride * (length * stride) + kept % stride
    for k in tl.static_range(3):
        sums = tl.zeros((TILE, TILE), tl.float32)
        for start in range(0, length, TILE):
            along = start + lanes
            mask = here[:, None] & (along < length)[None, :]
            sums += tl.load(mean + k * count * length + first[:, None] + along[None, :] * stride, mask=mask, other=0.0)
        tl.store(to + k * count + kept, tl.sum(sums, axis=1) / length + 1e-9, mask=here)


@triton.jit
def _inverse_root(x):
    return tl.rsqrt(tl.maximum(x, 1e-9))


@triton.jit
def _feature(h, f, here, K: tl.constexpr, sums, weights, units, count, delta, APPLY: tl.constexpr, HIDDEN: tl.constexpr):
    """Adds what feature K gives to the first layer; or, before that, stores the sum of its squares."""
    if APPLY:
        f *= tl.rsqrt(tl.load(sums + K) / count + delta)
        h += tl.load(weights + K * HIDDEN + units)[:, None] * f[None, :]
    else:
        tl.store(sums + K, tl.sum(tl.where(here, f * f, 0.0)))
    return h


@triton.jit
def _elements(
    block_segment, block_from, segments, table, now, decays, over, partial, sums, eps, delta, bound, clip, exponent, of_vectors,
    APPLY: tl.constexpr, EXPONENT: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of elements: advances momentum and mean square, and sums squared features; or, as APPLY says, runs the MLP."""
    f32 = tl.pointer_type(tl.float32)
    block = tl.program_id(0)
    segment = tl.load(block_segment + block)
    at = segments + segment * 4
    owner, offset = tl.load(at), tl.load(at + 1).to(tl.int32)
    stride, count = tl.load(at + 2).to(tl.int32), tl.load(at + 3).to(tl.int32)
    pointers, mine = now + owner * 4, table + owner * 14
    lane = tl.load(block_from + block).to(tl.int32) + tl.arange(0, BLOCK)
    here = lane < count
    e = offset + lane * stride
    g = tl.load(tl.load(pointers).to(f32) + e, mask=here, other=0.0)
    g = tl.minimum(tl.maximum(g, -bound), bound)
    p = tl.load(tl.load(pointers + 1).to(f32) + e, mask=here, other=0.0)
    numel = tl.load(mine + 2)
    m_at, r_at = tl.load(mine).to(f32) + e, tl.load(mine + 1).to(f32) + e
    m0 = tl.load(m_at, mask=here, other=0.0)
    m1 = tl.load(m_at + numel, mask=here, other=0.0)
    m2 = tl.load(m_at + 2 * numel, mask=here, other=0.0)
    r = tl.load(r_at, mask=here, other=0.0)
    if not APPLY:
        m0 = tl.load(decays) * m0 + tl.load(decays + 3) * g
        m1 = tl.load(decays + 1) * m1 + tl.load(decays + 4) * g
        m2 = tl.load(decays + 2) * m2 + tl.load(decays + 5) * g
        r = tl.load(decays + 12) * r + tl.load(decays + 13) * (g * g)
        tl.store(m_at, m0, mask=here)
        tl.store(m_at + numel, m1, mask=here)
        tl.store(m_at + 2 * numel, m2, mask=here)
        tl.store(r_at, r, mask=here)

    # where the element's row and column have their numbers
    xs, between = tl.load(mine + 3).to(tl.int32), tl.load(mine + 4).to(tl.int32)
    ys, inner = tl.load(mine + 5).to(tl.int32), tl.load(mine + 6).to(tl.int32)
    a2, rest = e % inner, e // inner
    y, rest = rest % ys, rest // ys
    a1, rest = rest % between, rest // between
    x, a0 = rest % xs, rest // xs
    outside = a0 * between + a1
    without_x, without_y = (outside * ys + y) * inner + a2, ((a0 * xs + x) * between + a1) * inner + a2
    rows_have_y, matrix = tl.load(mine + 7) != 0, tl.load(mine + 8) == 0
    row_at = tl.load(mine + 9).to(f32) + tl.where(rows_have_y, without_x, without_y)
    col_at = tl.load(mine + 10).to(f32) + tl.where(rows_have_y, without_y, without_x)
    rows = tl.where(rows_have_y, numel // xs, numel // ys)
    cols = tl.where(rows_have_y, numel // ys, numel // xs)
    level_at, levels = over + tl.load(mine + 11) + tl.where(matrix, outside * inner + a2, 0), tl.load(mine + 12)

    s = tl.rsqrt(r + eps)
    units = tl.arange(0, HIDDEN)
    weights = tl.load(pointers + 3).to(f32)
    if APPLY:
        into = sums + segment * 32
        h = tl.load(weights + 30 * HIDDEN + units)[:, None] + tl.zeros((HIDDEN, BLOCK), tl.float32)
    else:
        into = partial + block * 32
        h = tl.zeros((1, 1), tl.float32)
    n = count.to(tl.float32)
    h = _feature(h, g, here, 0, into, weights, units, n, delta, APPLY, HIDDEN)
    h = _feature(h, tl.minimum(tl.maximum(g, -clip), clip), here, 1, into, weights, units, n, delta, APPLY, HIDDEN)
    h = _feature(h, p, here, 2, into, weights, units, n, delta, APPLY, HIDDEN)
    h = _feature(h, r, here, 6, into, weights, units, n, delta, APPLY, HIDDEN)
    h = _feature(h, s, here, 10, into, weights, units, n, delta, APPLY, HIDDEN)
    h = _feature(h, g * s, here, 14, into, weights, units, n, delta, APPLY, HIDDEN)
    every = tl.load(mine + 13) != 0
    for k in tl.static_range(3):
        if k == 0:
            m = m0
        elif k == 1:
            m = m1
        else:
            m = m2
        row = tl.load(row_at + k * rows, mask=here, other=0.0)
        col = tl.load(col_at + k * cols, mask=here, other=0.0)
        by = tl.load(level_at + k * levels, mask=here, other=1.0)
        a = _inverse_root(tl.where(matrix, row / by, row + 1e-9))
        b = tl.where(matrix, _inverse_root(col), tl.rsqrt(col + of_vectors))
        h = _feature(h, m, here, 3 + k, into, weights, units, n, delta, APPLY, HIDDEN)
        h = _feature(h, m * s, here, 7 + k, into, weights, units, n, delta, APPLY, HIDDEN)
        h = _feature(h, tl.where(matrix, g * a * b, g * a), here, 11 + k, into, weights, units, n, delta, APPLY, HIDDEN)
        if every:
            h = _feature(h, row, here, 15 + k, into, weights, units, n, delta, APPLY, HIDDEN)
            h = _feature(h, col, here, 18 + k, into, weights, units, n, delta, APPLY, HIDDEN)
            h = _feature(h, tl.rsqrt(row + 1e-8), here, 21 + k, into, weights, units, n, delta, APPLY, HIDDEN)
            h = _feature(h, tl.rsqrt(col + 1e-8), here, 24 + k, into, weights, units, n, delta, APPLY, HIDDEN)
            h = _feature(h, m * tl.where(matrix, a * b, b), here, 27 + k, into, weights, units, n, delta, APPLY, HIDDEN)

    if APPLY:
        h = tl.maximum(h, 0.0)
        second = weights + 31 * HIDDEN
        w1 = tl.load(second + units[None, :] * HIDDEN + units[:, None])  # (out, in)
        if HIDDEN >= 16:  # noqa: SIM108
            h = tl.dot(w1, h, input_precision="ieee")
        else:
            h = tl.sum(w1[:, :, None] * h[None, :, :], axis=1)
        h = tl.maximum(h + tl.load(second + HIDDEN * HIDDEN + units)[:, None], 0.0)
        last = second + HIDDEN * HIDDEN + HIDDEN
        d = tl.sum(h * tl.load(last + 3 * units)[:, None], axis=0) + tl.load(last + 3 * HIDDEN)
        if EXPONENT:
            magnitude = tl.sum(h * tl.load(last + 3 * units + 1)[:, None], axis=0) + tl.load(last + 3 * HIDDEN + 1)
            d *= tl.exp(exponent * magnitude)
        tl.store(tl.load(pointers + 2).to(f32) + e, d, mask=here)


@triton.jit
def _moments(block_segment, block_from, segments, table, now, partial, BLOCK: tl.constexpr):
    """Sums over one block, in double precision: of p^2; of r and r^2; of each momentum and its square."""
    f32 = tl.pointer_type(tl.float32)
    block = tl.program_id(0)
    at = segments + tl.load(block_segment + block) * 4
    owner, e = tl.load(at), tl.load(block_from + block).to(tl.int32) + tl.arange(0, BLOCK)
    here = e < tl.load(at + 3).to(tl.int32)
    mine, out = table + owner * 14, partial + block * 16
    p = tl.load(tl.load(now + owner * 4 + 1).to(f32) + e, mask=here, other=0.0).to(tl.float64)
    tl.store(out, tl.sum(p * p))
    for k in tl.static_range(4):
        if k == 0:  # noqa: SIM108
            x_at = tl.load(mine + 1).to(f32)
        else:
            x_at = tl.load(mine).to(f32) + (k - 1) * tl.load(mine + 2)
        x = tl.load(x_at + e, mask=here, other=0.0).to(tl.float64)
        tl.store(out + 1 + 2 * k, tl.sum(x))
        tl.store(out + 2 + 2 * k, tl.sum(x * x))


@triton.jit
def _add_up(first, partial, sums, WIDTH: tl.constexpr):
    """The sums of a segment over its blocks, always in the same order."""
    segment = tl.program_id(0)
    lanes, rows = tl.arange(0, WIDTH), tl.arange(0, 64)
    start, end = tl.load(first + segment), tl.load(first + segment + 1)
    total = tl.zeros((64, WIDTH), partial.dtype.element_ty)
    for at in range(start, end, 64):
        block = at + rows
        total += tl.load(partial + block[:, None] * WIDTH + lanes[None, :], mask=(block < end)[:, None], other=0.0)
    tl.store(sums + segment * WIDTH + lanes, tl.sum(total, axis=0))


def _axes(shape: Sequence[int]) -> tuple[tuple[int, int, int, int], bool]:
    """X, A1, Y and A2 of a shape, and whether rows, the numbers without d0, are those without X."""
    factored = factored_axes(shape)
    if factored is None:
        return (1, 1, 1, math.prod(shape)), True
    (x, y), d0 = sorted(factored), factored[1]
    return (shape[x], math.prod(shape[x + 1 : y]), shape[y], math.prod(shape[y + 1 :])), d0 == x


class TritonElements:
    """For parameters that are stepped together, as long as their states stay where they are in memory: as `ElementsKernel`.

    Args:
        shapes: of the parameters.
        states: of each.
        rule: of the optimizer.
        hidden: width of the MLP, a power of two.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], states: Sequence[State], rule: Rule, hidden: int) -> None:
        self.shapes, self.rule, self.hidden = list(shapes), rule, hidden
        self.device = device = states[0]["second"].device
        table, sides, levels, segments = [], [], [], []
        over = 0  # numbers that row means are divided by, so far
        for owner, (shape, state) in enumerate(zip(shapes, states, strict=True)):
            numel, vector, (axes, rows_have_y) = math.prod(shape), len(shape) < 2, _axes(shape)
            xs, between, ys, inner = axes
            stride_of_x = between * ys * inner
            row, col = (state["square"].data_ptr(),) * 2 if vector else (state["row"].data_ptr(), state["col"].data_ptr())
            along_x, along_y = (xs, stride_of_x), (ys, inner)
            of_row, of_col = (along_x, along_y) if rows_have_y else (along_y, along_x)
            sides.append([owner, *of_row, row, numel // of_row[0]])
            count = 0
            if not vector:
                sides.append([owner, *of_col, col, numel // of_col[0]])
                length, stride = (ys, inner) if rows_have_y else (xs, between * inner)  # of d1 among the row means
                count = numel // (xs * ys)
                levels.append([length, stride, row, count, over])
            every = not (rule.by_matrix and vector)
            where = [state["momentum"].data_ptr(), state["second"].data_ptr(), numel, *axes, rows_have_y, vector, row, col]
            table.append([*where, over, count, every])
            over += len(DECAYS) * count
            apart = math.prod(shape[2:]) if rule.by_matrix else 1
            segments += [[owner, position, apart, numel // apart] for position in range(apart)]

        def on_device(rows: list[list[int]], columns: int) -> Tensor:
            return torch.tensor(rows, dtype=torch.int64).view(-1, columns).to(device)

        self.table, self.segments = on_device(table, 14), on_device(segments, 4)
        self.sides, self.levels = on_device(sides, 5), on_device(levels, 5)
        self.block = BLOCK if hidden < 16 else WIDE
        self.blocks, self.first = _cut([s[3] for s in segments], self.block, device)
        self.side_tiles, _ = _cut([s[4] for s in sides], TILE, device)
        self.level_tiles, _ = _cut([level[3] for level in levels], TILE, device)
        self.over = torch.ones(over + 1, dtype=torch.float32, device=device)
        keep = torch.tensor([*rule.momentum, *rule.factors, rule.rho], dtype=torch.float32)
        parts = keep.split([3, 3, 1])
        self.decays = torch.cat([t for part in parts for t in (part, 1 - part)]).to(device)
        self.now = torch.zeros(len(shapes), 4, dtype=torch.int64, device=device)

    def _point(self, grads: Sequence[Tensor], params: Sequence[Tensor], others: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Tells the device where all is; gives what has to stay there until the kernels are launched."""
        held = [(g.contiguous(), p.contiguous()) for g, p in zip(grads, params, strict=True)]
        rows = torch.tensor([[g.data_ptr(), p.data_ptr(), *more] for (g, p), more in zip(held, others, strict=True)], dtype=torch.int64)
        self.now.copy_(rows.pin_memory() if self.device.type == "cuda" else rows, non_blocking=True)
        return held

    def _sums(self, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return tuple(torch.empty(n, width, dtype=dtype, device=self.device) for n in (len(self.blocks[0]), len(self.segments)))  # type: ignore[return-value]

    def measure(self, grads: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
        """Of each parameter, (L, 9), float64: sums of p^2; of r and r^2; of each momentum and its square."""
        assert not self.rule.by_matrix
        held = self._point(grads, params, [(0, 0)] * len(self.shapes))
        partial, sums = self._sums(MOMENTS, torch.float64)
        partial.zero_()
        _moments[(len(partial),)](*self.blocks, self.segments, self.table, self.now, partial, BLOCK=self.block)
        _add_up[(len(sums),)](self.first, partial, sums, WIDTH=MOMENTS)
        del held
        return sums[:, :9]

    def __call__(self, grads: Sequence[Tensor], params: Sequence[Tensor], mlps: Sequence[MLP]) -> list[Tensor]:
        """Advances the states, and gives what each parameter's MLP makes of its elements: direction times exp(exponent * log magnitude)."""
        unique = list({id(mlp): mlp for mlp in mlps}.values())
        place = {id(mlp): i for i, mlp in enumerate(unique)}
        h = self.hidden
        for mlp in unique:
            if [tuple(t.shape) for t in mlp] != [(FEATURES, h), (h,), (h, h), (h,), (h, 3), (3,)] or mlp.b0.dtype != torch.float32:
                raise ValueError(f"the MLP must have {FEATURES} inputs and {h} units, in float32 (got {[tuple(t.shape) for t in mlp]})")
        weights = torch.cat([t.flatten() for mlp in unique for t in mlp]).view(len(unique), -1)
        out = torch.empty(sum(map(math.prod, self.shapes)), dtype=torch.float32, device=self.device)
        found = [part.view(shape) for part, shape in zip(out.split([math.prod(s) for s in self.shapes]), self.shapes, strict=True)]
        others = [(d.data_ptr(), weights[place[id(mlp)]].data_ptr()) for d, mlp in zip(found, mlps, strict=True)]
        held = self._point(grads, params, others)
        rule = self.rule
        _means[(len(self.side_tiles[0]),)](*self.side_tiles, self.sides, self.now, self.decays, rule.clip, TILE=TILE)
        if len(self.levels):
            _levels[(len(self.level_tiles[0]),)](*self.level_tiles, self.levels, self.over, TILE=TILE)
        partial, sums = self._sums(WIDTH, torch.float32)
        tables = (*self.blocks, self.segments, self.table, self.now, self.decays, self.over, partial, sums)
        numbers = (rule.eps, rule.delta, rule.clip, CLIP_FEATURE, rule.exponent, rule.of_vectors)
        sizes = {"EXPONENT": rule.exponent != 0, "HIDDEN": h, "BLOCK": self.block}
        _elements[(len(partial),)](*tables, *numbers, APPLY=False, **sizes)
        _add_up[(len(sums),)](self.first, partial, sums, WIDTH=WIDTH)
        _elements[(len(partial),)](*tables, *numbers, APPLY=True, **sizes)
        del held
        return found


def _cut(lengths: Sequence[int], size: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Pieces of at most `size`: of which each is, and where it starts there; and the number of each one's first piece, (n + 1,)."""
    counts = torch.tensor([-(-length // size) for length in lengths], dtype=torch.int64)
    ends = counts.cumsum(0)
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    start = (torch.arange(len(owner)) - (ends - counts)[owner]) * size
    return (owner.to(device), start.to(device)), torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(device)
