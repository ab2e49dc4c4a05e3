"""Time a step of L3RS against Adam and SGD, alone and as a share of a training step.

    python evaluate/step_cost.py                  # the step alone, on ResNet-34 (21.3 M parameters) and at width 16
    python evaluate/step_cost.py --trials         # with other ways to compute it, which were tried
    python evaluate/step_cost.py --learned        # the other learned optimizers, and the memory that a step needs beside the state
    python evaluate/step_cost.py --share          # the step in a training step at batch 64

All arms run in one process, one after the other in every round, so that a busy machine slows all of them; each has parameters,
gradients and state of its own, which the others push out of the caches, as a forward and a backward pass would. Prints medians with
quartiles and the ratio to `Adam(fused=True)`, and appends a row for each arm to a CSV file in `evaluate/results`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from options import RESULTS, count, device
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from l3rs import L3RS
from l3rs.files import append_rows
from l3rs.finetuning.runs import peak, start_peak
from l3rs.learned import portions
from l3rs.learned.base import LearnedRule
from l3rs.learned.elements import refused
from l3rs.learned.theta import random
from l3rs.learned.weights import KINDS
from l3rs.networks.create import resnet34
from l3rs.optimizer.kernels import ForeachKernel, Norms

FIELDS = (
    *("date", "device", "threads", "torch", "network", "parameters", "arm", "rounds"),
    *("median_ms", "q25_ms", "q75_ms", "ratio_to_fused_adam", "state_words"),
)
LEARNED_FIELDS = (*FIELDS, "peak_words")
SHARE_FIELDS = (
    *("date", "device", "threads", "torch", "network", "pixels", "batch", "arm", "rounds"),
    *("training_step_ms", "optimizer_ms", "share"),
)


class FusedBufferKernel(ForeachKernel):
    """A trial: `torch._fused_adam_` steps a buffer of zeros, which gives Adam's direction; the rest in foreach operations."""

    buffer: Sequence[Tensor] = ()

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        beta1, beta2, eps = self.constants["adam"]
        if not self.buffer:
            self.buffer = [torch.zeros_like(p) for p in self.params]
        torch._foreach_zero_(self.buffer)
        m, v = ([s[key] for s in self.states["adam"]] for key in ("exp_avg", "exp_avg_sq"))
        options = {"amsgrad": False, "lr": -1.0, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0, "eps": eps, "maximize": False}
        torch._fused_adam_(self.buffer, list(grads), m, v, [], list(steps.unbind()), **options)
        self.wide, self.uphill = list(self.params), [list(grads), list(self.buffer)]
        weights, sgd, adam = (self._norms(tensors) for tensors in (self.params, grads, self.buffer))
        return Norms(weights, sgd, torch.stack([sgd, adam], dim=1), ok & sgd.isfinite().all())


