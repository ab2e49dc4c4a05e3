"""The pass over the elements: in C as in torch operations, and which axes of a tensor it means."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from l3rs.learned import celo2, elements, portions, small_fc, velo
from l3rs.learned import mlp as learned_mlp
from l3rs.learned.accumulators import State, initial_state
from l3rs.learned.elements import ANYWHERE, CHUNK, IN_ORDER, PERIODIC, library, plan, refused, side
from l3rs.learned.layout import factored_axes, jax_order, matrix_axes
from l3rs.learned.mlp import MLP, Rule
from l3rs.learned.portions import Portions
from l3rs.learned.theta import count, mlp, mlp_shapes, random, unflatten

built = pytest.mark.skipif(library() is None, reason="elements.c was not built")

SMALL: list[tuple[int, ...]] = [(7,), (1,), (70,), (8, 10), (10, 8), (16, 16), (1, 5), (5, 1), (1, 1), (3, 200), (200, 3), (64,)]
SMALL += [(8, 8, 3, 3), (16, 4, 3, 3), (8, 3, 7, 7), (16, 8, 1, 1), (8, 16, 1, 1), (8, 1, 3, 3), (3, 5, 8, 8), (5, 4, 9), (4, 3, 2, 3, 3)]
LARGE = (130, 130, 3, 3)
DECAYS_OF_ITS_OWN = small_fc.RULE._replace(momentum=(0.8, 0.95, 0.999), factors=(0.7, 0.9, 0.99), rho=0.98)
RULES = {"celo2": (celo2.RULE, 8), "velo": (velo.RULE, 4), "small_fc": (DECAYS_OF_ITS_OWN, 32)}


def network(kind: str) -> tuple[MLP, Rule]:
    """No biases of zero, and outputs of the second kind, the magnitude, that can be seen."""
    rule, hidden = RULES[kind]
    shapes = mlp_shapes(hidden)
    noise = 0.1 * torch.randn(count(shapes), generator=torch.Generator().manual_seed(5))
    found = mlp(unflatten(random(shapes, 4) + noise, shapes))
    return found, rule._replace(exponent=100 * rule.exponent)


class One(NamedTuple):
    """A parameter as `Portions` sees it."""

    g: Tensor
    p: Tensor
    state: State


def direction(state: State, g: Tensor, p: Tensor, perceptron: MLP, rule: Rule, fused: bool | None = None, readable: bool = True) -> Tensor:
    """Of one parameter alone: in C, unless torch operations are asked for, or C cannot step such a parameter, or read its state."""
    portions = Portions(rule, len(perceptron.b0), fused)
    (found,) = portions.directions([One(g, p, state)], [perceptron])
    assert bool(portions._kernels) == (fused is not False and readable and in_c(p, rule))
    return found


def in_c(p: Tensor, rule: Rule) -> bool:
    """Whether C steps a parameter: of float32, and, where matrices are what counts, of at most 64 positions."""
    return library() is not None and p.dtype == torch.float32 and not (rule.by_matrix and math.prod(p.shape[2:]) > 64)


def steps(shape: tuple[int, ...], kind: str, number: int = 5, fused: bool | None = None) -> tuple[list[Tensor], State]:
    """Directions of some steps, and the state after them."""
    generator = torch.Generator().manual_seed(6)
    p = torch.randn(shape, generator=generator)
    state, (perceptron, rule), made = initial_state(p), network(kind), []
    for k in range(number):
        g = torch.randn(shape, generator=generator) * 10.0 ** (k - 3)
        made.append(direction(state, g, p, perceptron, rule, fused))
        p = p - 0.1 * made[-1]
    return made, state


def error(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@built
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("shape", [*SMALL, LARGE], ids=str)
def test_the_kernel_is_the_operations_of_torch(shape: tuple[int, ...], kind: str) -> None:
    assert not refused(torch.zeros(shape), {}, RULES[kind][0].by_matrix)
    made, state = steps(shape, kind)
    expected, expected_state = steps(shape, kind, fused=False)
    for k, (a, b) in enumerate(zip(made, expected, strict=True)):
        assert a.shape == b.shape
        assert error(a, b) < 5e-6, f"step {k}"
    assert {key: error(state[key], t) < 1e-6 for key, t in expected_state.items()} == dict.fromkeys(expected_state, True)


@built
@pytest.mark.parametrize("kind", RULES)
def test_parameters_move_together_as_they_do_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in portions of any size, and with an MLP of its own for each; one of another dtype goes another way."""
    generator = torch.Generator().manual_seed(10)
    perceptron, rule = network(kind)
    mlps = [perceptron._replace(b0=perceptron.b0 + 0.01 * i) for i in range(len(SMALL))]
    params = [torch.randn(shape, generator=generator) for shape in SMALL]
    params[3] = params[3].double()
    mlps[3] = mlps[3].like(params[3])
    grads = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]
    alone = [initial_state(p) for p in params]
    expected = [[direction(*args, rule) for args in zip(alone, grads, params, mlps, strict=True)] for _ in range(2)]
    for together in (1, 300, 1 << 20):
        monkeypatch.setattr(portions, "TOGETHER", together)
        states = [initial_state(p) for p in params]
        some = Portions(rule, len(perceptron.b0))
        for k in range(2):
            found = list(some.directions([One(*m) for m in zip(grads, params, states, strict=True)], mlps))
            assert all(torch.equal(a, b) for a, b in zip(found, expected[k], strict=True))
        assert all(torch.equal(t, a[key]) for s, a in zip(states, alone, strict=True) for key, t in s.items())


