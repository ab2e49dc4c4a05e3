"""torch's Muon for the kernels of a convolutional network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """torch's Muon for kernels, flattened to matrices of output channels by the rest, and torch's AdamW for the other parameters.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that both share a learning rate and a weight
    decay. `state_dict` does not hold its state.
    """

    def __init__(self, kernels: Iterable[Tensor], others: Iterable[Tensor], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__([{"params": list(kernels)}, {"params": list(others)}], {"lr": lr})
        kernels, others = (group["params"] for group in self.param_groups)
        self.matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in kernels]  # torch's Muon takes nothing else
        self.muon = torch.optim.Muon(self.matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Steps both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = [(p, m) for p, m in zip(self.param_groups[0]["params"], self.matrices, strict=True) if p.grad is not None]
        for p, matrix in pairs:
            matrix.copy_(p.flatten(1))
            matrix.grad = p.grad.flatten(1)
        for group, part in zip(self.param_groups, (self.muon, self.adamw), strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        for p, matrix in pairs:
            p.copy_(matrix.view(p.shape))
        return loss
