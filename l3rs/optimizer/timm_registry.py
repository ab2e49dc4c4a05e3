"""L3RS by name in timm's factory of optimizers."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT

from l3rs.extras import require
from l3rs.optimizer.l3rs import L3RS


class _ForTimm(L3RS):
    """L3RS with the arguments that timm hands to every optimizer."""

    def __init__(self, params: ParamsT, total_steps: int, weight_decay: float = 0.0, foreach: bool | None = None, **options: Any) -> None:
        super().__init__(params, total_steps, fused=False if foreach else None, **options)
        decays = [weight_decay, *(group.get("weight_decay", 0.0) for group in self.param_groups)]  # timm puts it into groups, given a model
        if any(decays):
            raise ValueError(f"weight_decay must be 0, since a learned schedule has its own (got {max(decays)})")


def register_with_timm() -> None:
    """Lets `timm.optim.create_optimizer_v2` make L3RS under the name "l3rs".

    timm makes parameter groups without names of a model, which only a schedule without layer names fits; hand it the named parameters
    for a specialist. `lr` is the multiplier, so leave it out, or at 1.

    Examples:
        >>> l3rs.register_with_timm()
        >>> optimizer = create_optimizer_v2(model.named_parameters(), "l3rs", total_steps=1000)
    """
    require("register_with_timm()", "timm")
    from timm.optim._optim_factory import OptimInfo, default_registry  # timm exports no function to register with

    if "l3rs" not in default_registry.list_optimizers():
        about = "Learned Layer-wise Learning Rate Scheduler (arXiv 2408.09310), meta-trained; needs total_steps and step(loss=loss)"
        default_registry.register(OptimInfo("l3rs", _ForTimm, about, has_eps=False))
