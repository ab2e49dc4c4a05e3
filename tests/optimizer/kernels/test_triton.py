"""The Triton kernels against the readable reference and against torch operations, in Triton's interpreter: no GPU is needed, or used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="triton is not installed")
ALL = ("sgd", "adam", "adamax", "lion", "lamb", "weight_decay")
SEEN = {"signals": ("log_relative_grad", "log_weight_norm", "log_grad_norm", "loss"), "descriptors": True, "direction_norms": "scale-free"}
FORMS: dict[str, dict[str, Any]] = {
    "shared": {"directions": ("sgd", "adam")},
    "one direction": {"directions": ("lion",), "embedding": 0},
    "all directions": {"directions": ALL, "unit": "relative", "ema_factors": (0.0, 0.9)},
    "layerwise": {"directions": ("adam", "lamb"), "controller": "layerwise", "embedding": 0, "unit": "l2", "lr0": 1.0},
    "global": {"directions": ("adamax", "weight_decay", "sgd"), "controller": "global", "embedding": 0, "hidden": (17, 5)},
    "any network": {"directions": ALL, "unit": "size", "embedding": 0, "head_logits": 0.1, **SEEN},
    "no signals": {"directions": ("sgd", "adam"), "signals": (), "unit": "size", "head_logits": 0.1},
}


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
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_compiles_for_a_gpu(name: str, capability: int) -> None:
    """To machine code, with the compiler that Triton brings; no GPU is needed. Sharded parameters too."""
    from conftest import random_schedule, small_network

    from l3rs import L3RS
    from l3rs.optimizer.kernels import TritonKernel

    network = small_network()
    give(network, gradients(network, 0))
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network, specialist(name), **FORMS[name]))
    optimizer.step(loss=1.0)
    (layers,) = optimizer._tables.by_device
    params, c, code = optimizer._tables.params, optimizer._controller, Compiler(capability)
    states = [optimizer.state[p] for p in params]
    layers.kernel = TritonKernel(params, states, c.directions, c.constants, lambda sums: sums, layers.decision, code)
    optimizer.step(loss=1.0)
    assert code.names == ["measure", "add_up", *["decide"] * (1 + (name == "global")), "move"]


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

        from l3rs.optimizer.kernels import triton_code

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


def mend_interpreter() -> None:
    """Triton 3.6's interpreter takes `int` of arrays of one element, which numpy 2.4 has ended; later ones have this themselves."""
    from triton.runtime import interpreter

    usual = interpreter._patch_lang_tensor

    def patch(tensor: type, *scope: Any) -> None:
        usual(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patch


def into_triton(optimizer: Any) -> None:
    """Gives an optimizer on CPU the kernel that it would have on CUDA, in its tables of now."""
    from l3rs.optimizer.kernels import TritonKernel

    with torch.no_grad():
        optimizer._tables.active(optimizer.param_groups, optimizer.state)
    (layers,) = optimizer._tables.by_device
    if not isinstance(layers.kernel, TritonKernel):
        params = [optimizer._tables.params[i] for i in layers.where]
        c = optimizer._controller
        layers.kernel = TritonKernel(params, [optimizer.state[p] for p in params], c.directions, c.constants, None, layers.decision)


def specialist(name: str) -> bool:
    """Whether a form knows layers by name."""
    return "embedding" not in FORMS[name] or FORMS[name].get("controller") == "layerwise"


def gradients(network: nn.Module, k: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(k)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in network.parameters()]


def give(network: nn.Module, grads: list[torch.Tensor]) -> None:
    for p, g in zip(network.parameters(), grads, strict=True):
        p.grad = g.to(p.dtype)


def agree(a: nn.Module, b: nn.Module, start: list[torch.Tensor], rtol: float, what: str) -> None:
    """The way that every parameter has gone since the start, to rounding of the parameter itself."""
    for (name, p), q, before in zip(a.named_parameters(), b.parameters(), start, strict=True):
        assert p.isfinite().all(), f"{what}: {name}"
        way = (q.double() - before.double()).norm()
        assert (p.double() - q.double()).norm() <= rtol * way + 1e-6 * q.double().norm(), f"{what}: {name}"


def against_reference(name: str, sizes: tuple[int, ...]) -> None:
    """Three steps: the reference in float64."""
    from conftest import random_schedule

    from l3rs import L3RS
    from l3rs.optimizer.reference import ReferenceL3RS

    def network(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(1)
        made = nn.Sequential(nn.Linear(7, 31), nn.Linear(31, 3)) if not sizes else nn.Module()
        for i, n in enumerate(sizes):
            made.register_parameter(f"p{i}", nn.Parameter(torch.randn(n)))
        return made.to(dtype)

    fast, slow = network(torch.float32), network(torch.float64)
    start = [p.detach().clone() for p in fast.parameters()]
    schedule = random_schedule(fast, specialist(name), scale=0.1, **FORMS[name])
    optimizer, reference = L3RS(fast.named_parameters(), 5, schedule), ReferenceL3RS(dict(slow.named_parameters()), 5, schedule)
    for k in range(3):
        grads = gradients(fast, k)
        give(fast, [g.float().double() for g in grads])
        give(slow, [g.float().double() for g in grads])
        into_triton(optimizer)
        optimizer.step(loss=1.0 + k)
        reference.step(1.0 + k)
        agree(fast, slow, start, 2e-4, f"{name}, step {k}")


def against_torch(name: str) -> None:
    """Eight steps; then parameters, moments, averages, counts and decisions agree."""
    import warnings

    from conftest import random_schedule, small_network

    from l3rs import L3RS

    networks = small_network(), small_network()
    start = [p.detach().clone() for p in networks[0].parameters()]
    learned = random_schedule(networks[0], specialist(name), scale=0.1, **{**FORMS[name], "lr0": 1e-3})
    optimizers = []
    for n in networks:
        first, last = list(n.named_parameters())[:3], list(n.named_parameters())[3:]
        groups = [{"params": first, "total_steps": 6}, {"params": last, "lr": torch.tensor(0.5), "maximize": True}]
        optimizers.append(L3RS(groups, 9, learned, fused=False))
    warnings.simplefilter("ignore")
    for k in range(8):
        grads = gradients(networks[0], k)
        if k == 3:
            grads[2][0] = float("inf")
        loss = torch.tensor(float("nan") if k == 5 else 1.0 + k)
        for network, optimizer in zip(networks, optimizers, strict=True):
            give(network, grads)
            optimizer.param_groups[0]["lr"] = 1.0 - 0.1 * k
            if k in (4, 5):
                next(network.parameters()).grad = None
            if k == 6:
                with torch.no_grad():
                    next(network.parameters()).mul_(1.5)
            if optimizer is optimizers[1]:
                into_triton(optimizer)
            optimizer.step(loss=loss)
        agree(networks[1], networks[0], start, 1e-4, f"step {k}")
        a, b = (o.decisions() for o in optimizers)
        if k not in (3, 5):  # a skipped step's features are of no gradient: nothing depends on them
            torch.testing.assert_close(torch.tensor(a.to_numpy()), torch.tensor(b.to_numpy()), rtol=1e-4, atol=1e-6)
    assert optimizers[0].skipped_steps == optimizers[1].skipped_steps == 2
    saved = [o.state_dict() for o in optimizers]
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    for i, state in saved[0]["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(saved[1]["state"][i][key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    mend_interpreter()
    what, name = sys.argv[1:]
    if what == "torch":
        against_torch(name)
    elif what == "sizes":
        from l3rs.optimizer.kernels import triton_kernel

        triton_kernel.CHUNK, triton_kernel.BLOCK = 64, 32  # the interpreter is slow
        against_reference(name, (0, 1, 31, 63, 64, 65, 33 * 64 + 1))
    else:
        against_reference(name, ())
