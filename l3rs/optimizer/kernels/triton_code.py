"""The kernels of a step in Triton, which `triton_kernel.py` launches: `measure`, `decide` and `move`; and `add_up`, for sharded parameters.

Pieces of layers are called chunks. `partial` has a row of WIDTH sums of squares for each chunk, in the order of `SUMS`, and `first` says
with which row each layer begins; both follow one order, so that nothing depends on which program ends first.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _correction(log_beta, n):
    """1 - beta^n, in float64, where it is exact for beta near 1."""
    return 1.0 - tl.exp(log_beta * n)


@triton.jit
def _pass(
    chunk_layer, chunk_from, chunk_to, p_at, g_at, moments_at, constants, steps, scales, good, partial, layers,
    SGD: tl.constexpr, ADAM: tl.constexpr, LION: tl.constexpr, LAMB: tl.constexpr, ADAMAX: tl.constexpr, DECAY: tl.constexpr,
    APPLY: tl.constexpr, WEIGHTS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The sums of one chunk, those of p too if WEIGHTS; or, if APPLY, its update, and the sum of the new p."""
    f32 = tl.pointer_type(tl.float32)
    chunk = tl.program_id(0)
    layer = tl.load(chunk_layer + chunk)
    start, end = tl.load(chunk_from + chunk), tl.load(chunk_to + chunk)
    p, g = tl.load(p_at + layer).to(f32), tl.load(g_at + layer).to(f32)
    n = tl.load(steps + layer).to(tl.float64)
    if not APPLY:
        n += 1.0  # `decide`, which comes between the passes, counts this step
    if ADAM:
        adam_m, adam_v = tl.load(moments_at + layer).to(f32), tl.load(moments_at + layers + layer).to(f32)
        adam_keep, adam_new = tl.load(constants + 8).to(tl.float32), tl.load(constants + 9).to(tl.float32)
        adam_keep2, adam_new2 = tl.load(constants + 10).to(tl.float32), tl.load(constants + 11).to(tl.float32)
        root = tl.sqrt(_correction(tl.load(constants + 15), n))
        adam_eps = (tl.load(constants + 12) * root).to(tl.float32)
        adam_gain = (root / _correction(tl.load(constants + 14), n)).to(tl.float32)
    if LION:
        lion_m = tl.load(moments_at + 2 * layers + layer).to(f32)
        lion_keep, lion_new = tl.load(constants + 16).to(tl.float32), tl.load(constants + 17).to(tl.float32)
        lion_keep2, lion_new2 = tl.load(constants + 18).to(tl.float32), tl.load(constants + 19).to(tl.float32)
    if LAMB:
        lamb_m, lamb_v = tl.load(moments_at + 3 * layers + layer).to(f32), tl.load(moments_at + 4 * layers + layer).to(f32)
        lamb_keep, lamb_new = tl.load(constants + 24).to(tl.float32), tl.load(constants + 25).to(tl.float32)
        lamb_keep2, lamb_new2 = tl.load(constants + 26).to(tl.float32), tl.load(constants + 27).to(tl.float32)
        root = tl.sqrt(_correction(tl.load(constants + 31), n))
        lamb_eps = (tl.load(constants + 28) * root).to(tl.float32)
        lamb_gain = (root / _correction(tl.load(constants + 30), n)).to(tl.float32)
        lamb_decay = tl.load(constants + 29).to(tl.float32)
    if ADAMAX:
        adamax_m, adamax_u = tl.load(moments_at + 5 * layers + layer).to(f32), tl.load(moments_at + 6 * layers + layer).to(f32)
        adamax_keep, adamax_new = tl.load(constants + 32).to(tl.float32), tl.load(constants + 33).to(tl.float32)
        adamax_keep2, adamax_eps = tl.load(constants + 34).to(tl.float32), tl.load(constants + 36).to(tl.float32)
        adamax_gain = (1.0 / _correction(tl.load(constants + 38), n)).to(tl.float32)
    if APPLY:
        moves = tl.load(good) != 0
        by_sgd, by_adam, by_lion = tl.load(scales + layer * 6), tl.load(scales + layer * 6 + 1), tl.load(scales + layer * 6 + 2)
        by_lamb, by_adamax, by_p = tl.load(scales + layer * 6 + 3), tl.load(scales + layer * 6 + 4), tl.load(scales + layer * 6 + 5)
    zero = tl.zeros((BLOCK,), tl.float32)
    pp, gg, adam, lion, lamb, adamax = zero, zero, zero, zero, zero, zero
    for at in range(start, end, BLOCK):
        i = at + tl.arange(0, BLOCK)
        here = i < end
        gi = tl.load(g + i, mask=here, other=0.0)
        move = zero
        if APPLY:
            gi = tl.where(moves, gi, 0.0)  # a step that is given up moves nothing, and its moments take in zeros
        else:
            gg += gi * gi
        if APPLY or LAMB or WEIGHTS:
            x = tl.load(p + i, mask=here, other=0.0)
        if APPLY and SGD:
            move += by_sgd * gi
        if ADAM:
            m = adam_keep * tl.load(adam_m + i, mask=here, other=0.0) + adam_new * gi
            v = adam_keep2 * tl.load(adam_v + i, mask=here, other=0.0) + adam_new2 * gi * gi
            d = tl.where(here, adam_gain * m / (tl.sqrt(v) + adam_eps), 0.0)
            if APPLY:
                tl.store(adam_m + i, m, mask=here)
                tl.store(adam_v + i, v, mask=here)
                move += by_adam * d
            else:
                adam += d * d
        if LION:
            old = tl.load(lion_m + i, mask=here, other=0.0)
            u = lion_keep * old + lion_new * gi
            d = tl.where(u > 0, 1.0, tl.where(u < 0, -1.0, 0.0))
            if APPLY:
                tl.store(lion_m + i, lion_keep2 * old + lion_new2 * gi, mask=here)
                move += by_lion * d
            else:
                lion += d * d
        if LAMB:
            m = lamb_keep * tl.load(lamb_m + i, mask=here, other=0.0) + lamb_new * gi
            v = lamb_keep2 * tl.load(lamb_v + i, mask=here, other=0.0) + lamb_new2 * gi * gi
            d = tl.where(here, lamb_gain * m / (tl.sqrt(v) + lamb_eps) + lamb_decay * x, 0.0)
            if APPLY:
                tl.store(lamb_m + i, m, mask=here)
                tl.store(lamb_v + i, v, mask=here)
                move += by_lamb * d
            else:
                lamb += d * d
        if ADAMAX:
            m = adamax_keep * tl.load(adamax_m + i, mask=here, other=0.0) + adamax_new * gi
            u = tl.maximum(adamax_keep2 * tl.load(adamax_u + i, mask=here, other=0.0), tl.abs(gi) + adamax_eps)
            d = tl.where(here, adamax_gain * m / u, 0.0)
            if APPLY:
                tl.store(adamax_m + i, m, mask=here)
                tl.store(adamax_u + i, u, mask=here)
                move += by_adamax * d
            else:
                adamax += d * d
        if APPLY:
            if DECAY:
                move += by_p * x
            x = tl.where(here, x - move, 0.0)
            tl.store(p + i, x, mask=here)
        if APPLY or WEIGHTS:
            pp += x * x  # alike in both, so that a norm has the same bits whichever pass took it
    out = partial + chunk * WIDTH
    if APPLY or WEIGHTS:
        tl.store(out, tl.sum(pp))
    if not APPLY:
        tl.store(out + 1, tl.sum(gg))
        tl.store(out + 2, tl.sum(adam))
        tl.store(out + 3, tl.sum(lion))
        tl.store(out + 4, tl.sum(lamb))
        tl.store(out + 5, tl.sum(adamax))


