"""The cost of a step, alone and in a training step: what is timed, how, and the rows.

All arms run in one process, one after the other in every round, so that a busy machine slows all of them; each has parameters,
gradients and state of its own, which the others push out of the caches, as a forward and a backward pass would.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from l3rs.finetuning.runs import peak, start_peak
from l3rs.learned.base import LearnedRule
from l3rs.learned.theta import random
from l3rs.learned.weights import KINDS
from l3rs.networks.create import resnet34
from l3rs.optimizer.kernels import ForeachKernel
from l3rs.optimizer.l3rs import L3RS

FIELDS = (
    *("date", "device", "threads", "torch", "network", "parameters", "arm", "rounds"),
    *("median_ms", "q25_ms", "q75_ms", "ratio_to_fused_adam", "state_words"),
)
LEARNED_FIELDS = (*FIELDS, "peak_words")
SHARE_FIELDS = (
    *("date", "device", "threads", "torch", "network", "pixels", "batch", "arm", "rounds"),
    *("training_step_ms", "optimizer_ms", "share"),
)
Maker: TypeAlias = Callable[[nn.Module], torch.optim.Optimizer]


def parameters(network: nn.Module) -> list[nn.Parameter]:
    """Copies of the network's parameters, on its device, with gradients like those of a training step."""
    generator = torch.Generator().manual_seed(0)
    copies = [nn.Parameter(p.detach().clone()) for p in network.parameters()]
    for p in copies:
        p.grad = (torch.randn(p.shape, generator=generator) * 0.01).to(p.device)
    return copies


def named_parameters(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The same, with their names."""
    return list(zip(dict(network.named_parameters()), parameters(network), strict=True))


def learned(network: nn.Module, kernel: type[ForeachKernel] | None = None, fused: bool | None = None) -> torch.optim.Optimizer:
    """L3RS by the shipped specialist; `kernel` takes the place of its kernel."""
    optimizer = L3RS(named_parameters(network), 10**6, "icons-resnet34-paper", fused=fused)
    if kernel is not None:
        optimizer.step(loss=1.0)
        (layers,) = optimizer._tables.by_device
        params = [p for group in optimizer.param_groups for p in group["params"]]
        states = [optimizer.state[p] for p in params]
        layers.kernel = kernel(params, states, optimizer._controller.directions, optimizer._controller.constants, None, layers.decision)
    return optimizer


def arms() -> dict[str, Maker]:
    """What is timed, by name."""
    return {
        "adam-fused": lambda n: torch.optim.Adam(parameters(n), fused=True),
        "adam-foreach": lambda n: torch.optim.Adam(parameters(n), foreach=True),
        "adam-default": lambda n: torch.optim.Adam(parameters(n)),
        "sgd-fused": lambda n: torch.optim.SGD(parameters(n), fused=True),
        "l3rs": learned,
        "l3rs-foreach": partial(learned, fused=False),
    }


def other_learned(kind: str, network: nn.Module, fused: bool | None = None) -> LearnedRule:
    """Another learned optimizer, with meta-parameters drawn at random, which cost what published ones do."""
    return KINDS[kind].build(named_parameters(network), random(KINDS[kind].shapes, 0), 10**6, KINDS[kind].lr, fused=fused)


def other_learned_optimizers() -> dict[str, Maker]:
    """What is timed of them, by name."""
    fast = {kind: partial(other_learned, kind) for kind in KINDS}
    slow = {f"{kind}-torch": partial(other_learned, kind, fused=False) for kind in KINDS}
    return {"adam-fused": arms()["adam-fused"], **fast, **slow}


def peak_words(optimizer: torch.optim.Optimizer) -> float:
    """The memory that a step needs beside parameters, gradients and state, at most, in float32 words per parameter; NaN but on Linux."""
    device = optimizer.param_groups[0]["params"][0].device
    before = start_peak(device)
    take_step(optimizer)
    return (peak(device) - before) * 2**20 / 4 / _numel(optimizer)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor | None = None) -> float:
    """The duration of a step, in seconds, until the device has done it."""
    device = optimizer.param_groups[0]["params"][0].device
    loss = torch.ones((), device=device) if loss is None else loss
    wait(device)
    started = time.perf_counter()
    optimizer.step(loss=loss) if isinstance(optimizer, L3RS | LearnedRule) else optimizer.step()
    wait(device)
    return time.perf_counter() - started


def state_words(optimizer: torch.optim.Optimizer) -> float:
    """Size of the state in float32 words per parameter."""
    held = (t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))
    return sum(t.numel() * t.element_size() for t in held) / 4 / _numel(optimizer)


def _numel(optimizer: torch.optim.Optimizer) -> int:
    params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(p.numel() for p in params)


def machine(device: str) -> dict[str, str | int]:
    """When, where and with what, as rows have it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), model)
    if device == "cuda":
        model = torch.cuda.get_device_name()
    return {"date": date.today().isoformat(), "device": model, "threads": torch.get_num_threads(), "torch": torch.__version__}


