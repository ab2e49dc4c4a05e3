"""The parts of `evaluate/gpu.py`: each verifies or measures one thing, on the device that it is given, and tells a row as soon as it can.

A part imports what it needs itself: where a library is missing, the others still run.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from options import RESULTS, ROOT
from torch import nn
from torch.nn import functional as F

import l3rs  # noqa: F401  (before timm)

ON_CUDA = ("tests/optimizer/test_cuda.py", "tests/learned/test_learned_on_cuda.py", "tests/meta/test_meta_on_cuda.py")
WITHOUT_A_GPU = (  # of those that take a minute in the interpreter one will do
    "tests/optimizer/kernels",
    "tests/learned/test_elements_triton.py::test_triton_is_the_operations_of_torch_and_the_original[velo]",
)
ROW_OF_TEST = {  # a part of its name: the row of GPU.md that it is for; the first that fits
    "interpreter": "interpreter",
    "test_triton_is_the_operations": "interpreter",
    "steps_are_those_of_the_cpu": "cpu",
    "does_not_wait": "wait",
    "cuda_graph": "graph",
    "triton": "triton",
    "other_learned": "learned",
    "on_a_gpu": "lanes",
    "lightning": "precisions",
    "the_guard": "guard",
}
TWO_CORES = RESULTS / "meta_throughput.csv"
PYLO = {"velo": (206, 50), "small-fc": (191, 39)}  # samples a second on an A100, with CUDA kernels and without, as its paper reports
SAMPLES = ("adam", "l3rs", "velo", "celo2", "small-fc")


def tests(settings: Any, tell: Any) -> None:
    """The tests that need a GPU, and those of the kernels."""
    import pytest

    class Told:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                name = report.nodeid.rpartition("::")[2]
                row = next((row for part, row in ROW_OF_TEST.items() if part in name), "tests")
                tell(row, name, report.outcome, "test")

    files = ON_CUDA if settings.quick else (*ON_CUDA, *WITHOUT_A_GPU)
    os.chdir(ROOT)
    ended = pytest.main(["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "not slow", *files], plugins=[Told()])
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # failures are told, test by test
        raise RuntimeError(f"pytest could not run the tests ({ended!s})")


def widths(settings: Any) -> tuple[tuple[int, int], ...]:
    """Widths of ResNet-34, and rounds of each."""
    return ((4, 2),) if settings.quick else ((64, 50), (16, 50))


def step(settings: Any, tell: Any) -> None:
    """The step alone, against fused Adam."""
    from l3rs.evaluation.step_costs import arms, step_alone

    for width, rounds in widths(settings):
        for row in step_alone(width, rounds, settings.device, arms()):
            told = f"{row['ratio_to_fused_adam']:.2f} x fused Adam"
            tell("step", f"{row['arm']}, width {width}: {row['median_ms']} ms,", told)


def learned(settings: Any, tell: Any) -> None:
    """The step of the other learned optimizers, compiled and in torch operations."""
    from l3rs.evaluation.step_costs import other_learned_optimizers, step_alone

    for width, _ in widths(settings)[::-1]:
        for row in step_alone(width, 2 if settings.quick else 10, settings.device, other_learned_optimizers()):
            told = f"{row['ratio_to_fused_adam']:.2f} x fused Adam"
            tell("learned-step", f"{row['arm']}, width {width}: {row['median_ms']} ms,", told)


def networks(settings: Any) -> Iterator[tuple[str, Callable[[], nn.Module], int, int]]:
    """Name, maker, pixels and batch."""
    from l3rs.networks.create import create, resnet34

    if settings.quick:
        yield "resnet34-w4", partial(resnet34, 4), 32, 4
        yield "vit_tiny", partial(create, "vit_tiny_patch16_224"), 224, 1
    else:
        yield "resnet34-w64", partial(resnet34, 64), 224, 64
        yield "vit_base", partial(create, "vit_base_patch16_224"), 224, 64


def share(settings: Any, tell: Any) -> None:
    """The optimizer's share of a training step."""
    from l3rs.evaluation.step_costs import share as measured

    for name, make, pixels, batch in networks(settings):
        for row in measured(make, name, pixels, 1 if settings.quick else 20, settings.device, batch):
            tell("share", f"{name}, {row['arm']}: {row['optimizer_ms']} of {row['training_step_ms']} ms,", f"{100 * row['share']:.1f}%")


