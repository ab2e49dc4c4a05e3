"""Runs side by side on a CUDA GPU, in CUDA graphs: those of `unroll`, and the meta-gradients of a CPU. Skipped where there is none."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import random_schedule, small_network
from test_gradients import HELD_OUT, double

from l3rs.controller.config import L3RSConfig
from l3rs.finetuning.captured import side_by_side, succeeded
from l3rs.finetuning.lanes import Lanes, LoadedTask
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import unroll
from l3rs.finetuning.workbench import Workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS, Start
from l3rs.meta.gradient_lanes import GradientLane
from l3rs.meta.gradients import meta_gradient

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.mark.parametrize("refresh", [False, True])
def test_candidates_on_a_gpu_are_those_of_unroll(refresh: bool) -> None:
    """More of them than lanes; losses to what another order of sums changes in a few steps."""
    workload, task = Workload(), TaskConfig(classes=5, batch_size=16, evaluation_size=40)
    lanes, bench = Lanes(workload, task, "cuda", 3), Workbench(workload, task, "cuda")
    learned = LEARNERS["l3rs"].start(Start(L3RSConfig(), seed=0), "start", lambda: bench.network)
    generator = torch.Generator().manual_seed(0)
    runs = [(learned.theta + 0.05 * torch.randn(learned.theta.shape, generator=generator), 1 + i // 2, 4 + i // 4) for i in range(7)]
    for found, (theta, seed, steps) in zip(succeeded(lanes.reports(learned, runs, "meta-train", refresh)), runs, strict=True):
        tasks = bench.tasks("meta-train")
        drawn = tasks.draw(seed, steps)
        network = bench.network_for(drawn.head_seed)
        optimizer = LEARNERS["l3rs"].build(learned, theta, network.named_parameters(), steps)
        expected = unroll(network, optimizer, tasks.images, drawn, refresh=refresh)
        assert found.train_losses == pytest.approx(expected.train_losses, rel=2e-2)
        assert found.loss[steps] == pytest.approx(expected.loss[steps], rel=5e-2)


@pytest.mark.parametrize("search", ["nes", "gradient"])
def test_meta_training_on_a_gpu_ends(search: str, tmp_path: Path) -> None:
    """In one process, without Ray."""
    if find_spec("evotorch") is None:
        pytest.skip("EvoTorch is not installed")
    from small_runs import quick

    from l3rs.meta.train import meta_train

    chosen = meta_train(quick(2, device="cuda", search=search, meta_batch=2), tmp_path, progress=False)
    assert chosen.theta.isfinite().all()
    assert (tmp_path / "quick.safetensors").exists()


@pytest.mark.parametrize("refresh", [False, True])
def test_meta_gradients_on_a_gpu_are_those_of_a_cpu(refresh: bool) -> None:
    """In float64, on two lanes, of three lengths; each graph is launched for all of them."""
    network = small_network(torch.float64)
    learned = random_schedule(network, scale=0.1, lr0=2e-2)
    learned = replace(learned, theta=learned.theta.double())
    networks = [copy.deepcopy(network).cuda() for _ in range(2)]
    lanes, start = [GradientLane(learned, n, refresh, last=3) for n in networks], copy.deepcopy(networks[0].state_dict())

    def job(steps: int):
        def on(lane: GradientLane):
            batches = [double(k) for k in range(steps)]
            data = [torch.stack([pair[i] for pair in batches]).cuda() for i in range(2)]
            lane.network.load_state_dict(start)
            return lane.run(learned.theta, lambda: lane.network, LoadedTask(*data, tuple(t.cuda() for t in HELD_OUT)))

        return on

    lengths = (4, 2, 5)
    for steps, found in zip(lengths, succeeded(side_by_side(lanes, [job(steps) for steps in lengths])), strict=True):
        expected = meta_gradient(learned, network, double, steps, HELD_OUT, refresh, 3)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert (found.theta.cpu() - expected.theta).norm() < 1e-5 * expected.theta.norm()