def interleaved(optimizers: dict[str, torch.optim.Optimizer], rounds: int, what: str) -> dict[str, list[float]]:
    """Durations of `rounds` steps of each, one after the other in every round, after three that do not count."""
    for optimizer in optimizers.values():
        for _ in range(3):
            take_step(optimizer)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in trange(rounds, desc=what):
        for name, optimizer in optimizers.items():
            seconds[name].append(take_step(optimizer))
    return seconds


def step_alone(
    width: int, rounds: int, device: str, makers: Mapping[str, Maker], last: Mapping[str, Maker] | None = None, memory: bool = False
) -> list[dict[str, Any]]:
    """Times the step on a ResNet-34.

    Args:
        width: of the network; 64 is full.
        rounds: steps of each arm.
        device: where.
        makers: of each arm, by name; `adam-fused` is among them.
        last: of arms that slow the others down. Each is timed when those are done, beside `adam-fused` alone.
        memory: measures what a step needs beside the state too.

    Returns:
        Rows of FIELDS, or, with `memory`, of LEARNED_FIELDS, one for each arm.
    """
    network = resnet34(width).to(device)
    optimizers = {name: make(network) for name, make in makers.items()}
    seconds = interleaved(optimizers, rounds, f"width {width}")
    fused = dict.fromkeys(seconds, float(np.median(seconds["adam-fused"])))
    for name, make in (last or {}).items():
        optimizers[name] = make(network)
        pair = interleaved({each: optimizers[each] for each in ("adam-fused", name)}, rounds, f"width {width}, {name}")
        seconds[name], fused[name] = pair[name], float(np.median(pair["adam-fused"]))
    numel = sum(p.numel() for p in network.parameters())
    about = {**machine(device), "network": f"resnet34-w{width}", "parameters": numel, "rounds": rounds}
    rows = []
    for name, taken in seconds.items():
        q25, median, q75 = np.percentile(taken, [25, 50, 75])
        times = {"median_ms": median, "q25_ms": q25, "q75_ms": q75}
        rows.append(
            {**about, "arm": name, **{k: round(1e3 * t, 3) for k, t in times.items()}}
            | ({"peak_words": round(peak_words(optimizers[name]), 3)} if memory else {})
            | {"ratio_to_fused_adam": round(median / fused[name], 3), "state_words": round(state_words(optimizers[name]), 4)}
        )
    return rows


def share(
    make_network: Callable[[], nn.Module], called: str, pixels: int, rounds: int, device: str, batch: int = 64
) -> list[dict[str, Any]]:
    """Rows of SHARE_FIELDS: what part of a training step is the optimizer's."""
    inputs, labels = torch.randn(batch, 3, pixels, pixels, device=device), torch.randint(10, (batch,), device=device)
    makers: dict[str, Maker] = {
        "adam-fused": lambda n: torch.optim.Adam(n.parameters(), fused=True),
        "l3rs": lambda n: L3RS(n.named_parameters(), 100),
    }
    networks = {name: make_network().to(device=device, memory_format=torch.channels_last) for name in makers}  # type: ignore[call-overload]
    optimizers = {name: make(networks[name]) for name, make in makers.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}  # of a training step, and the optimizer's part
    for _ in trange(rounds + 3, desc=f"{pixels} px"):
        for name, optimizer in optimizers.items():
            wait(inputs.device)
            started = time.perf_counter()
            loss = F.cross_entropy(networks[name](inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            part = take_step(optimizer, loss)
            taken[name].append((time.perf_counter() - started, part))
    rows = []
    for name in makers:
        whole, parts = np.array(taken[name][3:]).T
        times = {"training_step_ms": round(1e3 * np.median(whole), 1), "optimizer_ms": round(1e3 * np.median(parts), 2)}
        about = {"network": called, "pixels": pixels, "batch": batch, "arm": name, "rounds": rounds}
        rows.append({**machine(device), **about, **times, "share": round(np.median(parts / whole), 5)})
    return rows