@built
def test_moments_are_those_of_torch() -> None:
    """Mean square of p; mean and variance of r and of each momentum, also where they hardly vary."""
    generator = torch.Generator().manual_seed(11)
    members = []
    for shape in SMALL:
        p, state = torch.randn(shape, generator=generator), initial_state(torch.zeros(shape))
        state["second"].copy_(torch.rand(shape, generator=generator))
        state["momentum"].copy_(5.0 + 1e-3 * torch.randn(3, *shape, generator=generator))
        members.append(One(torch.zeros(shape), p, state))
    found = Portions(velo.RULE, 4).moments(members)
    expected = Portions(velo.RULE, 4, fused=False).moments(
        [One(m.g, m.p.double(), {k: t.double() for k, t in m.state.items()}) for m in members]
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-12)


@built
@pytest.mark.parametrize("kind", RULES)
def test_gradients_are_clipped_alike(kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    p, g = torch.randn(9, 11, generator=generator), torch.randn(9, 11, generator=generator)
    g[0, 0], g[3, 5] = 1e30, -5000.0
    before = g.clone()
    ends = []
    for fused in (None, False):
        state = initial_state(p)
        ends.append((direction(state, g, p, *network(kind), fused), state["momentum"]))
    assert error(ends[0][0], ends[1][0]) < 2e-5
    assert error(ends[0][1], ends[1][1]) < 1e-6
    expected = {"celo2": 100.0, "velo": 100.0, "small_fc": 2e14}  # a tenth of 1000, a fifth of 1e15
    assert ends[0][1][0, 0, 0].item() == pytest.approx(expected[kind])
    assert torch.equal(g, before)


@built
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("shape", [LARGE, (40000,), (2, 20000)], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(shape: tuple[int, ...], kind: str) -> None:
    c = library()
    assert c is not None
    assert c.parallel is not None  # or there is one thread
    if shape == LARGE:
        assert -(-LARGE[0] // max(1, CHUNK // math.prod(LARGE[1:]))) > 4  # chunks, with a short one at the end
        assert LARGE[0] % (CHUNK // math.prod(LARGE[1:]))
    ends = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        ends.append(steps(shape, kind, 2))
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))
    assert all(torch.equal(t, ends[1][1][key]) for key, t in ends[0][1].items())


@built
@pytest.mark.parametrize("kind", RULES)
def test_the_layout_in_memory_changes_no_more_than_the_order_of_sums(kind: str) -> None:
    generator = torch.Generator().manual_seed(8)
    p, g = torch.randn(6, 5, 3, 3, generator=generator), torch.randn(6, 5, 3, 3, generator=generator)
    ends = []
    for q, h in ((p, g), (p.contiguous(memory_format=torch.channels_last), g.mT.contiguous().mT)):
        state = initial_state(q)
        ends.append([direction(state, h, q, *network(kind)), *state.values()])
    assert max(map(error, *ends)) < 2e-6


def test_a_library_that_an_older_version_has_left_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "shared_library", lambda *_: object())  # without the functions
    assert elements.library.__wrapped__() is None


@built
def test_where_the_kernel_is_not_used() -> None:
    large = torch.zeros(4, 4, 9, 9)
    assert refused(large, {}, True)  # a block holds no 81 positions
    assert not refused(large, {}, False)
    assert not refused(torch.zeros(4, 4, 8, 8), {}, True)
    for p in (torch.zeros(3, dtype=torch.float64), torch.zeros(0, 3), torch.zeros(3, device="meta")):
        assert refused(p, {}, False)


@built
@pytest.mark.parametrize("kind", RULES)
def test_states_that_c_cannot_read_are_left_to_torch(kind: str) -> None:
    """A state may be put there by hand; the kernel goes by addresses alone."""
    generator = torch.Generator().manual_seed(9)
    p, g = torch.randn(8, 6, generator=generator), torch.randn(8, 6, generator=generator)
    expected = direction(initial_state(p), g, p, *network(kind))
    transposed = {key: t.mT.contiguous().mT for key, t in initial_state(p).items()}
    assert not transposed["momentum"].is_contiguous()
    assert error(direction(transposed, g, p, *network(kind), readable=False), expected) < 5e-6
    with pytest.raises(RuntimeError, match="same dtype"):
        direction(initial_state(p.double()), g, p, *network(kind))


@built
def test_kernels_of_many_positions_are_stepped_all_the_same() -> None:
    by_matrix, _ = steps((4, 4, 9, 9), "celo2", 1)
    over_all, _ = steps((4, 4, 9, 9), "velo", 1)
    assert torch.equal(by_matrix[0], steps((4, 4, 9, 9), "celo2", 1, fused=False)[0][0])  # the same operations
    assert error(over_all[0], steps((4, 4, 9, 9), "velo", 1, fused=False)[0][0]) < 2e-5


def test_pieces_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in RULES:
        for shape in ((70,), (16, 4, 3, 3), (3, 40)):
            whole, _ = steps(shape, kind, 2, fused=False)
            monkeypatch.setattr(learned_mlp, "PIECE", 50)
            pieces, _ = steps(shape, kind, 2, fused=False)
            monkeypatch.setattr(learned_mlp, "PIECE", 1 << 16)
            assert max(map(error, pieces, whole)) < 2e-5


# -- where the numbers of a row or column are ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kept", "kind", "stride"),
    [
        ((8, 10), (8, 1), PERIODIC, 1),  # one number for a row
        ((8, 10), (1, 10), IN_ORDER, 0),
        ((1, 70), (1, 70), IN_ORDER, 0),  # a vector
        ((16, 4, 3, 3), (16, 1, 3, 3), PERIODIC, 9),  # nine for a row, over and over
        ((16, 4, 3, 3), (1, 4, 3, 3), IN_ORDER, 0),
        ((4, 3, 9, 9), (4, 3, 1, 9), ANYWHERE, 27),
        ((4, 30, 9, 9), (4, 1, 9, 9), ANYWHERE, 81),  # its period is longer than a block
    ],
)
def test_sides(shape: tuple[int, ...], kept: tuple[int, ...], kind: int, stride: int) -> None:
    found = side(shape, kept, plan(shape).block)
    assert (found.kind, found.stride) == (kind, stride)
    numbers = torch.randn(kept)
    expected, values = numbers.expand(shape), numbers.flatten()
    for row in range(shape[0]):
        assert torch.equal(values[row * found.stride + found.index.long()], expected[row].flatten())