class CompiledKernel(ForeachKernel):
    """A trial: both passes of the foreach kernel through `torch.compile`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._first, self._second = torch.compile(self._norms_of), torch.compile(self._move)

    def _norms_of(self, grads, m, v, root, gain, beta1: float, beta2: float, eps: float):
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        uphill = [gain * a / (b.sqrt() + eps * root) for a, b in zip(m, v, strict=True)]
        return uphill, *(torch.stack([t.norm() for t in tensors]) for tensors in (self.params, grads, uphill))

    def _move(self, grads, uphill, scales):
        for i, (p, g, d) in enumerate(zip(self.params, grads, uphill, strict=True)):
            p.sub_(scales[i, 0] * g + scales[i, 1] * d)

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        beta1, beta2, eps = self.constants["adam"]
        root = (1 - beta2 ** steps[0]).sqrt()
        m, v = ([s[key] for s in self.states["adam"]] for key in ("exp_avg", "exp_avg_sq"))
        adam, weights, sgd, norm = self._first(list(grads), m, v, root, root / (1 - beta1 ** steps[0]), beta1, beta2, eps)
        self.uphill = [list(grads), adam]
        return Norms(weights, sgd, torch.stack([sgd, norm], dim=1), ok & sgd.isfinite().all())

    def apply(self, scales: Tensor) -> None:
        self._second(*self.uphill, scales)


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


def arms(trials: bool) -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    """What is timed, by name."""
    found: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "adam-fused": lambda n: torch.optim.Adam(parameters(n), fused=True),
        "adam-foreach": lambda n: torch.optim.Adam(parameters(n), foreach=True),
        "adam-default": lambda n: torch.optim.Adam(parameters(n)),
        "sgd-fused": lambda n: torch.optim.SGD(parameters(n), fused=True),
        "l3rs": lambda n: learned(n),
        "l3rs-foreach": lambda n: learned(n, fused=False),
    }
    if trials:
        found["l3rs-fused-adam-buffer"] = lambda n: learned(n, FusedBufferKernel)
    return found


def without_kernel(make: Callable[[], LearnedRule]) -> LearnedRule:
    """The same in torch operations, as without a C compiler, or, on a GPU, without Triton."""
    optimizer = make()

    def pre(*_) -> None:
        portions.refused = lambda *_: True

    def post(*_) -> None:
        portions.refused = refused

    optimizer.register_step_pre_hook(pre)
    optimizer.register_step_post_hook(post)
    return optimizer


def other_learned_optimizers() -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    """With meta-parameters drawn at random, which cost what published ones do."""
    makers: dict[str, Callable[[nn.Module], LearnedRule]] = {
        name: lambda n, kind=kind: kind.build(named_parameters(n), random(kind.shapes, 0), 10**6, kind.lr) for name, kind in KINDS.items()
    }
    slow = {f"{name}-torch": lambda n, make=make: without_kernel(lambda: make(n)) for name, make in makers.items()}
    return {"adam-fused": lambda n: torch.optim.Adam(parameters(n), fused=True), **makers, **slow}


def peak_words(optimizer: torch.optim.Optimizer) -> float:
    """The memory that a step needs beside parameters, gradients and state, at most, in float32 words per parameter; NaN but on Linux."""
    device = optimizer.param_groups[0]["params"][0].device
    before = start_peak(device)
    take_step(optimizer)
    numel = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return (peak(device) - before) * 2**20 / 4 / numel


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
    numel = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)) / (
        4 * numel
    )


def machine(device: str) -> dict[str, str | int]:
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


def step_alone(width: int, rounds: int, trials: bool, device: str, others: bool = False) -> list[dict]:
    """Rows of FIELDS, one for each arm."""
    network = resnet34(width).to(device)
    optimizers = {name: make(network) for name, make in (other_learned_optimizers() if others else arms(trials)).items()}
    seconds = interleaved(optimizers, rounds, f"width {width}")
    fused = dict.fromkeys(seconds, float(np.median(seconds["adam-fused"])))
    if trials:  # last, and beside an Adam of its own: compiled code brings a second pool of OpenMP threads, which slows the first
        optimizers["l3rs-compiled"] = learned(network, CompiledKernel)
        pair = interleaved({name: optimizers[name] for name in ("adam-fused", "l3rs-compiled")}, rounds, f"width {width}, compiled")
        seconds["l3rs-compiled"], fused["l3rs-compiled"] = pair["l3rs-compiled"], float(np.median(pair["adam-fused"]))
    numel = sum(p.numel() for p in network.parameters())
    about = {**machine(device), "network": f"resnet34-w{width}", "parameters": numel, "rounds": rounds}
    rows = []
    for name, taken in seconds.items():
        q25, median, q75 = np.percentile(taken, [25, 50, 75])
        times = {"median_ms": median, "q25_ms": q25, "q75_ms": q75}
        rows.append(
            {**about, "arm": name, **{k: round(1e3 * t, 3) for k, t in times.items()}}
            | ({"peak_words": round(peak_words(optimizers[name]), 3)} if others else {})
            | {"ratio_to_fused_adam": round(median / fused[name], 3), "state_words": round(state_words(optimizers[name]), 4)}
        )
    return rows


def share(make_network: Callable[[], nn.Module], called: str, pixels: int, rounds: int, device: str, batch: int = 64) -> list[dict]:
    """Rows of SHARE_FIELDS: what part of a training step is the optimizer's."""
    inputs, labels = torch.randn(batch, 3, pixels, pixels, device=device), torch.randint(10, (batch,), device=device)
    makers: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "adam-fused": lambda n: torch.optim.Adam(n.parameters(), fused=True),
        "l3rs": lambda n: L3RS(n.named_parameters(), 100),
    }
    networks = {name: make_network().to(device, memory_format=torch.channels_last) for name in makers}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--widths", type=count, nargs="+", default=[64, 16], help="widths of ResNet-34, of which 64 is full (default: 64 16)"
    )
    parser.add_argument("--rounds", type=count, default=50, help="steps of each arm (default: 50)")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads(), help="threads of torch (default: all)")
    parser.add_argument("--device", type=device, default="cpu", help="where (default: cpu)")
    parser.add_argument("--trials", action="store_true", help="time other implementations too; torch.compile takes minutes")
    parser.add_argument("--learned", action="store_true", help="time the other learned optimizers instead")
    parser.add_argument("--share", action="store_true", help="time whole training steps instead; minutes on a CPU at 224 px")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder that the rows are appended in (default: evaluate/results)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.share:
        for width, pixels, rounds in ((64, 224, 3), (16, 32, 30)):
            rows = share(partial(resnet34, width), f"resnet34-w{width}", pixels, rounds, args.device)
            append_rows(args.out / "step_share.csv", rows, SHARE_FIELDS)
            for row in rows:
                times = f"{row['optimizer_ms']:9.2f} of {row['training_step_ms']:9.1f} ms"
                print(f"{row['network']:>14} {pixels:>4} px  {row['arm']:12} {times}  {row['share']:.2%}")
        return
    for width in args.widths:
        rows = step_alone(width, args.rounds, args.trials, args.device, args.learned)
        file, fields = ("learned_cost.csv", LEARNED_FIELDS) if args.learned else ("step_cost.csv", FIELDS)
        append_rows(args.out / file, rows, fields)
        print(f"ResNet-34 at width {width}, {rows[0]['parameters'] / 1e6:.2f} M parameters, {args.threads} threads, {args.rounds} rounds")
        for row in rows:
            spread = f"{row['q25_ms']:.2f} to {row['q75_ms']:.2f}"
            ratio = f"x{row['ratio_to_fused_adam']:.2f}"
            words = f"state {row['state_words']:.4f} words a parameter"
            beside = f", at most {row['peak_words']:.2f} beside it" if args.learned else ""
            print(f"  {row['arm']:24} {row['median_ms']:8.2f} ms ({spread:>16})  {ratio}  {words}{beside}")


if __name__ == "__main__":
    main()
