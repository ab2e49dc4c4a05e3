"""The native kernel against the foreach one, which the reference is tested against."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable

import pandas as pd
import pytest
import torch
from conftest import batch, random_schedule, small_network
from step_forms import FORMS, against_reference, against_torch
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS
from l3rs.directions import DIRECTIONS
from l3rs.optimizer.kernels import ForeachKernel, NativeKernel
from l3rs.optimizer.kernels.memory_layout import MOMENTS, ORDER
from l3rs.optimizer.kernels.native import CHUNK, library
from l3rs.optimizer.kernels.triton_kernel import unusable

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler when l3rs was installed")
SETS = [
    *[("sgd",), ("adam",), ("adam", "sgd"), ("sgd", "adam"), ("adam", "lion", "lamb"), ("adamax", "sgd", "lamb")],
    *[("sgd", "adam", "adamax", "lion", "lamb", "weight_decay"), ("weight_decay", "lion"), ("adamax",), ("lamb",)],
]


def run(network: nn.Module, steps: int, fused: bool, directions: tuple[str, ...] = ("sgd", "adam"), **config: object) -> L3RS:
    optimizer = L3RS(
        network.named_parameters(), steps, random_schedule(network, scale=0.1, directions=directions, lr0=1e-3, **config), fused=fused
    )
    for k in range(steps):
        inputs, labels = batch(k)
        network.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
    return optimizer


@pytest.mark.parametrize("directions", SETS)
def test_native_equals_foreach(directions: tuple[str, ...]) -> None:
    native, foreach = small_network(), small_network()
    a, b = run(native, 10, True, directions), run(foreach, 10, False, directions)
    assert isinstance(a._tables.by_device[0].kernel, NativeKernel)
    assert isinstance(b._tables.by_device[0].kernel, ForeachKernel)
    for (name, p), q in zip(native.named_parameters(), foreach.parameters(), strict=True):
        assert (p - q).norm() <= 2e-4 * q.norm().clamp_min(0.1), name
        for key, value in a.state[p].items():
            torch.testing.assert_close(value, b.state[q][key], rtol=1e-2, atol=1e-4, msg=lambda m, key=key, name=name: f"{name} {key}: {m}")


@pytest.mark.parametrize("name", FORMS)
def test_every_form_equals_the_reference(name: str) -> None:
    against_reference(name, fused=True)


def test_sizes_around_a_chunk_equal_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l3rs.optimizer.kernels.native.CHUNK", 64)
    against_reference("all directions", (0, 1, 31, 63, 64, 65, 129), fused=True)


@pytest.mark.parametrize("name", FORMS)
def test_whatever_happens_between_steps_every_form_goes_on_as_in_torch(name: str) -> None:
    """Two groups with lr and clocks of their own, one of them maximized, skipped steps, a pause of a layer, changed weights."""
    against_torch(name, fused=True)


@pytest.mark.parametrize(
    "change",
    [lambda w: w.mul_(0.01), lambda w: w.clamp_(-0.05, 0.05), lambda w: w.mul_(torch.rand_like(w) > 0.5)],
    ids=["less", "clip", "mask"],
)
def test_weights_that_are_changed_past_their_version_are_measured_anew(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """As `p.data` does, with which some prune, clip or average."""
    ends = []
    for native in (True, False):
        network = small_network()
        optimizer = L3RS(network.named_parameters(), 5, "generalist", fused=native)
        for k in range(3):
            torch.manual_seed(k)
            for p in network.parameters():
                change(p.data)
            network.zero_grad()
            F.cross_entropy(network(batch(k)[0]), batch(k)[1]).backward()
            optimizer.step(loss=1.0)
        ends.append(optimizer.decisions())
    pd.testing.assert_frame_equal(*ends, rtol=1e-3)


def test_gradients_are_freed_by_zero_grad() -> None:
    network = small_network()
    optimizer = run(network, 2, True)
    grads = [weakref.ref(p.grad) for p in network.parameters() if p.grad is not None]
    optimizer.zero_grad()
    gc.collect()
    assert len(grads) > 5
    assert all(ref() is None for ref in grads)


def test_one_step_is_equal_to_rounding() -> None:
    """From the same state; six subtractions round p by up to half a unit in the last place each, 6e-8 |p|."""
    native, foreach = small_network(), small_network()
    run(native, 1, True, SETS[6])
    run(foreach, 1, False, SETS[6])
    for p, q, start in zip(native.parameters(), foreach.parameters(), small_network().parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-5 * (q - start).abs().max() + 4e-7 * q.abs().max()


def big_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3000), nn.ReLU(), nn.Linear(3000, 3))


def test_the_number_of_threads_does_not_matter() -> None:
    c = library()
    assert c is not None
    assert c.parallel is not None  # or there is one thread
    ends = []
    for threads in (1, 2, 3):
        torch.manual_seed(0)
        network = big_network()
        assert network[1].weight.numel() > 2 * CHUNK
        gradients = [torch.randn(p.shape) for p in network.parameters()]
        optimizer = L3RS(network.named_parameters(), 5, random_schedule(network), fused=True)
        torch.set_num_threads(threads)
        for _ in range(5):
            for p, g in zip(network.parameters(), gradients, strict=True):
                p.grad = g.clone()
            optimizer.step(loss=1.0)
        ends.append([p.detach().clone() for p in network.parameters()])
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


def test_a_parameter_changed_from_outside_has_its_norm_taken_again() -> None:
    """Doubling the weights between steps is seen: the next step is that of a fresh optimizer with the same state."""
    results = []
    for fresh in (False, True):
        network = small_network()
        optimizer = run(network, 3, True, unit="relative", ema_factors=(0.0,))
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(2)
        if fresh:
            saved = optimizer.state_dict()
            optimizer = L3RS(network.named_parameters(), 3, optimizer.learned, fused=True)
            optimizer.load_state_dict(saved)
        with pytest.warns(UserWarning, match="past"):
            optimizer.step(loss=1.0)
        results.append([p.detach().clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_autograd_sees_that_parameters_have_changed() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = L3RS([("p", p)], 3, random_schedule(nn.ParameterDict({"p": p})), fused=True)
    y = (p * p).sum()
    y.backward(retain_graph=True)
    optimizer.step(loss=y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_layouts_that_differ_between_parameter_gradient_and_moments() -> None:
    native, foreach = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)) for _ in range(2))
    foreach.load_state_dict(native.state_dict())
    optimizers = [L3RS(n.named_parameters(), 9, random_schedule(n, scale=0.1), fused=f) for n, f in ((native, True), (foreach, False))]
    for k in range(4):
        if k == 2:
            native.to(memory_format=torch.channels_last)  # the moments are not
            assert not native[0].weight.is_contiguous()
        generator = torch.Generator().manual_seed(k)
        for network, optimizer in zip((native, foreach), optimizers, strict=True):
            generator.manual_seed(k)
            for p in network.parameters():
                g = torch.randn(p.shape, generator=generator)
                p.grad = g.transpose(-1, -2).contiguous().transpose(-1, -2) if g.dim() > 1 and p.shape[-1] == p.shape[-2] else g
            optimizer.step(loss=1.0)
    for p, q in zip(native.parameters(), foreach.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_what_the_native_kernel_refuses_is_stepped_by_foreach_unless_it_was_demanded() -> None:
    for network, why in (
        (small_network(torch.float64), "float64"),
        (nn.ParameterList([nn.Parameter(torch.randn(8)[::2])]), "not dense"),
    ):
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(ValueError, match=f"fused=True, but .*{why}"):
            L3RS(network.named_parameters(), 5, random_schedule(network), fused=True).step(loss=1.0)
        optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
        optimizer.step(loss=1.0)
        assert isinstance(optimizer._tables.by_device[0].kernel, ForeachKernel)
        assert "step: torch operations on cpu)" in repr(optimizer)
    assert "step: C on cpu)" in repr(run(small_network(), 1, True))
    with pytest.raises(ValueError, match=r"no fused kernel for direction 'torch\.optim\.NAdam', but for sgd, adam"):
        run(small_network(), 1, True, ("torch.optim.NAdam",))


def test_what_is_frozen_does_not_decide_what_steps_the_others() -> None:
    network = small_network()
    network[0].to(torch.float64).requires_grad_(False)
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(small_network()))
    for p in network.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step(loss=1.0)
    assert isinstance(optimizer._tables.by_device[0].kernel, NativeKernel)
    assert "step: C on cpu)" in repr(optimizer)
    network.requires_grad_(False)
    assert "step: nothing to step)" in repr(optimizer)


def test_orders_agree_with_the_directions() -> None:
    assert set(ORDER) == set(DIRECTIONS)
    assert set(MOMENTS) == {f"{name}/{key}" for name, d in DIRECTIONS.items() for key in d.init(torch.zeros(1))}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImportError("no module"), "Triton is not installed"),
        (RuntimeError("no C compiler\nfound"), r"Triton runs no kernel here \(RuntimeError: no C compiler\)"),
    ],
)
def test_where_triton_cannot_run_it_is_said_why(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that torch operations take its place."""

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("l3rs.optimizer.kernels.triton_kernel.import_module", fail)
    assert re.fullmatch(told, unusable.__wrapped__(torch.device("cpu")) or "")
