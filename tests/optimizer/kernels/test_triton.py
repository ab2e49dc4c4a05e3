"""The Triton kernels against the readable reference and against torch operations, in Triton's interpreter: no GPU is needed, or used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as pytest does, where this file runs by itself
from conftest import random_schedule, small_network
from step_forms import FORMS, against_reference, against_torch, give, gradients, specialist
from triton_interpreter import mend_interpreter

from l3rs import L3RS
from l3rs.optimizer.kernels import TritonKernel, triton_kernel

pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_triton_equals_the_reference_in_the_interpreter(name: str) -> None:
    _in_the_interpreter("reference", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared", "global"])
def test_triton_equals_torch_operations_in_the_interpreter(name: str) -> None:
    """Two groups with lr and clocks of their own, one of them maximized, a skipped step, a pause of a layer, changed weights."""
    _in_the_interpreter("torch", name)


@pytest.mark.parametrize("name", ["all directions", pytest.param("any network", marks=pytest.mark.slow)])
def test_triton_equals_the_reference_at_every_size_in_the_interpreter(name: str) -> None:
    """Layers of 0, 1, 31 elements, a chunk less and more one, and 34 chunks, which are added in two turns."""
    _in_the_interpreter("sizes", name)


@pytest.mark.slow
def test_sums_that_are_added_over_ranks_give_the_same_step_in_the_interpreter() -> None:
    """Here of one rank, so that the sums stay as they are."""
    _in_the_interpreter("sharded", "any network")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_compiles_for_a_gpu(name: str, capability: int) -> None:
    """To machine code, with the compiler that Triton brings; no GPU is needed. Sharded parameters too."""
    network = small_network()
    give(network, gradients(network, 0))
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network, specialist(name), **FORMS[name]))
    optimizer.step(loss=1.0)
    (layers,) = optimizer._tables.by_device
    params, c, code = optimizer._tables.params, optimizer._controller, Compiler(capability)
    states = [optimizer.state[p] for p in params]
    layers.kernel = TritonKernel(params, states, c.directions, c.constants, lambda sums: sums, layers.decision, code)
    optimizer.step(loss=1.0)
    assert code.names == ["measure", "measure", "add_up", *["decide"] * (1 + (name == "global")), "move"]


class Compiler:
    """In the place of Triton's kernels: compiles what is launched, and runs nothing."""

    def __init__(self, capability: int) -> None:
        self.capability, self.names = capability, list[str]()

    def __getattr__(self, name: str) -> Any:
        return {(n,): lambda *args, **forms: self.compile(name, args, forms) for n in range(1, 100)}

    def compile(self, name: str, args: tuple[Any, ...], forms: dict[str, Any]) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        from l3rs.optimizer.kernels import triton_code  # needs Triton

        kernel = getattr(triton_code, name)
        kinds = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1"}
        signature = {n: kinds[a.dtype] if isinstance(a, torch.Tensor) else "i32" for n, a in zip(kernel.arg_names, args, strict=False)}
        constants = {(kernel.arg_names.index(n),): value for n, value in forms.items()}
        source = ASTSource(kernel, signature | dict.fromkeys(forms, "constexpr"), constants)
        made = triton.compile(source, target=GPUTarget("cuda", self.capability, 32))
        assert made.asm["cubin"]
        assert made.metadata.shared < 48 * 1024  # all GPUs have as much shared memory
        self.names.append(name)


def _in_the_interpreter(what: str, name: str) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__, what, name], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def into_triton(optimizer: L3RS, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
    """Gives an optimizer on CPU the kernel that it would have on CUDA, in its tables of now."""
    with torch.no_grad():
        optimizer._tables.active(optimizer.param_groups, optimizer.state)
    (layers,) = optimizer._tables.by_device
    if not isinstance(layers.kernel, TritonKernel):
        params = [optimizer._tables.params[i] for i in layers.where]
        c = optimizer._controller
        layers.kernel = TritonKernel(params, [optimizer.state[p] for p in params], c.directions, c.constants, reduce, layers.decision)


if __name__ == "__main__":
    mend_interpreter()
    what, name = sys.argv[1:]
    if what == "torch":
        against_torch(name, into_triton)
    elif what == "sharded":
        against_reference(name, prepare=lambda optimizer: into_triton(optimizer, torch.clone))
    elif what == "sizes":
        triton_kernel.CHUNK, triton_kernel.BLOCK = 64, 32  # the interpreter is slow
        against_reference(name, (0, 1, 31, 63, 64, 65, 33 * 64 + 1), into_triton)
    else:
        against_reference(name, prepare=into_triton)
