"""On a CUDA GPU: the same steps as on the CPU, without waiting for the device, and in a CUDA graph. Skipped where there is none."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from conftest import batch, random_schedule, small_network
from step_forms import FORMS, against_torch
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS, learners
from l3rs.learned.weights import KINDS, starting_weights
from l3rs.optimizer.kernels import ForeachKernel, TritonKernel

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),  # of torch, at its first use
]
ALL = ("sgd", "adam", "adamax", "lion", "lamb", "weight_decay")


def backward(network: nn.Module, k: int) -> torch.Tensor:
    device = next(network.parameters()).device
    inputs, labels = (t.to(device) for t in batch(k, next(network.parameters()).dtype))
    network.zero_grad()
    loss = F.cross_entropy(network(inputs), labels)
    loss.backward()
    return loss


def test_20_steps_are_those_of_the_cpu() -> None:
    """In float64, so that differences are of the step and not of the convolutions."""
    cpu, cuda = small_network(torch.float64), small_network(torch.float64).cuda()
    optimizers = [L3RS(n.named_parameters(), 20, random_schedule(n, scale=0.1, directions=ALL, lr0=2e-3)) for n in (cpu, cuda)]
    for k in range(20):
        for network, optimizer in zip((cpu, cuda), optimizers, strict=True):
            optimizer.step(loss=backward(network, k))
    assert isinstance(optimizers[1]._tables.by_device[0].kernel, ForeachKernel)
    for p, q in zip(cpu.parameters(), cuda.parameters(), strict=True):
        assert (p - q.cpu()).norm() <= 1e-4 * p.norm()


def test_triton_equals_foreach() -> None:
    """Ten steps in float32 on the same gradients, on a network with a layer of many chunks."""
    networks = [nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 5)).cuda() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    learned = random_schedule(networks[0], scale=0.1, directions=ALL, lr0=1e-3)
    optimizers = [L3RS(n.named_parameters(), 10, learned, fused=fused) for n, fused in zip(networks, (True, False), strict=True)]
    for k in range(10):
        torch.manual_seed(k)
        gradients = [torch.randn_like(p) for p in networks[0].parameters()]
        for network, optimizer in zip(networks, optimizers, strict=True):
            for p, g in zip(network.parameters(), gradients, strict=True):
                p.grad = g.clone()
            optimizer.step(loss=torch.tensor(1.0, device="cuda"))
    for p, q in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [None, False])
def test_a_default_device_changes_nothing_and_zero_grad_frees_gradients(fused: bool | None) -> None:
    ends = []
    for default in ("cpu", "cuda"):
        network = small_network().cuda()
        with torch.device(default):
            optimizer = L3RS(network.named_parameters(), 10, "generalist", guard=False, fused=fused)
        for k in range(3):
            loss = backward(network, k)
            with torch.device(default):
                optimizer.step(loss=loss)
        grads = [weakref.ref(p.grad) for p in network.parameters() if p.grad is not None]
        optimizer.zero_grad()
        gc.collect()
        assert all(ref() is None for ref in grads)
        ends.append([p.detach().clone() for p in network.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


def test_triton_is_the_default_and_repr_says_so() -> None:
    network = small_network().cuda()
    backward(network, 0)
    for fused, kernel, name in ((None, TritonKernel, "Triton"), (False, ForeachKernel, "torch operations")):
        optimizer = L3RS(network.named_parameters(), 10, random_schedule(network), fused=fused)
        assert f"step: {name} on cuda:0" in repr(optimizer)
        optimizer.step(loss=1.0)
        assert isinstance(optimizer._tables.by_device[0].kernel, kernel)


@pytest.mark.parametrize("name", FORMS)
def test_triton_equals_torch_operations_on_the_device(name: str) -> None:
    """In every form, with all that may happen between steps."""
    against_torch(name, device="cuda", fused=True)


def test_a_resumed_run_has_the_same_bits() -> None:
    """The norms of the weights are taken by the second pass in one run, and by the first in the other."""
    ends = []
    for resumed in (False, True):
        network = nn.Sequential(small_network(), nn.Linear(400, 300)).cuda()
        learned = random_schedule(network, scale=0.1, directions=ALL, unit="relative", lr0=1e-3)
        optimizer = L3RS(network.named_parameters(), 9, learned)
        for k in range(6):
            if resumed and k == 3:
                saved = optimizer.state_dict()
                optimizer = L3RS(network.named_parameters(), 9, learned)
                optimizer.load_state_dict(saved)
            generator = torch.Generator("cuda").manual_seed(k)
            for p in network.parameters():
                p.grad = torch.randn(p.shape, generator=generator, device="cuda")
            optimizer.step(loss=2.0 - 0.1 * k)
        ends.append([p.detach().clone() for p in network.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


@pytest.mark.parametrize("fused", [None, False])
def test_a_step_does_not_wait_for_the_device(fused: bool | None) -> None:
    """With two groups of their own lr, after the first step, which makes the tables; a step that is skipped included."""
    network = small_network().cuda()
    named = list(network.named_parameters())
    optimizer = L3RS([{"params": named[:3]}, {"params": named[3:], "lr": 0.5}], 20, random_schedule(network, directions=ALL), fused=fused)
    losses = [torch.tensor(value, device="cuda") for value in (1.0, 1.0, float("nan"), 1.0)]
    backward(network, 0)
    if fused is None:
        losses += [torch.tensor(1.0), 1.0, torch.tensor(1.0, dtype=torch.bfloat16, device="cuda")]  # type: ignore[list-item]
    for k, loss in enumerate(losses):
        torch.cuda.set_sync_debug_mode("error" if k else "default")
        try:
            optimizer.step(loss=loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with pytest.warns(UserWarning, match="nothing in 1 step"):
        assert optimizer.skipped_steps == 1


def test_the_guard_acts_a_step_after_the_leap_and_waits_for_nothing() -> None:
    network = small_network().cuda()
    optimizer = L3RS(network.named_parameters(), 20, random_schedule(network))
    losses = [torch.tensor(value, device="cuda") for value in (1.0, 9.0, 1.0, 50.0)]
    backward(network, 0)
    optimizer.step(loss=losses[0])  # makes the tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(loss=losses[1])
        assert optimizer.param_groups[0]["cut"] == 1
        with pytest.warns(UserWarning, match="the loss leapt from 1 to 9: L3RS multiplies all further steps by"):
            optimizer.step(loss=losses[2])
        optimizer.step(loss=losses[3])  # nothing is said again: warnings are errors here
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.param_groups[0]["cut"] == 0.3


@pytest.mark.parametrize("fused", [None, False])
def test_a_step_can_be_captured_in_a_cuda_graph(fused: bool | None) -> None:
    """Replayed, it does what eager steps do, its clock included, which the state dict then shows."""
    graphed, eager = small_network().cuda(), small_network().cuda()
    a, b = (L3RS(n.named_parameters(), 20, random_schedule(n, scale=0.1, lr0=2e-3), fused=fused) for n in (graphed, eager))
    gradients = [torch.randn_like(p) for p in eager.parameters()]
    loss = torch.tensor(1.0, device="cuda")
    for network in (graphed, eager):
        for p, g in zip(network.parameters(), gradients, strict=True):
            p.grad = g.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        a.step(loss=loss)  # makes the tables
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        a.step(loss=loss)  # recorded, and not run
    a.param_groups[0]["step"] -= 1
    for _ in range(9):
        graph.replay()
    for _ in range(10):
        b.step(loss=loss)
    for p, q in zip(graphed.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert a.state_dict()["param_groups"][0]["step"] == 10


@pytest.mark.parametrize("kind", list(KINDS))
def test_other_learned_optimizers_equal_their_runs_on_cpu(kind: str) -> None:
    learned = starting_weights(kind, None, kind, seed=0)
    here, there = small_network(), small_network().cuda()
    a, b = (learners.build(learned, network.named_parameters(), 20) for network in (here, there))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.cuda()
        for optimizer in (a, b):
            optimizer.step(loss=1.0)
    for p, q, start in zip(here.parameters(), there.parameters(), small_network().parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=1e-3, atol=1e-4)
        assert (p - q.cpu()).norm() <= 1e-3 * (p - start).norm()  # steps of some are smaller than that


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`", "ignore:.*treespec", "ignore:.*does not have many workers")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning_trains_in_each_precision(precision: str, tmp_path: Path) -> None:
    """With a gradient scaler in 16-mixed; the clock is of the steps that it let through."""
    import pytorch_lightning as pl

    from l3rs.lightning import L3RSModule

    network = small_network()
    module = L3RSModule(network, 3, learned=random_schedule(network, scale=0.1))
    data = [batch(k % 4) for k in range(24)]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cuda", devices=1, precision=precision, accumulate_grad_batches=2, default_root_dir=tmp_path,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = F.cross_entropy(network(data[0][0]), data[0][1])
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    (optimizer,) = trainer.optimizers
    assert 10 <= optimizer.param_groups[0]["step"] <= 12  # a scaler's first scales may overflow
    assert F.cross_entropy(network.cpu()(data[0][0]), data[0][1]) < before
