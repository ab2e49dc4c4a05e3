"""L3RS by name in timm's factory of optimizers."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT

from l3rs.extras import require
from l3rs.optimizer.l3rs import L3RS


class TimmL3RS(L3RS):
    """L3RS with the arguments that timm hands to every optimizer."""

    def __init__(
        self,
        params: ParamsT,
        total_steps: int | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Any,
    ) -> None:
        if total_steps is None:
            raise ValueError(
                "l3rs needs total_steps, the steps of the whole run: create_optimizer_v2(..., total_steps=1000), opt_args in a config, or "
                "--opt-kwargs total_steps=1000 at timm's train.py"
            )
        super().__init__(params, total_steps, fused=False if foreach and fused is None else fused, **options)


def register_with_timm() -> None:
    """Lets `timm.optim.create_optimizer_v2` make L3RS under the name "l3rs".

    Hand it the named parameters, or `param_group_fn=nn.Module.named_parameters` beside the model: of a model alone timm makes groups
    without names, in which a specialist does not know its layers. `lr` is the multiplier, so leave it out, or at 1. `weight_decay` is that
    of `L3RS`.

    Raises:
        ModuleNotFoundError: timm is not installed.

    Examples:
        >>> l3rs.register_with_timm()
        >>> optimizer = create_optimizer_v2(model.named_parameters(), "l3rs", total_steps=1000)
    """
    require("register_with_timm()", "timm")
    from timm.optim._optim_factory import OptimInfo, default_registry  # timm exports no function to register with

    if "l3rs" not in default_registry.list_optimizers():
        about = "Learned Layer-wise Learning Rate Scheduler (arXiv 2408.09310): needs total_steps; the paper's form also observe(loss)"
        default_registry.register(OptimInfo("l3rs", TimmL3RS, about, has_eps=False))
