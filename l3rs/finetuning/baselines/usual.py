"""The usual baselines, by the names under which their learning rates are tuned."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from l3rs.finetuning.baselines.muon import Muon
from l3rs.finetuning.baselines.recipe import Library, Recipe, cosine
from l3rs.networks.create import head_of

SCHEDULE_FREE = Library("schedulefree", "schedulefree")
SOAP = Library("pytorch_optimizer", "pytorch_optimizer")


def _head10(network: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Makes two groups: the body, and the head at ten times the learning rate."""
    head = list(head_of(network).parameters())
    body = [p for p in network.parameters() if all(p is not h for h in head)]
    return [{"params": body, "lr": lr}, {"params": head, "lr": 10 * lr}]


def adam(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam at a constant learning rate."""
    return Recipe(torch.optim.Adam(network.parameters(), lr=lr, fused=True), None)


def adam_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam with a cosine: the learning rate falls to 0."""
    return cosine(torch.optim.Adam(network.parameters(), lr=lr, fused=True), steps)


def adam_cosine_head10(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Adam with cosine, and ten times the learning rate on the new head."""
    return cosine(torch.optim.Adam(_head10(network, lr), fused=True), steps)


def sgd_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """SGD with momentum 0.9 and a cosine."""
    return cosine(torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, fused=True), steps)


def adamw(network: nn.Module, lr: float, steps: int) -> Recipe:
    """AdamW at a constant learning rate, torch's weight decay of 0.01."""
    return Recipe(torch.optim.AdamW(network.parameters(), lr=lr), None)


def adamw_cosine_head10(network: nn.Module, lr: float, steps: int) -> Recipe:
    """AdamW with torch's default weight decay, 0.01, cosine, and ten times the learning rate on the new head."""
    return cosine(torch.optim.AdamW(_head10(network, lr), fused=True), steps)


def adamw_layer_decay(network: nn.Module, lr: float, steps: int) -> Recipe:
    """AdamW with a cosine, 0.75 times the learning rate of the next block of layers, and weight decay 0.05 (timm's defaults)."""
    groups = param_groups_layer_decay(network)
    return cosine(torch.optim.AdamW([{**g, "lr": lr * g["lr_scale"]} for g in groups], fused=True), steps)  # AdamW itself ignores lr_scale


def schedule_free(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Schedule-free AdamW (Defazio et al. 2024) from `schedulefree` at its defaults, with a warm-up over 10% of the run; see `unroll`."""
    optimizer = SCHEDULE_FREE.load().AdamWScheduleFree(network.parameters(), lr=lr, warmup_steps=steps // 10)
    optimizer.train()
    return Recipe(optimizer, None)


def muon_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """Muon for kernels, AdamW for the head, norms and biases (Jordan et al. 2024), both of torch, at one learning rate, with cosine."""
    head = list(head_of(network).parameters())
    kernels = [p for p in network.parameters() if p.dim() > 1 and all(p is not h for h in head)]
    others = [p for p in network.parameters() if all(p is not k for k in kernels)]
    return cosine(Muon(kernels, others, lr), steps)


def soap_cosine(network: nn.Module, lr: float, steps: int) -> Recipe:
    """SOAP (Vyas et al. 2024) from `pytorch_optimizer` at its defaults (a new basis every 10 steps, weight decay 0.01), with a cosine."""
    return cosine(SOAP.load().SOAP(network.parameters(), lr=lr), steps)
