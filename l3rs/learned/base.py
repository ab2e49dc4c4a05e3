"""The contract of torch.optim, kept once for all learned optimizers but L3RS."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from l3rs.learned.accumulators import State
from l3rs.learned.elements import refused
from l3rs.learned.mlp import Member, Rule
from l3rs.learned.portions import Portions
from l3rs.optimizer.arguments import Multipliers, call_closure, multiplier, plain, uphill, whole_or_zero
from l3rs.optimizer.distributed import average_over_ranks
from l3rs.optimizer.observed import Losses
from l3rs.optimizer.saving import Resumable
from l3rs.optimizer.states import LONGEST_MARK, check_names, differences, fit, name_of, stand_in
from l3rs.optimizer.surroundings import undisturbed
from l3rs.schedules.seal import fingerprint
from l3rs.text import printable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RULE = "l3rs_rule"  # a key of the groups of a state dict: the optimizer's class
THETA = "l3rs_theta"  # another: a fingerprint of its meta-parameters, which older states lack


class LearnedRule(Resumable):
    """What VeLO, Celo, Celo2 and small_fc_lopt share: groups, gradients that are not finite, saving and resuming.

    If any gradient, or the loss where it is watched, is not finite, the step changes nothing, and `skipped_steps` counts it; that this can
    be known, each step waits for the device. Parameters that are frozen or have no gradient stay as they are.
    """

    rule: Rule
    hidden: int  # width of the MLP
    watches_loss = False
    process_group: ProcessGroup | None = None  # it belongs to a process, so copies have none
    multiplies = True  # lr is a multiplier, 1 by default, or a learning rate
    _made = True  # but within the constructor
    _kept: tuple[str, ...] = ("theta", "fused")  # attributes that copies of the object have too
    _newer: tuple[str, ...] = ()  # options that older states lack; they are then as here

    def __init__(self, params: ParamsT, theta: dict[str, Tensor], defaults: dict[str, Any], fused: bool | None) -> None:
        self.theta, self.fused, self._made = theta, fused, False
        self._prepare()
        with undisturbed():
            super().__init__(params, {**defaults, "step": 0, "skipped": 0})
        self._made = True
        self._multipliers.read(self.param_groups, stacklevel=4, step=False)

    def _prepare(self) -> None:
        self._portions = Portions(self.rule, self.hidden, self.fused)
        self._multipliers = Multipliers(type(self).__name__, self.multiplies)
        self._fresh: dict[Tensor, tuple[Any, State]] = {}
        self._moved: dict[object, dict[str, Tensor]] = {}

    # -- what each of them says -------------------------------------------------------------------------------------------------------

    def _initial_state(self, p: Tensor, group: dict[str, Any], like: Tensor) -> State:
        """The state of a parameter before its first step: on the device of `like`, and of its dtype and shape, those of `_values`."""
        raise NotImplementedError

    def _update(self, members: Sequence[Member], loss: Tensor | None) -> Iterator[Tensor]:
        """What to subtract from each, of the shape of its `p`, one after the other; advances the states. There is at least one member."""
        raise NotImplementedError

    def _validate(self, group: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for options that make no sense."""
        lr = group["lr"]
        number = multiplier(lr)
        if not isinstance(number, Tensor) and math.isnan(number):
            raise ValueError(f"lr must be a finite number of at least 0 (got {lr!r})")
        for p in group["params"]:
            if hasattr(p, "to_local"):
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is sharded (a DTensor); {type(self).__name__} takes whole ones: train on "
                    "several processes with DistributedDataParallel, or take L3RS, which steps sharded ones"
                )
            if not p.is_floating_point():
                raise TypeError(f"a parameter of shape {tuple(p.shape)} is {p.dtype}; {type(self).__name__} steps real floating parameters")
        for name in ("step", "skipped"):
            if not whole_or_zero(group[name]) == group[name] >= 0:
                raise ValueError(f"{name} must be a whole number of at least 0, of steps (got {group[name]!r})")
        group["lr"], group["maximize"] = number, uphill(group["maximize"])

    def _set_rate(self, group: dict[str, Any]) -> None:
        """Sets the learning rate of a group's next step, where the optimizer has a schedule of its own."""

    # -- groups -----------------------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, also during the run, whose clock and length it shares, which may be those of a run that was loaded.

        Raises:
            ValueError, TypeError: as the constructor; the optimizer stays as it was.
        """
        if self.param_groups:
            first, shared = self.param_groups[0], ("step", "total_steps") if self._made else ("step",)
            param_group = {**{key: first[key] for key in shared if key in first}, **param_group}
        super().add_param_group(param_group)
        try:
            self._validate(self.param_groups[-1])
            self._set_rate(self.param_groups[-1])
            self._check_compiled(self.param_groups[-1:])
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise
        with undisturbed():
            for p in self.param_groups[-1]["params"]:
                if p.requires_grad:
                    self._state_of(p, self.param_groups[-1])

    def _check_compiled(self, groups: Sequence[dict[str, Any]]) -> None:
        """Raises ValueError where `fused` is True, and no compiled code steps a parameter that the MLP moves."""
        for group in groups if self.fused else ():
            for p in group["params"]:
                by_mlp = p.requires_grad and p.numel() and "momentum" in self._expected(p, group)
                if by_mlp and refused(self._values(p), {}, self.rule.by_matrix):
                    which = f"shape {tuple(p.shape)}, {p.dtype} on {p.device}"
                    raise ValueError(
                        f"fused=True, but no compiled code steps a parameter of {which}; fused=None takes torch operations for it"
                    )

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> State:
        state: State = self.state[p]
        if not state:
            state.update(self._initial_state(p, group, self._values(p)))
        fit(p, state, self._expected(p, group))
        return state

    def _expected(self, p: Tensor, group: dict[str, Any]) -> State:
        """The state that a parameter starts with, for comparison: on the meta device, and made once for its shape and dtype."""
        kind = (p.shape, p.dtype)
        if p not in self._fresh or self._fresh[p][0] != kind:
            self._fresh[p] = kind, self._initial_state(p, group, self._values(stand_in(p)))
        return self._fresh[p][1]

    def _theta_for(self, like: Tensor) -> dict[str, Tensor]:
        """The meta-parameters on a tensor's device and in its dtype, moved there once."""
        kind = like.device, like.dtype
        if kind not in self._moved:
            self._moved[kind] = {name: t.to(like) for name, t in self.theta.items()}
        return self._moved[kind]

    @staticmethod
    def _values(p: Tensor) -> Tensor:
        """Detached, of the dtype in which it is computed with, float32 at least, as it lies in memory, and a scalar as (1,)."""
        t = p.detach().to(torch.promote_types(p.dtype, torch.float32))
        if t.is_neg() or t._is_zerotensor():
            t = t.clone()  # compiled code reads what lies there
        return t.reshape(1) if t.dim() == 0 else t

    # -- the step ---------------------------------------------------------------------------------------------------------------------

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """Takes one step.

        Args:
            closure: evaluates the model and returns the loss; called once.
            loss: the loss of this step's batch, where there is no closure, for an optimizer that watches it. None takes what was given to
                `observe`.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: the optimizer watches the loss and was given none, or it is not one number; or a gradient is sparse.
        """
        self._multipliers.read(self.param_groups, stacklevel=7)
        result = call_closure(closure, type(self).__name__)
        given = loss if loss is not None else result
        observed = self._loss_of_step(given, type(self).__name__, needed=True) if self.watches_loss else None
        with undisturbed():
            self._check_compiled(self.param_groups)
            members = list(self._members())
            if members and observed is not None:
                observed = average_over_ranks(observed, members[0].g.device, self.process_group)
            if members and self._finite(members, observed):
                for m, change in zip(members, self._update(members, observed), strict=True):
                    m.param.sub_(change.view(m.param.shape))
        for group in self.param_groups:
            group["step"] += 1
            self._set_rate(group)
        self._losses = Losses()
        return result

    def _members(self) -> Iterator[Member]:
        """What is stepped now: all that requires a gradient and has one. Raises ValueError for a gradient that cannot be taken."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.requires_grad and p.numel():
                    if p.grad.layout != torch.strided:
                        raise ValueError(f"a gradient of shape {tuple(p.shape)} is {p.grad.layout}; {type(self).__name__} takes dense ones")
                    if p.grad.shape != p.shape:
                        raise ValueError(f"the gradient of a parameter of shape {tuple(p.shape)} has shape {tuple(p.grad.shape)}")
                    values = self._values(p)
                    g = self._values(-p.grad if group["maximize"] else p.grad).to(values)
                    yield Member(p, g, values, self._state_of(p, group), group)

    @property
    def skipped_steps(self) -> int:
        """How many steps moved nothing, the loss or a gradient not being finite."""
        return max(int(group["skipped"]) for group in self.param_groups)

    def _finite(self, members: Sequence[Member], loss: Tensor | None) -> bool:
        grads = [m.g for m in members]  # what is found of each is NaN if there is one
        on_cuda = all(g.is_cuda for g in grads)  # where one launch is for all
        ends = torch._foreach_norm(grads, math.inf) if on_cuda else [end for g in grads for end in torch.aminmax(g)]
        ok = all(torch.stack([end.to(ends[0]) for end in ends]).isfinite().tolist()) and (loss is None or bool(loss.float().isfinite()))
        if not ok:
            for group in self.param_groups:
                group["skipped"] += 1
            said = f"{type(self).__name__} moved nothing in a step whose loss or gradient was not finite"
            warnings.warn(f"{said} ({self.skipped_steps} so far)", stacklevel=7)  # past the wrappers of step
        return ok

    # -- saving and loading -----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As in every optimizer: tensors by parameter in `state`, plain values in `param_groups`. Without the meta-parameters."""
        plain(self.param_groups)
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group[RULE], group[THETA] = type(self).__name__, self._mark
        return saved

    @cached_property
    def _mark(self) -> str:
        return fingerprint(*self.theta.values())[:12]

    def _check(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        check_names(state_dict["param_groups"], self.param_groups)
        for place, (i, p, group) in enumerate(self._pairs(state_dict)):
            saved = state_dict["state"].get(i, {})
            differ = differences(saved, self._expected(p, group)) if saved else []
            if differ:
                name = name_of(place, self.param_groups)
                raise ValueError(f"this state is of another kind of optimizer, or network; what differs: {', '.join(differ[:3])} of {name}")
        for group in state_dict["param_groups"]:
            here = self.param_groups[0].keys() - self._newer  # torch adds defaults of its own
            missing = [key for key in self.defaults if key not in group and key in here]
            name = type(self).__name__
            if missing or group.get(RULE, name) != name:
                kind = group.get(RULE, f"has no {', '.join(missing)}")
                raise ValueError(f"this state is of another kind of optimizer than {name}: {printable(str(kind))}")
            mark = group.get(THETA, self._mark)
            if mark != self._mark:
                theirs = printable(str(mark)[:LONGEST_MARK])
                raise ValueError(
                    f"this state is of a run of {name} under other meta-parameters, whose fingerprint is {theirs}, "
                    f"and those here have {self._mark}: pass those of the run as `theta`"
                )
        newer = {key: self.param_groups[0][key] for key in self._newer}
        stripped = [{key: value for key, value in group.items() if key not in (RULE, THETA)} for group in state_dict["param_groups"]]
        self._loading = {**state_dict, "param_groups": [{**newer, **group} for group in stripped]}
        return self._loading

    def _finish_loading(self) -> None:
        loading = self._loading
        del self._loading
        for group in self.param_groups:
            self._validate(group)
            self._set_rate(group)
        for i, p, group in self._pairs(loading):
            saved = loading["state"].get(i, {})
            self._copy(p, saved, self._expected(p, group))
            for key in saved:
                self.state[p][key] = self.state[p][key].contiguous()

    def _pairs(self, state_dict: dict[str, Any]) -> Iterator[tuple[int, Tensor, dict[str, Any]]]:
        """The number of each parameter in a state dict, the parameter here, and its group here; torch compares how many there are."""
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [(p, group) for group in self.param_groups for p in group["params"]]
        return ((i, p, group) for i, (p, group) in zip(ids, own, strict=False))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()