def samples(settings: Any, tell: Any) -> None:
    """Samples a second that ViT-B/16 trains on at batch 32, in float32."""
    from l3rs import L3RS
    from l3rs.learned.theta import random
    from l3rs.learned.weights import KINDS

    name, make, pixels, _ = list(networks(settings))[1]
    batch, seconds = (1, 0.0) if settings.quick else (32, 6.0)
    inputs, labels = torch.randn(batch, 3, pixels, pixels, device=settings.device), torch.arange(batch, device=settings.device) % 10
    for kind in SAMPLES:
        network = make().to(settings.device)
        named = list(network.named_parameters())
        if kind == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), fused=True)
        elif kind == "l3rs":
            optimizer = L3RS(named, 1000, "icons-generalist")
        else:
            optimizer = KINDS[kind].build(named, random(KINDS[kind].shapes, 0), 1000, 1e-3 if KINDS[kind].tuned else 1.0)
        rate = batch * steps_a_second(network, optimizer, inputs, labels, seconds)
        theirs = f" (PyLO on an A100: {PYLO[kind][0]}, without its kernels {PYLO[kind][1]})" if kind in PYLO else ""
        tell("samples", f"{name}, {kind}{theirs}", rate, "samples/s")
        del network, optimizer, named


def steps_a_second(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor, seconds: float
) -> float:
    """How many training steps are taken, in so many seconds after the first three."""
    from l3rs.evaluation.step_costs import take_step, wait

    started = done = 0.0
    while done < 4 or time.perf_counter() - started < seconds:
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        take_step(optimizer, loss.detach())
        done += 1
        if done == 3:
            wait(inputs.device)
            started = time.perf_counter()
    return (done - 3) / (time.perf_counter() - started)


def meta_training(settings: Any) -> tuple[Any, Any, int]:
    """The workload, the size of a task, and the length of a run: as in the shipped meta-training."""
    from l3rs.finetuning.tasks import TaskConfig
    from l3rs.finetuning.workload import Workload

    if settings.quick:
        return Workload(model="resnet18", width=4, from_scratch=True), TaskConfig(classes=5, batch_size=8, evaluation_size=20), 3
    return Workload(), TaskConfig(), 25


def numbers_at_once(settings: Any) -> tuple[int, ...]:
    """How many runs are made side by side."""
    return (1, 2) if settings.quick else (1, 4, 8)


def start(workload: Any, task: Any) -> Any:
    """The schedule that meta-training starts from."""
    from l3rs.finetuning.workbench import workbench
    from l3rs.learners import LEARNERS, Start

    return LEARNERS["l3rs"].start(Start(), "start", lambda: workbench(workload, task).network)


def on_two_cores(what: str) -> float | None:
    """Steps a second of two CPU cores, of the newest row."""
    with TWO_CORES.open(newline="") as file:
        found = [float(r["inner_steps_per_second"]) for r in csv.DictReader(file) if (r["what"], r["processes"]) == (what, "2")]
    return found[-1] if found else None


def tell_rate(tell: Any, row: str, what: str, rate: float, two_cores: float | None, quick: bool) -> None:
    """A throughput, and how it compares with two CPU cores."""
    times = f", {rate / two_cores:.1f} times two CPU cores" if two_cores and not quick else ""
    tell(row, what, rate, f"steps/s{times}")


def candidates(settings: Any, tell: Any) -> None:
    """Throughput of candidates of evolution strategies: whole runs with their evaluation, one at a time and several."""
    from l3rs.finetuning.captured import succeeded
    from l3rs.finetuning.lanes import Lanes

    workload, task, steps = meta_training(settings)
    learned = start(workload, task)
    for number in numbers_at_once(settings):
        lanes = Lanes(workload, task, settings.device, number)
        runs = [(learned.theta, 1, steps)] * (number if settings.quick else 2 * number)
        succeeded(lanes.reports(learned, runs[:number], "meta-train"))  # captures
        started = time.perf_counter()
        succeeded(lanes.reports(learned, runs, "meta-train"))
        rate = len(runs) * steps / (time.perf_counter() - started)
        tell_rate(tell, "candidates", f"candidates, {number} at once", rate, on_two_cores("meta-training"), settings.quick)


def gradients(settings: Any, tell: Any) -> None:
    """Throughput of meta-gradients: steps of runs that are gone through there and back."""
    from l3rs.finetuning.captured import side_by_side, succeeded
    from l3rs.finetuning.lanes import Lanes
    from l3rs.meta.gradient_lanes import GradientLane

    workload, task, steps = meta_training(settings)
    learned = start(workload, task)
    for number in numbers_at_once(settings):
        lanes = Lanes(workload, task, settings.device, number)
        loaded = lanes.load("meta-train", 1, steps)
        mine = [GradientLane(learned, lane.network) for lane in lanes.lanes]

        def job(lane: GradientLane, lanes: Lanes = lanes, loaded: Any = loaded) -> Any:
            return lane.run(learned.theta, lanes.begin(lane.network, "meta-train", 1, steps), loaded)

        succeeded(side_by_side(mine, [job] * number))  # captures
        started = time.perf_counter()
        succeeded(side_by_side(mine, [job] * number))
        rate = number * steps / (time.perf_counter() - started)
        tell_rate(tell, "gradients", f"meta-gradients, {number} at once", rate, on_two_cores("meta-gradients"), settings.quick)