@triton.jit
def measure(
    chunk_layer, chunk_from, chunk_to, p_at, g_at, moments_at, constants, steps, scales, good, partial, layers,
    SGD: tl.constexpr, ADAM: tl.constexpr, LION: tl.constexpr, LAMB: tl.constexpr, ADAMAX: tl.constexpr, DECAY: tl.constexpr,
    WEIGHTS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The first pass: the sums of squares of each chunk. Writes nothing else."""
    _pass(
        chunk_layer, chunk_from, chunk_to, p_at, g_at, moments_at, constants, steps, scales, good, partial, layers,
        SGD, ADAM, LION, LAMB, ADAMAX, DECAY, False, WEIGHTS, BLOCK, WIDTH,
    )  # fmt: skip


@triton.jit
def move(
    chunk_layer, chunk_from, chunk_to, p_at, g_at, moments_at, constants, steps, scales, good, partial, layers,
    clock, skipped, groups,
    SGD: tl.constexpr, ADAM: tl.constexpr, LION: tl.constexpr, LAMB: tl.constexpr, ADAMAX: tl.constexpr, DECAY: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The second pass: the update and the moments. Advances the clock too, which every program of `decide` reads."""
    if tl.program_id(0) == 0:
        for group in range(groups):
            tl.store(clock + group, tl.load(clock + group) + 1.0)
        tl.store(skipped, tl.load(skipped) + tl.where(tl.load(good) != 0, 0, 1))
    _pass(
        chunk_layer, chunk_from, chunk_to, p_at, g_at, moments_at, constants, steps, scales, good, partial, layers,
        SGD, ADAM, LION, LAMB, ADAMAX, DECAY, True, False, BLOCK, WIDTH,
    )  # fmt: skip


@triton.jit
def _sums_of(layer, first, partial, WIDTH: tl.constexpr):
    """The sums of one layer, (WIDTH,), always added in the same order."""
    lanes, rows = tl.arange(0, WIDTH), tl.arange(0, 32)
    total = tl.zeros((WIDTH,), tl.float32)
    end = tl.load(first + layer + 1)
    for at in range(tl.load(first + layer), end, 32):
        chunk = at + rows
        total += tl.sum(tl.load(partial + chunk[:, None] * WIDTH + lanes[None, :], mask=(chunk < end)[:, None], other=0.0), axis=0)
    return total


@triton.jit
def add_up(first, partial, sums, WIDTH: tl.constexpr):
    """The sums of every layer, (layers, WIDTH), a program each: what is reduced over ranks where parameters are sharded."""
    layer = tl.program_id(0)
    tl.store(sums + layer * WIDTH + tl.arange(0, WIDTH), _sums_of(layer, first, partial, WIDTH))


@triton.jit
def _norm(sums, column, WIDTH: tl.constexpr):
    """The root of one of the sums."""
    return tl.sqrt(tl.sum(tl.where(tl.arange(0, WIDTH) == column, sums, 0.0)))


@triton.jit
def _all_finite(first, partial, layers, loss, others, WIDTH: tl.constexpr):
    """Whether the loss, all gradients and the other devices are well. A sum that float32 cannot hold is not."""
    rows = tl.load(first + layers)
    total = tl.zeros((1024,), tl.float32)
    for at in range(0, rows, 1024):
        i = at + tl.arange(0, 1024)
        total += tl.load(partial + i * WIDTH + 1, mask=i < rows, other=0.0)
    return (tl.sum(total) < float("inf")) & (tl.abs(tl.load(loss)) < float("inf")) & (tl.load(others) != 0)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _linear(x, weight, bias, inputs, outputs, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr):
    """W x + b, (OUTPUTS,), of x (INPUTS,), which is 0 beyond `inputs`."""
    i, o = tl.arange(0, INPUTS), tl.arange(0, OUTPUTS)
    w = tl.load(weight + o[:, None] * inputs + i[None, :], mask=(o < outputs)[:, None] & (i < inputs)[None, :], other=0.0)
    return tl.sum(w * x[None, :], axis=1) + tl.load(bias + o, mask=o < outputs, other=0.0)


@triton.jit
def _size(layer, sums, good, first, partial, size_kind, size_row, size_floor, size_constant, root, head, head_bias, WIDTH: tl.constexpr):
    """What the steps of a layer are measured by, as in `l3rs.controller.layer_sizes.Sizes`."""
    kind = tl.load(size_kind + layer)
    size = tl.load(size_constant + layer)
    if kind == 0:
        size = _norm(_sums_of(tl.load(size_row + layer), first, partial, WIDTH), 0, WIDTH)
    if kind == 2:
        of_weights = tl.where(good, _norm(_sums_of(head, first, partial, WIDTH), 1, WIDTH), 0.0)
        of_bias = tl.where(good, _norm(_sums_of(head_bias, first, partial, WIDTH), 1, WIDTH), 0.0)
        size = tl.where(of_weights > 0, root * of_bias / tl.where(of_weights > 0, of_weights, 1.0), 0.0)
    return tl.maximum(size, tl.load(size_floor + layer))


@triton.jit
def _features(
    layer, group, sums, size, good, loss, sign,
    steps, ema, clock, root_numel, factors, log_factors, totals, points, absolute, constants, numbers, n_constants,
    SIGNALS: tl.constexpr, N_SIGNALS: tl.constexpr, FACTORS: tl.constexpr, POINTS: tl.constexpr, SCALES: tl.constexpr,
    COLUMNS: tl.constexpr, SHOWN: tl.constexpr, DIRECTIONS: tl.constexpr, INPUTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What the controller sees of a layer, (INPUTS,), in the order of `feature_names`; counts the step and advances the averages."""
    scale, floor, loss_scale = tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3)
    root = tl.load(root_numel + layer)
    weights = _norm(sums, 0, WIDTH)
    grads = tl.where(good, _norm(sums, 1, WIDTH), 0.0)
    count = tl.load(steps + layer) + 1.0
    tl.store(steps + layer, count)
    f = tl.arange(0, INPUTS)
    x = tl.zeros((INPUTS,), tl.float32)
    if N_SIGNALS * FACTORS > 0:
        averaged = f < N_SIGNALS * FACTORS
        signal, factor = f // FACTORS, f % FACTORS
        seen = tl.zeros((INPUTS,), tl.float32)
        for k in tl.static_range(N_SIGNALS):
            value = tl.load(loss) * sign / loss_scale
            if ((SIGNALS >> (2 * k)) & 3) == 0:
                value = tl.log(weights / root + floor) / scale
            if ((SIGNALS >> (2 * k)) & 3) == 1:
                value = tl.log(grads / root + floor) / scale
            if ((SIGNALS >> (2 * k)) & 3) == 3:
                value = tl.log(size * grads + floor) / scale
            seen = tl.where(signal == k, value, seen)
        g = tl.load(factors + factor, mask=averaged, other=0.0)
        log_g = tl.load(log_factors + factor, mask=averaged, other=0.0)
        n = count.to(tl.float64)
        n_before = tl.where(n > 1.0, n - 1.0, 1.0)
        at = ema + layer * N_SIGNALS * FACTORS + f
        old = tl.load(at, mask=averaged, other=0.0)
        before = old / tl.where(averaged, _correction(log_g, n_before), 1.0).to(tl.float32)
        new = g * old + (1.0 - g) * tl.where(good, seen, before)  # averages of a step that is given up take in themselves
        tl.store(at, new, mask=averaged)
        x = tl.where(averaged, new / tl.where(averaged, _correction(log_g, n), 1.0).to(tl.float32), 0.0)
    t = f - N_SIGNALS * FACTORS
    total = tl.load(totals + group)
    progress = tl.minimum(tl.load(clock + group) / total, 1.0)
    here = (t >= 0) & (t < POINTS)
    x = tl.where(here, _tanh(tl.load(numbers) * (progress - tl.load(points + t, mask=here, other=0.0))), x)
    t -= POINTS
    here = (t >= 0) & (t < SCALES)
    x = tl.where(here, tl.load(absolute + group * SCALES + t, mask=here, other=0.0), x)
    t -= SCALES
    for k in tl.static_range(DIRECTIONS):
        if ((SHOWN >> k) & 1) == 1:
            norm = _norm(sums, (COLUMNS >> (3 * k)) & 7, WIDTH)
            if ((COLUMNS >> (3 * k)) & 7) != 0:
                norm = tl.where(good, norm, 0.0)
            if ((COLUMNS >> (3 * k)) & 7) == 4:  # LAMB's trust
                norm = tl.where((norm > 0) & (weights > 0), weights, norm)
            x = tl.where(t == 0, tl.log(norm / root + floor) / scale, x)
            t -= 1
    here = (t >= 0) & (t < n_constants)
    return tl.where(here, tl.load(constants + layer * n_constants + t, mask=here, other=0.0), x)


@triton.jit(do_not_specialize_on_alignment=["loss", "others", "partial"])
def decide(
    first, partial, loss, others, rates, scales, verdict, features, numbers, layers, groups, n_inputs, n_hidden1, n_hidden2, n_constants,
    head, head_bias,
    steps, ema, clock, group_of, root_numel, factors, log_factors, totals, points, absolute, constants,
    unit, size_kind, size_row, size_floor, size_constant, w1, b1, w2, b2, w3, b3, lam_to, mu_to, lengths_to,
    PHASE: tl.constexpr, LAYERWISE: tl.constexpr, UNIT: tl.constexpr, SIZED: tl.constexpr,
    SIGNALS: tl.constexpr, N_SIGNALS: tl.constexpr, FACTORS: tl.constexpr, POINTS: tl.constexpr, SCALES: tl.constexpr,
    ORDERS: tl.constexpr, COLUMNS: tl.constexpr, SHOWN: tl.constexpr, DIRECTIONS: tl.constexpr,
    INPUTS: tl.constexpr, HIDDEN1: tl.constexpr, HIDDEN2: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The decision of one layer a program. `rates` has the lr of every group, then the signs of the loss.

    A controller of the mean over all layers takes two launches: PHASE 1 stores every layer's features, and PHASE 2 decides; else it is 0.
    Small tables that say what the kernel is come as numbers, a digit an entry: SIGNALS in base 4, ORDERS (places in `ORDER` of the
    directions) and COLUMNS (of their sums) in base 8, SHOWN in bits.
    """
    layer = tl.program_id(0)
    group = tl.load(group_of + layer)
    sums = _sums_of(layer, first, partial, WIDTH)
    good = _all_finite(first, partial, layers, loss, others, WIDTH)
    size = 0.0
    if SIZED:
        size = _size(
            layer, sums, good, first, partial, size_kind, size_row, size_floor, size_constant, tl.load(numbers + 5), head, head_bias, WIDTH
        )
    i = tl.arange(0, INPUTS)
    if PHASE != 2:
        x = _features(
            layer, group, sums, size, good, loss, tl.load(rates + groups + group),
            steps, ema, clock, root_numel, factors, log_factors, totals, points, absolute, constants, numbers, n_constants,
            SIGNALS, N_SIGNALS, FACTORS, POINTS, SCALES, COLUMNS, SHOWN, DIRECTIONS, INPUTS, WIDTH,
        )  # fmt: skip
    if PHASE == 1:
        tl.store(features + layer * INPUTS + i, x)
    else:
        if PHASE == 2:
            x = tl.zeros((INPUTS,), tl.float32)
            for row in range(layers):
                x += tl.load(features + row * INPUTS + i)
            x = x / layers
        own = layer if LAYERWISE else 0  # which layer's MLP
        n_outputs = DIRECTIONS + 1
        h = tl.maximum(_linear(x, w1 + own * n_hidden1 * n_inputs, b1 + own * n_hidden1, n_inputs, n_hidden1, INPUTS, HIDDEN1), 0.0)
        h = tl.maximum(_linear(h, w2 + own * n_hidden2 * n_hidden1, b2 + own * n_hidden2, n_hidden1, n_hidden2, HIDDEN1, HIDDEN2), 0.0)
        z = _linear(h, w3 + own * n_outputs * n_hidden2, b3 + own * n_outputs, n_hidden2, n_outputs, HIDDEN2, 8)
        o = tl.arange(0, 8)
        lam = tl.exp(tl.sum(tl.where(o == 0, z, 0.0)))
        mixed = (o > 0) & (o < n_outputs)
        e = tl.where(mixed, tl.exp(z - tl.max(tl.where(mixed, z, float("-inf")))), 0.0)
        mu = e / tl.sum(e)
        length = lam * tl.load(unit + layer) * tl.load(rates + group)
        if UNIT == 1:
            length = length * tl.maximum(_norm(sums, 0, WIDTH), tl.load(numbers + 4))
        if UNIT == 2:
            length = length * size
        length = tl.where(good, length, 0.0)
        for k in tl.static_range(DIRECTIONS):
            norm = _norm(sums, (COLUMNS >> (3 * k)) & 7, WIDTH)  # up to 1e-17 it counts as 0, see l3rs/directions/base.py
            part = length * tl.sum(tl.where(o == k + 1, mu, 0.0)) / tl.where(norm > 1e-17, norm, 1.0)
            tl.store(scales + layer * 6 + ((ORDERS >> (3 * k)) & 7), tl.where(good & (norm > 1e-17), part, 0.0))
        tl.store(lam_to + layer, lam)
        tl.store(mu_to + layer * DIRECTIONS + o - 1, mu, mask=mixed)
        tl.store(lengths_to + layer, length)
        if layer == 0:
            tl.store(verdict, good.to(tl.int32))


@triton.jit
def touch(cell):
    """Nothing of use: whether kernels can be compiled and launched here."""
    tl.store(cell, 1)
