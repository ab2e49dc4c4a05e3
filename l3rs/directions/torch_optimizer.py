"""A direction from any `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l3rs.directions.base import Direction, State
from l3rs.text import first_line


class TorchOptimizerDirection(Direction):
    """d = (theta - theta') / lr, where one step of the optimizer takes theta to theta'.

    The optimizer steps copies; parameters and gradients stay as they are. L3RS keeps its state, tensor by tensor, from the first step on.
    Each step copies every parameter and builds an optimizer for it: use this to try out a direction, not for speed. Optimizers that need
    a closure (LBFGS), a call of `train` before (schedule-free ones) or sparse gradients do not fit, nor do those whose state has more than
    tensors and numbers.

    Args:
        optimizer: the class, such as `torch.optim.NAdam` or `timm.optim.AdaBelief`.
        as_matrices: shows it kernels as matrices, output channels by everything else, and vectors as matrices of one row. Muon needs
            this: it steps nothing else.
        arguments: of the optimizer. `lr` is 1 by default, which loses the fewest bits in the difference above.

    Raises:
        ValueError: the optimizer cannot step a matrix so, or `lr` is not above 0.
    """

    lazy = True

    def __init__(self, optimizer: type[torch.optim.Optimizer], *, as_matrices: bool = False, **arguments: Any) -> None:
        self.optimizer, self.as_matrices, self.arguments = optimizer, as_matrices, {"lr": 1.0, **arguments}
        if not self.arguments["lr"] > 0:
            raise ValueError(f"lr of {optimizer.__name__} must be above 0, as a direction is divided by it (got {self.arguments['lr']})")
        try:
            with torch.no_grad():
                self._direction(torch.ones(2, 2), torch.ones(2, 2), {})
        except Exception as error:  # whatever a stranger's optimizer raises
            raise ValueError(f"{optimizer.__name__} cannot be a direction: {first_line(error)}") from error

    def __repr__(self) -> str:
        return f"TorchOptimizerDirection({self.optimizer.__name__}, {self.arguments})"

    def update(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], states: Sequence[State], steps: Tensor, constants: tuple[float, ...]
    ) -> list[Tensor]:
        return [self._direction(g, p, s) for g, p, s in zip(grads, params, states, strict=True)]

    def _direction(self, grad: Tensor, param: Tensor, state: State) -> Tensor:
        shape = (param.shape[0] if param.dim() > 1 else 1, -1) if self.as_matrices else param.shape
        copy = nn.Parameter(param.detach().clone().reshape(shape))
        copy.grad = grad.clone().reshape(shape)
        optimizer = self.optimizer([copy], **self.arguments)
        group = optimizer.param_groups[0]
        # Numbers are kept as 0-d float64 tensors under keys that say so, since a state dict for sharding holds tensors alone.
        for key, value in state.items():
            kind, name = key.split(":", 1)
            place = group if kind.startswith("group") else optimizer.state[copy]
            place[name] = _number(value) if kind.endswith("number") else value
        before = dict(group)
        optimizer.step()
        for kind, place in (("state", optimizer.state[copy]), ("group", group)):
            for name, value in place.items():
                if kind == "group" and name in before and value is before[name]:
                    continue
                if isinstance(value, Tensor):
                    state[f"{kind}:{name}"] = value.detach()
                elif isinstance(value, int | float) and not isinstance(value, bool):
                    state[f"{kind}-number:{name}"] = torch.tensor(float(value), dtype=torch.float64)
                elif value is not None:
                    raise TypeError(
                        f"{self.optimizer.__name__} keeps a {type(value).__name__} called {name!r}; tensors and numbers can be kept"
                    )
        return torch.sub(param, copy.detach().view(param.shape)).div_(self.arguments["lr"])


def _number(value: Tensor) -> int | float:
    number = value.item()
    return int(number) if number == int(number) else number
