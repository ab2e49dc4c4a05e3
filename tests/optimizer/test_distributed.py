"""Data-parallel and sharded training, on CPU processes that talk through gloo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import batch, random_schedule, small_network
from ranks import Work, processes, run_on
from torch import Tensor, nn
from torch.nn import functional as F

from l3rs import L3RS, LearnedSchedule, load
from l3rs.learned import Celo
from l3rs.learned.theta import random as random_theta
from l3rs.networks.head_start import head_start
from l3rs.optimizer.kernels.native import library

ALL = ("sgd", "adam", "adamax", "lion", "lamb", "weight_decay")
STEPS = 20
OPTIONS: dict[str, dict[str, Any]] = {
    "relative": {"total_steps": STEPS},
    "generalist": {"total_steps": 8, "weight_decay": 0.1, "guard": False},  # later the rounding of the second has grown
}


OnRanks = Callable[[Work, Path], list[dict[str, Tensor]]]


@pytest.fixture(scope="module")
def on_ranks() -> Iterator[OnRanks]:
    """Runs a piece of work on two processes, and gives what each of them found. All tests here share the processes: they start slowly."""
    with processes(2) as ranks:
        yield partial(run_on, ranks)


def half(k: int, rank: int) -> tuple[Tensor, Tensor]:
    return share(k, rank, 2)


def share(k: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """This rank's part of batch k."""
    inputs, labels = (t.chunk(ranks)[rank] for t in batch(k))
    return inputs, labels


def data_parallel(rank: int, folder: Path) -> dict[str, Tensor]:
    network = nn.parallel.DistributedDataParallel(small_network())
    optimizer = L3RS(network.named_parameters(), STEPS, random_schedule(small_network(), scale=0.1, lr0=2e-3))
    for k in range(STEPS):
        inputs, labels = half(k, rank)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
    return {"loss": loss.detach(), **{n: p.detach() for n, p in network.module.named_parameters()}}


def test_data_parallel_ranks_stay_bitwise_equal_though_their_losses_differ(on_ranks: OnRanks, tmp_path: Path) -> None:
    a, b = on_ranks(data_parallel, tmp_path)
    assert a.pop("loss") != b.pop("loss")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], p) for name, p in small_network().named_parameters())


def of_velos_kind(rank: int, folder: Path) -> dict[str, Tensor]:
    network = nn.parallel.DistributedDataParallel(small_network())
    optimizer = Celo(network.named_parameters(), random_theta(Celo.FORM.shapes, 0), STEPS, lr=100.0)
    for k in range(4):
        inputs, labels = half(k, rank)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        if k == 2:
            loss = loss * (float("nan") if rank else 1.0)
        optimizer.step(loss=loss)
    return {"skipped": torch.tensor(optimizer.skipped_steps), **{n: p.detach() for n, p in network.module.named_parameters()}}


@pytest.mark.filterwarnings("ignore:Celo moved nothing")
def test_learned_optimizers_that_watch_the_loss_stay_equal_too(on_ranks: OnRanks, tmp_path: Path) -> None:
    a, b = on_ranks(of_velos_kind, tmp_path)
    assert a["skipped"] == b["skipped"] == 1
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], p) for name, p in small_network().named_parameters())


def of_a_sharded_network(rank: int, folder: Path) -> dict[str, Tensor]:
    from torch.distributed.fsdp import fully_shard

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="these are sharded: call it before fully_shard"):
        head_start(fully_shard(network), [batch(0)], head=network[1])
    return {}


def test_a_head_start_comes_before_sharding(on_ranks: OnRanks, tmp_path: Path) -> None:
    on_ranks(of_a_sharded_network, tmp_path)


def alone(rank: int, folder: Path) -> dict[str, Tensor]:
    """Each rank for itself, on its own data, in a group of its own."""
    groups = [dist.new_group([r]) for r in range(2)]
    network = small_network()
    optimizer = L3RS(network.named_parameters(), STEPS, random_schedule(network, scale=0.1), process_group=groups[rank])
    if rank == 0:  # would wait for the other rank for ever if it averaged over both
        inputs, labels = batch(0)
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
    return {}


def test_runs_of_their_own_need_a_group_of_one(on_ranks: OnRanks, tmp_path: Path) -> None:
    on_ranks(alone, tmp_path)