@pytest.mark.parametrize(
    ("shape", "block"), [((8, 10), 64), ((8, 3, 7, 7), 49), ((8, 8, 3, 3), 63), ((3, 5, 8, 8), 64), ((2, 2, 9, 9), 64)]
)
def test_a_block_holds_whole_kernels(shape: tuple[int, ...], block: int) -> None:
    assert plan(shape).block == block


# -- axes --------------------------------------------------------------------------------------------------------------------------


def test_axes_in_the_order_of_jax() -> None:
    assert [jax_order(n) for n in range(6)] == [(), (0,), (1, 0), (2, 1, 0), (2, 3, 1, 0), (2, 3, 4, 1, 0)]
    assert [matrix_axes(n) for n in (1, 2, 4)] == [(0,), (0, 1), (0, 1)]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), None),
        ((5,), None),
        ((8, 10), (0, 1)),
        ((10, 8), (1, 0)),
        ((16, 16), (1, 0)),  # JAX: (in, out), so out is the last of the largest
        ((64, 64, 3, 3), (1, 0)),
        ((64, 3, 7, 7), (3, 0)),  # JAX: (7, 7, 3, 64)
        ((2, 3, 7, 7), (2, 3)),
        ((8, 16, 1, 1), (0, 1)),
        ((3, 3, 3, 3), (1, 0)),  # all equal: JAX's last two
        ((5, 4, 9), (0, 2)),
        ((4, 3, 2, 3, 3), (1, 0)),  # JAX: (2, 3, 3, 3, 4)
        ((1, 1), (1, 0)),
    ],
)
def test_factored_axes(shape: tuple[int, ...], axes: tuple[int, int] | None) -> None:
    assert factored_axes(shape) == axes