def large(settings: Any, tell: Any) -> None:
    """Steps of meta-training full ResNet-34 at 64 px, batch 128, bfloat16, against bare forward and backward passes, as they come."""
    from l3rs import L3RS
    from l3rs.evaluation.step_costs import wait
    from l3rs.finetuning.lanes import Lane, LoadedTask
    from l3rs.networks.create import resnet34

    width, batch, steps = (4, 2, 3) if settings.quick else (64, 128, 40)
    network = resnet34(width, num_classes=25).to(settings.device, memory_format=torch.channels_last).train()
    begin = {name: t.clone() for name, t in network.state_dict().items()}
    inputs = torch.randn(steps, batch, 3, 64, 64, device=settings.device)
    labels = torch.arange(batch, device=settings.device).expand(steps, -1) % 25

    class Bench:
        """What a lane wants of a workbench: a network, reset."""

        def __init__(self) -> None:
            self.network = network

        def ready(self) -> nn.Module:
            network.load_state_dict(begin)
            return network

    def bare() -> None:
        for k in range(steps):
            network.zero_grad()
            with torch.autocast(inputs.device.type, torch.bfloat16):
                loss = F.cross_entropy(network(inputs[k]), labels[k])
            loss.backward()

    bench, task = Bench(), LoadedTask(inputs, labels, (inputs[0], labels[0]))
    lane = Lane(bench, "bfloat16")  # type: ignore[arg-type]

    def run() -> None:
        with lane.at_work():
            for _ in lane.run(lambda n: L3RS(n.named_parameters(), steps, "icons-generalist"), bench.ready, task):
                pass

    seconds = {}
    for name, work in (("bare", bare), ("run", run)):
        work()
        wait(inputs.device)
        started = time.perf_counter()
        work()
        wait(inputs.device)
        seconds[name] = time.perf_counter() - started
    tell("large", f"{1e3 * seconds['run'] / steps:.2f} ms a step, evaluation included, bare", 1e3 * seconds["bare"] / steps, "ms;")
    tell("large", "times bare passes", seconds["run"] / seconds["bare"])


def comparison(settings: Any, tell: Any) -> None:
    """A comparison on two tasks, as `evaluate/run.py` makes it."""
    from l3rs.finetuning.arms import Arm
    from l3rs.finetuning.runs import Run, execute

    _, task, steps = meta_training(settings)
    for arm in (Arm("L3RS", "l3rs"), Arm("Adam", "adam", lr=3e-3)):
        runs = [Run("A", arm, steps, seed, "meta-validation", task=task, device=settings.device) for seed in (1, 2)]
        reports = [execute(run) for run in runs]
        accuracy = sum(report.accuracy[steps] for report in reports) / len(reports)
        tell("comparison", f"{arm.name}, {steps} steps, {reports[-1].seconds:.2f} s a run, accuracy", accuracy)


def lightning(settings: Any, tell: Any) -> None:
    """Training in each precision."""
    import pytorch_lightning as pl

    from l3rs.lightning import L3RSModule
    from l3rs.networks.create import resnet

    for precision in ("32-true",) if settings.quick else ("32-true", "bf16-mixed", "16-mixed"):
        torch.manual_seed(0)
        network = resnet(18, 4 if settings.quick else 64, 3, 5)
        batches = [(torch.randn(8, 3, 32, 32), torch.arange(8) % 5)] * (3 if settings.quick else 40)
        before = F.cross_entropy(network(batches[0][0]), batches[0][1]).item()
        trainer = pl.Trainer(
            max_epochs=1, accelerator=settings.device, devices=1, precision=precision, default_root_dir=settings.out,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        started = time.perf_counter()
        trainer.fit(L3RSModule(network, 5, learned="icons-generalist"), torch.utils.data.DataLoader(batches, batch_size=None))
        seconds, after = time.perf_counter() - started, F.cross_entropy(network.cpu()(batches[0][0]), batches[0][1]).item()
        tell("lightning", f"{precision}: {len(batches)} steps in {seconds:.1f} s, loss {before:.2f} to", after)
