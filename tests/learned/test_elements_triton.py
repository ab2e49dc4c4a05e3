"""The pass over the elements in Triton against torch operations and the original code, in Triton's interpreter: no GPU is needed, and none
is used."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from l3rs.learned import portions
from l3rs.learned.accumulators import initial_state
from l3rs.learned.portions import Portions

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
SHAPES: list[tuple[int, ...]] = [
    *[(7,), (1,), (513,), (8, 10), (10, 8), (16, 16), (1, 5), (5, 1), (1, 1), (3, 300), (33, 31)],
    *[(8, 8, 3, 3), (4, 3, 7, 7), (16, 8, 1, 1), (8, 1, 3, 3), (5, 4, 9), (4, 3, 2, 3, 3)],
]


@pytest.mark.parametrize("what", ["celo2", "velo", "small_fc", "moments", "celo2_base", "celo2_ortho", "velo_k20"])
def test_triton_is_the_operations_of_torch_and_the_original(what: str) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__, what], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_it_compiles_for_a_gpu() -> None:
    """Every form of every kernel, to the machine code of an H100, which takes no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__, "compile"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def compile_all() -> None:
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from l3rs.learned import elements_triton as t

    tables = ("tile_side", "tile_from", "sides", "now", "tile_owner", "levels", "block_segment", "block_from", "segments", "table", "first")
    numbers = ("bound", "eps", "delta", "clip", "exponent", "of_vectors")
    forms = [
        (t._means, {"TILE": t.TILE}, "*fp32"),
        (t._levels, {"TILE": t.TILE}, "*fp32"),
        (t._moments, {"BLOCK": t.BLOCK}, "*fp64"),
        (t._add_up, {"WIDTH": t.WIDTH}, "*fp32"),
        (t._add_up, {"WIDTH": t.MOMENTS}, "*fp64"),
    ]
    for hidden in (4, 8, 32):
        sizes = {"EXPONENT": hidden != 8, "HIDDEN": hidden, "BLOCK": t.BLOCK if hidden < 16 else t.WIDE}
        forms += [(t._elements, {"APPLY": apply, **sizes}, "*fp32") for apply in (False, True)]
    for kernel, constants, floats in forms:
        signature = {
            name: "constexpr" if name in constants else "*i64" if name in tables else "fp32" if name in numbers else floats
            for name in kernel.arg_names
        }
        made = compiled(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]
        assert made.asm["ptx"].count(".entry") == 1


def directions(kind: str, number: int = 2) -> list[torch.Tensor]:
    """Of parameters that move together, each with an MLP of its own, step after step; and their states at the end."""
    from test_elements import One, network

    generator = torch.Generator().manual_seed(6)
    perceptron, rule = network(kind)
    params = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params[7] = torch.randn(31, 33, generator=generator).mT  # not contiguous
    mlps = [perceptron._replace(b0=perceptron.b0 + 0.01 * (i % 3)) for i in range(len(params))]
    states = [initial_state(p) for p in params]
    some, made = Portions(rule, len(perceptron.b0)), []
    for k in range(number):
        grads = [torch.randn(p.shape, generator=generator) * 10.0 ** (k - 1) for p in params]
        grads[3][0, 0] = 5000.0  # clipped
        made += some.directions([One(*m) for m in zip(grads, params, states, strict=True)], mlps)
    return [*made, *(t for state in states for t in state.values())]


def moments() -> torch.Tensor:
    """Also of numbers that hardly vary."""
    from test_elements import One

    from l3rs.learned import velo

    generator, members = torch.Generator().manual_seed(11), []
    for shape in SHAPES:
        state = initial_state(torch.zeros(shape))
        state["second"].copy_(torch.rand(shape, generator=generator))
        state["momentum"].copy_(5.0 + 1e-3 * torch.randn(3, *shape, generator=generator))
        members.append(One(torch.zeros(shape), torch.randn(shape, generator=generator), state))
    return Portions(velo.RULE, 4).moments(members)


def compare(what: str) -> None:
    from l3rs.learned.elements_triton import TritonElements

    def in_triton(device: str) -> type[TritonElements]:
        asked.append(device)
        return TritonElements

    def no_position_is_too_many(p: torch.Tensor, state: Any, by_matrix: bool, g: Any = None) -> bool:
        return usual(p, state, False, g)

    usual, asked = portions.refused, list[str]()
    if what in ("celo2", "velo", "small_fc", "moments"):
        make = moments if what == "moments" else lambda: directions(what)
        portions.refused = lambda *_: True
        expected = make()
        portions.refused, portions.kernel_for = no_position_is_too_many, in_triton
        for found, wanted in zip(make(), expected, strict=True):
            if what == "moments":
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-10)
            else:
                error = (found.double() - wanted.double()).norm() / wanted.double().norm()
                assert error < 5e-6, (what, tuple(wanted.shape), error)
        assert asked
        return
    import test_goldens

    portions.kernel_for = in_triton
    test_goldens.STEPS = 4
    make, lr, limit = test_goldens.FILES[what]
    params = test_goldens.parameters()
    for leaf, steps in test_goldens.trajectory(params, make(list(params.items()))).items():
        original = test_goldens.in_torch(test_goldens.arrays(what)[f"step/{leaf}"][:4].astype("float64"), test_goldens.LEAVES[leaf])
        assert max(test_goldens.errors([step / lr for step in steps], original)) < limit, leaf
    assert asked


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    from triton_interpreter import mend_interpreter

    torch.set_num_threads(1)
    if sys.argv[1] != "compile":
        mend_interpreter()
    compile_all() if sys.argv[1] == "compile" else compare(sys.argv[1])
