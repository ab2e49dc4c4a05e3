"""Every form of schedule that a compiled kernel must step right, and what it is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from conftest import random_schedule, small_network
from torch import nn

from l3rs import L3RS
from l3rs.optimizer.reference import ReferenceL3RS

Prepare = Callable[[L3RS], None]
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


def nothing(optimizer: L3RS) -> None:
    """Leaves an optimizer the kernel that it has."""


def specialist(name: str) -> bool:
    """Whether a form knows layers by name."""
    return "embedding" not in FORMS[name] or FORMS[name].get("controller") == "layerwise"


def gradients(network: nn.Module, k: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(k)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in network.parameters()]


def give(network: nn.Module, grads: list[torch.Tensor]) -> None:
    for p, g in zip(network.parameters(), grads, strict=True):
        p.grad = g.to(p)


def agree(a: nn.Module, b: nn.Module, start: list[torch.Tensor], rtol: float, what: str) -> None:
    """The way that every parameter has gone since the start, to rounding of the parameter itself."""
    for (name, p), q, before in zip(a.named_parameters(), b.parameters(), start, strict=True):
        assert p.isfinite().all(), f"{what}: {name}"
        way = (q.double() - before.double()).norm()
        assert (p.double() - q.double()).norm() <= rtol * way + 1e-6 * q.double().norm(), f"{what}: {name}"


def against_reference(name: str, sizes: tuple[int, ...] = (), prepare: Prepare = nothing, fused: bool | None = None) -> None:
    """Three steps of a form, on layers of these sizes if they are given; the reference runs in float64. `fused`: as of `L3RS`."""

    def network(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(1)
        made = nn.Sequential(nn.Linear(7, 31), nn.Linear(31, 3)) if not sizes else nn.Module()
        for i, n in enumerate(sizes):
            made.register_parameter(f"p{i}", nn.Parameter(torch.randn(n)))
        return made.to(dtype)

    fast, slow = network(torch.float32), network(torch.float64)
    start = [p.detach().clone() for p in fast.parameters()]
    schedule = random_schedule(fast, specialist(name), scale=0.1, **FORMS[name])
    optimizer = L3RS(fast.named_parameters(), 5, schedule, fused=fused)
    reference = ReferenceL3RS(dict(slow.named_parameters()), 5, schedule)
    for k in range(3):
        grads = gradients(fast, k)
        give(fast, [g.float().double() for g in grads])
        give(slow, [g.float().double() for g in grads])
        prepare(optimizer)
        optimizer.step(loss=1.0 + k)
        reference.step(1.0 + k)
        agree(fast, slow, start, 2e-4, f"{name}, step {k}")


def against_torch(name: str, prepare: Prepare = nothing, device: str = "cpu", fused: bool | None = None) -> None:
    """Eight steps, with what may happen between them; then parameters, moments, averages, counts and decisions agree.

    Args:
        fused: of the optimizer that is compared with torch operations; True has it raise where compiled code does not step it.
    """
    networks = small_network().to(device), small_network().to(device)
    start = [p.detach().clone() for p in networks[0].parameters()]
    learned = random_schedule(networks[0], specialist(name), scale=0.1, **{**FORMS[name], "lr0": 1e-3})
    optimizers = []
    for n in networks:
        first, last = list(n.named_parameters())[:3], list(n.named_parameters())[3:]
        groups = [{"params": first, "total_steps": 6}, {"params": last, "lr": torch.tensor(0.5), "maximize": True}]
        optimizers.append(L3RS(groups, 9, learned, fused=False if n is networks[0] else fused))
    warnings.simplefilter("ignore")
    for k in range(8):
        grads = gradients(networks[0], k)
        if k == 3:
            grads[2][0] = float("inf")
        loss = torch.tensor(float("nan") if k == 5 else 1.0 + k, device=device)
        for network, optimizer in zip(networks, optimizers, strict=True):
            give(network, grads)
            optimizer.param_groups[0]["lr"] = 1.0 - 0.1 * k
            if k in (4, 5):
                next(network.parameters()).grad = None
            if k == 6:
                with torch.no_grad():
                    next(network.parameters()).mul_(1.5)
            if optimizer is optimizers[1]:
                prepare(optimizer)
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
