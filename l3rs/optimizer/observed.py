"""The loss of a step, handed over before it: for trainers that call `step()` themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from l3rs.optimizer.arguments import one_number


class Observed:
    """A loss that was observed.

    Attributes:
        value: the loss, ().
        passed: whether a backward pass through it has run since; None if nothing tells.
        zeroed: whether `zero_grad` came since.
        dropped: whether it came after that pass, so that the gradients of this loss are gone.
    """

    def __init__(self, loss: Any) -> None:
        checked = one_number(loss).clone()  # trainers divide losses in place
        self.value = checked if checked.is_floating_point() else checked.float()
        self.passed: bool | None = None
        self.zeroed = self.dropped = False
        if isinstance(loss, Tensor) and loss.requires_grad:
            self.passed = False
            loss.register_hook(self._pass)

    def _pass(self, _: Tensor) -> None:
        self.passed = True


class Losses:
    """What was observed since the last step.

    It is an object that changes, and an attribute of the optimizer rather than of its class: wrappers that imitate the class, such as that
    of Lightning Fabric, have the methods of the optimizer as their own, and find this by `__getattr__`.
    """

    def __init__(self) -> None:
        self.seen: list[Observed] = []

    def add(self, loss: Any) -> None:
        """Takes in one more; those whose gradients were dropped go."""
        self.seen = [*(earlier for earlier in self.seen if not earlier.dropped), Observed(loss)]

    def drop(self) -> None:
        """Hears of `zero_grad`, which drops the gradients of all but those whose backward pass is to come."""
        for observed in self.seen:
            observed.zeroed, observed.dropped = True, observed.passed is not False

    def mean(self) -> Tensor | None:
        """Their mean, (); None if there are none. One that is not in the gradients, as far as is known, counts where there is no other.

        Those whose backward pass has run are in them. Of others, which may have been observed after it, those since the last `zero_grad`.
        """
        kept = [observed for observed in self.seen if not observed.dropped] or self.seen
        those = [o for o in kept if o.passed is not False] or [o for o in kept if not o.zeroed] or kept
        losses = [observed.value for observed in those]
        if len(losses) < 2:
            return losses[0] if losses else None
        return torch.stack([loss.to(losses[0]) for loss in losses]).mean()


class WatchesLoss(torch.optim.Optimizer):
    """An optimizer whose steps may be told their loss beforehand."""

    _losses: Losses

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._losses = Losses()
        super().__init__(params, defaults)

    @_disable_dynamo
    def observe(self, loss: Tensor | float) -> None:
        """Hands over the loss of a batch before the step that it belongs to, where a trainer calls `step()` itself.

        Call it once for each batch, with the unscaled mean over the batch. Where gradients are accumulated, the step sees the mean of what
        was observed since the last step. A loss that `step` itself is given, also by a closure, comes first.

        What belongs to no step is passed over: the losses of evaluation, which is where gradients are switched off (`torch.no_grad`), and,
        once another loss is observed, one whose gradients `zero_grad` has dropped, as after a step that a gradient scaler skipped.

        Raises:
            ValueError: the loss is not one number.
        """
        if torch.is_grad_enabled():
            self._losses.add(loss)

    @_disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients, as `torch.optim.Optimizer.zero_grad` does. Losses whose gradients that drops count no more."""
        self._losses.drop()
        super().zero_grad(set_to_none)

    def _loss_of_step(self, given: Any, name: str, needed: bool) -> Tensor | None:
        """The loss that `step` was given, else the mean of what was observed, (). Raises ValueError if `name` needs one and has none."""
        if given is not None:
            return one_number(given)
        observed = self._losses.mean()
        if observed is None and needed:
            raise ValueError(
                f"{name} watches the loss: call step(loss=loss) or step(closure), or observe(loss) before a step() that a trainer calls"
            )
        return observed

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_losses": self._losses}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_losses": Losses(), **state})  # a state that is loaded is of a moment between two steps


__all__ = ["Losses", "WatchesLoss"]