class Dense(nn.Sequential):
    """Layers whose sizes two ranks cannot share evenly, a bias of one element among them."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, 1), nn.Linear(1, 3))


def dense(kind: str) -> Dense:
    """For the generalist a matrix is frozen, whose bias is as large as it."""
    network = Dense()
    network[3].weight.requires_grad_(kind == "relative")
    return network


def train_dense(network: nn.Module, optimizer: L3RS, rank: int | None, steps: range) -> None:
    for k in steps:
        inputs, labels = batch(k) if rank is None else half(k, rank)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        if k == 3:  # for all ranks, though only one of them sees it
            loss = loss * (float("nan") if rank in (None, 1) else 1.0)
        optimizer.step(loss=loss)


def dense_schedule(kind: str = "relative") -> LearnedSchedule:
    """One with all directions; or one that is shipped, which sees what layers are, their sizes, and gradients against these."""
    return random_schedule(Dense(), scale=0.1, directions=ALL, lr0=2e-3, unit="relative") if kind == "relative" else load(kind)


def sharded(rank: int, folder: Path, kind: str = "relative") -> dict[str, Tensor]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    found, steps = {}, OPTIONS[kind]["total_steps"]
    for fused in (None, False):
        network = fully_shard(dense(kind))
        optimizer = L3RS(network.named_parameters(), learned=dense_schedule(kind), fused=fused, **OPTIONS[kind])
        train_dense(network, optimizer, rank, range(steps // 2))
        (layers,) = optimizer._tables.by_device
        assert layers.kernel.name == ("C" if fused is None and library() is not None else "torch operations")
        saved = {"optimizer": get_optimizer_state_dict(network, optimizer)}
        dcp.save(saved, checkpoint_id=folder / f"checkpoint-{fused}")

        fresh = L3RS(network.named_parameters(), learned=dense_schedule(kind), fused=fused, **OPTIONS[kind])
        place = {"optimizer": get_optimizer_state_dict(network, fresh)}
        dcp.load(place, checkpoint_id=folder / f"checkpoint-{fused}")
        set_optimizer_state_dict(network, fresh, place["optimizer"])
        train_dense(network, fresh, rank, range(steps // 2, steps))
        found |= {f"{fused} {name}": p.full_tensor().detach() for name, p in network.named_parameters()}
        found[f"{fused} moment"] = fresh.state[network[1].weight]["adam/exp_avg"].to_local()
    return found


def sharded_generalist(rank: int, folder: Path) -> dict[str, Tensor]:
    return sharded(rank, folder, "generalist")


@pytest.mark.parametrize("on_each", [sharded, sharded_generalist])
def test_sharded_training_is_that_of_one_process(on_each: Work, on_ranks: OnRanks, tmp_path: Path) -> None:
    """fully_shard on two ranks, saved and loaded half way through torch.distributed.checkpoint."""
    kind = "relative" if on_each is sharded else "generalist"
    network = dense(kind)
    optimizer = L3RS(network.named_parameters(), learned=dense_schedule(kind), **OPTIONS[kind])
    train_dense(network, optimizer, None, range(OPTIONS[kind]["total_steps"]))
    with pytest.warns(UserWarning, match="nothing in 1 step"):
        assert optimizer.skipped_steps == 1
    a, b = on_ranks(on_each, tmp_path)
    for fused in (None, False):
        for name, p in network.named_parameters():
            torch.testing.assert_close(a[f"{fused} {name}"], p.detach(), rtol=1e-4, atol=1e-5)
            assert torch.equal(a[f"{fused} {name}"], b[f"{fused} {name}"])
        assert len(a[f"{fused} moment"]) + len(b[f"{fused} moment"]) == 7


def hybrid(rank: int, folder: Path) -> dict[str, Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = fully_shard(Dense(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    optimizer = L3RS(network.named_parameters(), STEPS, dense_schedule(), weight_decay=10.0)
    for k in range(5):
        inputs, labels = share(k, rank, 4)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
    return {name: p.full_tensor().detach() for name, p in network.named_parameters()}


@pytest.mark.slow
def test_hybrid_sharding_is_that_of_one_process(tmp_path: Path) -> None:
    """Two replicas of two shards: norms are summed over shards, and not over replicas. Losses are observed, and weights decay."""
    network = Dense()
    optimizer = L3RS(network.named_parameters(), STEPS, dense_schedule(), weight_decay=10.0)
    for k in range(5):
        inputs, labels = batch(k)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
    with processes(4) as ranks:
        for found in run_on(ranks, hybrid, tmp_path):
            for name, p in network.named_parameters():
                torch.testing.assert_close(found[name], p.detach(), rtol=1e-4, atol=1e-5)


def wrapped_and_sharded(rank: int, folder: Path) -> dict[str, Tensor]:
    from torch.distributed.fsdp import fully_shard

    network = fully_shard(Dense())
    with pytest.raises(ValueError, match=r"'torch\.optim\.NAdam' steps whole parameters, and these are sharded"):
        L3RS(network.named_parameters(), 5, random_schedule(Dense(), directions=("torch.optim.NAdam",)))
    return {}


def test_wrapped_optimizers_refuse_sharded_parameters(on_ranks: OnRanks, tmp_path: Path) -> None:
    on_ranks(wrapped_and_sharded, tmp_path)
