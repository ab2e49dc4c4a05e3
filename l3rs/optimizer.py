"""L3RS as a `torch.optim.Optimizer`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from l3rs.config import L3RSConfig
from l3rs.controller import Meta, decide, meta_shapes, unflatten
from l3rs.directions import direction
from l3rs.features import EMA_SIGNALS, log_rms, time_features, update_emas
from l3rs.schedule import LearnedSchedule


def layer_units(config: L3RSConfig, numel: Tensor, weight_norms: Tensor) -> Tensor:
    """The length, in l2 norm, of a layer's step at lambda = 1: (L,)."""
    if config.unit == "l2":
        return torch.ones_like(weight_norms)
    if config.unit == "relative":
        return config.lr0 * weight_norms.clamp_min(config.relative_floor)
    return config.lr0 * numel.sqrt()


class L3RS(torch.optim.Optimizer):
    r"""LearnedSchedule Layer-wise Learning Rate Scheduler (arXiv 2408.09310).

    At step k each layer l, a parameter tensor, moves by

    .. math:: -\lambda_l \sum_p \mu_{l,p} \, d_{l,p} / \lVert d_{l,p} \rVert_2

    where d are the directions of the base optimizers (Eq. 2), and a controller sets lambda and mu from the layer's features.
    A direction of norm 0 adds nothing.

    Args:
        params: `model.named_parameters()`, or parameters, or groups of either. Without names only a schedule without layer
            embeddings fits.
        total_steps: K, the number of steps of the whole run, as for any schedule.
        learned: the learned schedule: `"auto"`, the name of a shipped one, a path, or a `LearnedSchedule`. `"auto"` takes the shipped
            specialist whose layer names match, else the shipped generalist; `repr` says which.
        lr: a multiplier of every step, 1 by default; ordinary schedulers may drive `group["lr"]`.

    Raises:
        ValueError: `total_steps` is not a positive whole number; `learned` is unknown, or does not fit the parameters' names.

    Example:
        >>> optimizer = L3RS(model.named_parameters(), total_steps=100)
        >>> for inputs, labels in batches:
        ...     loss = criterion(model(inputs), labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
    """

    def __init__(self, params: ParamsT, total_steps: int, learned: str | LearnedSchedule = "auto", lr: float = 1.0) -> None:
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(f"total_steps is {total_steps!r}; it is a whole number of at least 1: the steps of the whole run")
        if not lr >= 0:
            raise ValueError(f"lr is {lr!r}; it multiplies the learned steps and is at least 0 (default 1)")
        super().__init__(params, {"lr": lr, "total_steps": total_steps, "step": 0})
        names = [name for group in self.param_groups for name in group.get("param_names", [])]
        from l3rs.checkpoint import resolve  # a floor up: only here, to turn a name into a schedule

        self.learned = learned if isinstance(learned, LearnedSchedule) else resolve(learned, names)
        self.config = self.learned.config
        self._directions = {name: direction(name) for name in self.config.directions}
        self._meta = unflatten(self.learned.theta, meta_shapes(self.config, self.learned.layers))
        self._raw = {name: {h: float(self._meta[f"{name}/{h}"]) for h in d.hyperparameters} for name, d in self._directions.items()}
        slots = self.learned.slots(names)
        every = [p for group in self.param_groups for p in group["params"]]
        self._slot = dict(zip(every, slots, strict=True)) if slots else {}

    def __repr__(self) -> str:
        return f"L3RS(learned={self.learned.name!r}, {len(self.learned.theta)} meta-parameters)\n{super().__repr__()}"

    @overload
    def step(self, closure: None = None, *, loss: Tensor | float | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any], *, loss: Tensor | float | None = None) -> Any: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """Takes one step.

        Args:
            closure: evaluates the model and returns the loss; called once, as in every optimizer.
            loss: the loss of this step's batch, where there is no closure.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: neither a closure nor a loss was given.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        observed = loss if loss is not None else result
        if observed is None:
            raise ValueError("L3RS watches the loss: call step(loss=loss), or step(closure) with a closure that returns it")
        for group in self.param_groups:
            if group["step"] == group["total_steps"]:
                warnings.warn(f"L3RS was given total_steps={group['total_steps']} and goes on past it", stacklevel=2)
            self._step_group(group, torch.as_tensor(observed).detach().float())
            group["step"] += 1
        return result

    def _step_group(self, group: dict[str, Any], loss: Tensor) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        device = params[0].device
        loss, meta = loss.to(device), self._meta_on(device)
        grads = [p.grad for p in params]
        states = [self._state_of(p) for p in params]
        step = group["step"] + 1
        directions = [d.update(grads, params, states, step, self._raw[name]) for name, d in self._directions.items()]
        norms = [_norms(tensors) for tensors in directions]
        numel = torch.tensor([float(p.numel()) for p in params], device=device)
        weight_norms = _norms(params)
        grad_norms = norms[self.config.directions.index("sgd")] if "sgd" in self.config.directions else _norms(grads)

        features = self._features(params, states, group, meta, weight_norms, grad_norms, norms, numel, loss)
        lam, mu = decide(meta, features)
        lengths = lam * layer_units(self.config, numel, weight_norms) * group["lr"]
        for p, (tensors, norm) in enumerate(zip(directions, norms, strict=True)):
            scales = torch.where(norm > 0, lengths * mu[:, p] / norm, torch.zeros_like(norm))
            torch._foreach_addcmul_(params, tensors, list(scales.unbind()), value=-1)

    def _features(
        self,
        params: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
        meta: Meta,
        weight_norms: Tensor,
        grad_norms: Tensor,
        direction_norms: list[Tensor],
        numel: Tensor,
        loss: Tensor,
    ) -> Tensor:
        """The controller's inputs for all layers, (L, F), in the order of `feature_names`; advances the averages."""
        c = self.config
        signals = [log_rms(weight_norms, numel, c), log_rms(grad_norms, numel, c), (loss / c.loss_scale).expand(len(params))]
        emas = torch.stack([s["ema"] for s in states])
        emas, corrected = update_emas(emas, torch.stack(signals, dim=1), group["step"] + 1, c)
        for state, ema in zip(states, emas.unbind(), strict=True):
            state["ema"] = ema
        time = time_features(group["step"], group["total_steps"], c).to(loss.device)
        blocks = [corrected.flatten(1), time.expand(len(params), -1)]
        blocks += [log_rms(norm, numel, c).unsqueeze(1) for norm in direction_norms]
        if c.embedding:
            blocks.append(meta["embedding"][[self._slot[p] for p in params]])
        return torch.cat(blocks, dim=1)

    def _meta_on(self, device: torch.device) -> Meta:
        """The meta-parameters on the parameters' device, moved there once."""
        if self._meta["w1"].device != device:
            self._meta = {name: t.to(device) for name, t in self._meta.items()}
        return self._meta

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            for d in self._directions.values():
                state.update(d.init(p))
            state["ema"] = torch.zeros(len(EMA_SIGNALS), len(self.config.ema_factors), device=p.device)
        return state


def _norms(tensors: Iterable[Tensor]) -> Tensor:
    """The l2 norm of each tensor: float32 (L,)."""
    return torch.stack(torch._foreach_norm(list(tensors))).float()
