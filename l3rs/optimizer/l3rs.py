"""L3RS as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from l3rs.controller.decide import meta_shapes, unflatten
from l3rs.directions import DIRECTIONS, direction
from l3rs.directions.torch_optimizer import TorchOptimizerDirection
from l3rs.extras import require
from l3rs.optimizer.distributed import average_over_ranks, local
from l3rs.optimizer.layers import Layers, Schedule, finite, initial_state
from l3rs.schedules.find import resolve
from l3rs.schedules.schedule import LearnedSchedule

if TYPE_CHECKING:
    import pandas as pd
    from torch.distributed import ProcessGroup


class Active(NamedTuple):
    """The layers of one device, and their gradients, lr and sign of the loss in this step."""

    layers: Layers
    grads: list[Tensor]
    lr: Tensor | float
    sign: Tensor | float


class L3RS(torch.optim.Optimizer):
    """Learned Layer-wise Learning Rate Scheduler (arXiv 2408.09310).

    At step k each layer l, a parameter tensor, moves by

        - lambda(l) * sum over p of mu_p(l) * d_p(l) / ||d_p(l)||

    where d are the directions of the base optimizers (Eq. 2), and a controller sets lambda and mu from the layer's features.
    A direction of norm 0 adds nothing. docs/how-l3rs-decides.md walks through one step.

    The loss has to be given: `step(loss=loss)`, or `step(closure)`. Where `torch.distributed` runs, it is averaged over the ranks, as
    gradients are. If it or any gradient is not finite, no layer moves in that step, and the moments take in gradients of zero;
    `skipped_steps` counts these steps.

    Args:
        params: `model.named_parameters()`, or parameters, or groups of either. Without names only a schedule that knows no layers
            by name fits. A group may have its own `lr`, `maximize` and `total_steps`; one that is added during the run shares the clock of
            the first group unless it says where its own stands, with `step`.
        total_steps: K, the number of steps of the whole run, as for any schedule. Steps past it are decided as at its end.
        learned: the learned schedule: `"auto"`, the name of a shipped one, a path, or a `LearnedSchedule`. `"auto"` takes the shipped
            specialist whose layer names match, else the shipped generalist; `repr` says which.
        lr: a multiplier of every step, 1 by default; ordinary schedulers may drive `group["lr"]`.
        maximize: whether the loss that is given is to be maximized.
        match: how layers find what was learned for them: by `"name"`, or by `"position"` among all parameters.
        fused: whether the two passes over the parameters are one compiled kernel each; None is where that can be on CPU: float32
            parameters, if l3rs was installed where there was a C compiler. On CUDA only True asks for it (Triton, not yet run on a GPU).
        process_group: the ranks that train together; None is all. For runs of their own on each rank, a group of one.

    Raises:
        ValueError: an argument is not what it should be, `learned` is unknown, or does not fit the parameters' names.
        TypeError: a parameter is complex or not floating.

    Examples:
        >>> optimizer = L3RS(model.named_parameters(), total_steps=100)
        >>> for inputs, labels in batches:
        ...     loss = criterion(model(inputs), labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
    """

    def __init__(
        self,
        params: ParamsT,
        total_steps: int,
        learned: str | LearnedSchedule = "auto",
        lr: float | Tensor = 1.0,
        *,
        maximize: bool = False,
        match: str = "name",
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if match not in ("name", "position"):
            raise ValueError(f"match must be 'name' or 'position' (got {match!r})")
        self.learned: LearnedSchedule | None = None  # until super().__init__ has sorted the parameters into groups
        self.match, self.fused, self.process_group = match, fused, process_group
        super().__init__(params, {"lr": lr, "maximize": maximize, "total_steps": total_steps, "step": 0, "skipped": 0})
        self.learned = learned if isinstance(learned, LearnedSchedule) else resolve(learned, self._names() or [], match)
        self._prepare()

    def _prepare(self) -> None:
        """Everything that follows from the groups and the learned schedule."""
        assert self.learned is not None
        config = self.learned.config
        self._directions = {name: direction(name) for name in config.directions}
        meta = unflatten(self.learned.theta.detach(), meta_shapes(config, self.learned.layers))
        raw = {name: {h: float(meta[f"{name}/{h}"]) for h in d.hyperparameters} for name, d in self._directions.items()}
        constants = {name: d.constants(raw[name]) for name, d in self._directions.items()}
        self._schedule = Schedule(config, meta, self._directions, constants)
        self._batches: list[Layers] = []
        self._key: Any = None
        self._members: list[tuple[int, Tensor]] = []
        self._warned_of_end = False
        self._assign()

    def _assign(self) -> None:
        """Gives every parameter its slot in what is learned by layer, and those that are trained their state."""
        assert self.learned is not None
        every = [p for group in self.param_groups for p in group["params"]]
        slots = self.learned.slots(len(every), self._names(), self.match)
        self._slot = dict(zip(every, slots, strict=True)) if slots else {}
        self._sharded = any(local(p) is not p for p in every)
        wrapped = [name for name, d in self._directions.items() if isinstance(d, TorchOptimizerDirection)]
        if self._sharded and wrapped:
            raise ValueError(f"direction {wrapped[0]!r} steps whole parameters, and these are sharded; use {', '.join(DIRECTIONS)}")
        for p in every:
            if p.requires_grad:
                self._state_of(p)

    def _names(self) -> list[str] | None:
        """The names of all parameters; None if they have none."""
        if any("param_names" not in group for group in self.param_groups):
            return None
        return [name for group in self.param_groups for name in group["param_names"]]

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state.update(initial_state(p, self._schedule.config, self._directions))
        return state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, also during the run, in which case it gets a slot, a state and the run's clock.

        Raises:
            ValueError, TypeError: as the constructor; the optimizer is then as it was.
        """
        if self.param_groups:
            param_group = {"step": self.param_groups[0]["step"], **param_group}
        super().add_param_group(param_group)
        try:
            self._validate(self.param_groups[-1])
            if self.learned is not None:
                self._pull()
                self._batches, self._key = [], None
                self._assign()
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise

    @staticmethod
    def _validate(group: dict[str, Any]) -> None:
        steps, lr = group["total_steps"], group["lr"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"total_steps must be a whole number of at least 1, the steps of the whole run (got {steps!r})")
        if not isinstance(lr, Tensor) and not (isinstance(lr, int | float) and 0 <= lr < math.inf):
            raise ValueError(f"lr must be a finite number of at least 0 (got {lr!r}): it multiplies the learned steps, and is 1 by default")
        for p in group["params"]:
            if not p.is_floating_point():
                raise TypeError(f"a parameter of shape {tuple(p.shape)} is {p.dtype}; L3RS steps real floating parameters")

    def __repr__(self) -> str:
        assert self.learned is not None
        return f"L3RS(learned={self.learned.name!r}, {len(self.learned.theta)} meta-parameters)\n{super().__repr__()}"

    # -- the step ----------------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None, *, loss: Tensor | float | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any], *, loss: Tensor | float | None = None) -> Any: ...

    @_disable_dynamo  # as torch's own optimizers are where they do not compile: torch.compile leaves the step as it is
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """Takes one step.

        Args:
            closure: evaluates the model and returns the loss; called once, as in every optimizer.
            loss: the loss of this step's batch, where there is no closure; unscaled, and the mean over accumulated batches.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: neither a closure nor a loss was given, or the loss is not one number.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        observed = loss if loss is not None else result
        if observed is None:
            raise ValueError("L3RS watches the loss: call step(loss=loss), or step(closure) with a closure that returns it")
        observed = torch.as_tensor(observed).detach()
        if observed.numel() != 1:
            raise ValueError(f"the loss must be one number, its mean over the batch (got shape {tuple(observed.shape)})")
        self._warn_past_the_end()

        active = self._active()
        if active:
            device = active[0].layers.device
            observed = average_over_ranks(observed.reshape(()).float().to(device), self.process_group)
            ok = observed.isfinite()
            if len(active) > 1:  # no device moves if there is something wrong on another
                ok = torch.stack([ok, *(finite(a.grads).to(device) for a in active)]).all()
            for layers, grads, lr, sign in active:
                layers.step(grads, observed.to(layers.device) * sign, ok.to(layers.device), lr)
        for group in self.param_groups:
            group["step"] += 1
        return result

    def _active(self) -> list[Active]:
        """The layers that have a gradient, device by device, with what belongs to this step."""
        members = [(g, p) for g, group in enumerate(self.param_groups) for p in group["params"] if p.grad is not None]
        here = [local(p) for _, p in members] if self._sharded else [p for _, p in members]
        totals = [group["total_steps"] for group in self.param_groups]
        key = ([(id(p), t.data_ptr()) for (_, p), t in zip(members, here, strict=True)], totals)
        if key != self._key:
            self._gather(members)
            self._key = key
        grads = [cast("Tensor", p.grad) for _, p in members]
        if self._sharded:
            grads = [local(grad) for grad in grads]
        lrs, maximize = [group["lr"] for group in self.param_groups], [group["maximize"] for group in self.param_groups]
        if any(maximize):
            grads = [-grad if maximize[g] else grad for grad, (g, _) in zip(grads, members, strict=True)]
        signs = [-1.0 if m else 1.0 for m in maximize]
        return [Active(b, [grads[i] for i in b.where], b.spread(lrs), b.spread(signs)) for b in self._batches]

    def _gather(self, members: Sequence[tuple[int, Tensor]]) -> None:
        """Makes the tables of the layers that have a gradient, when these are others than in the last step, or lie elsewhere."""
        self._pull()
        sparse = [p.grad for _, p in members if p.grad is not None and p.grad.layout != torch.strided]
        if sparse:
            raise ValueError(f"a gradient of shape {tuple(sparse[0].shape)} is {sparse[0].layout}; L3RS takes dense ones")
        self._batches = []
        for device in dict.fromkeys(p.device for _, p in members):
            where = [i for i, (_, p) in enumerate(members) if p.device == device]
            params = [members[i][1] for i in where]
            states = [self._state_of(p) for p in params]
            slots = [self._slot[p] for p in params] if self._slot else []
            groups = [members[i][0] for i in where]
            self._batches.append(Layers(params, states, slots, groups, self.param_groups, self._schedule, self.fused, where))
        self._members = list(members)

    def _warn_past_the_end(self) -> None:
        past = [group["total_steps"] for group in self.param_groups if group["step"] >= group["total_steps"]]
        if past and not self._warned_of_end:
            self._warned_of_end = True
            warnings.warn(f"L3RS was given total_steps={past[0]} and goes on past it, deciding as at its end", stacklevel=7)

    # -- what can be asked of it ---------------------------------------------------------------------------------------------------

    @property
    def skipped_steps(self) -> int:
        """How many steps moved nothing, the loss or a gradient not being finite. Waits for the device; warns of new ones."""
        self._pull()
        return max(int(group["skipped"]) for group in self.param_groups)

    def _pull(self) -> None:
        """Brings the numbers that are kept on the device, the clock and the count of skipped steps, into the groups."""
        if not self._batches:
            return
        skipped = int(self._batches[0].skipped)
        for group, *clocks in zip(self.param_groups, *(b.clock.tolist() for b in self._batches), strict=False):
            group["step"] = max(group["step"], *(int(k) for k in clocks))  # a CUDA graph that is replayed advances the device's alone
            group["skipped"] += skipped
        for batch in self._batches:
            batch.skipped.zero_()
        if skipped:
            total = self.param_groups[0]["skipped"]
            warnings.warn(
                f"L3RS moved nothing in {skipped} step{'s' if skipped > 1 else ''}, whose loss or gradient was not finite ({total} so far)",
                stacklevel=3,
            )

    def decisions(self) -> pd.DataFrame:
        """What the last step decided, one row a layer; costs nothing until it is asked for.

        Returns:
            Columns `lambda`, in units of the schedule; `length`, the bound on the l2 norm of the update, lambda times unit times lr (0 in a
            skipped step); and `mu_NAME` for each direction, which sum to 1. The index is the layer's name, or its number.

        Raises:
            RuntimeError: no step was taken yet, by this object, with a gradient.
            ModuleNotFoundError: pandas is not installed; the message names the extra that brings it.
        """
        require("L3RS.decisions()", "pandas")
        import pandas as pd

        decided = [batch.decided for batch in self._batches]
        if not decided or decided[0] is None:
            raise RuntimeError("no step has been decided yet: call step() first")
        names = self._names()
        every = [p for group in self.param_groups for p in group["params"]]
        called = {p: names[i] if names else str(i) for i, p in enumerate(every)}
        tables = []
        for batch, d in zip(self._batches, decided, strict=True):
            assert d is not None
            values = torch.cat([torch.stack([d.lam, d.lengths], dim=1), d.mu], dim=1).cpu().double().numpy()
            index = pd.Index([called[self._members[i][1]] for i in batch.where], name="layer")
            tables.append(pd.DataFrame(values, index, ["lambda", "length", *(f"mu_{name}" for name in self._directions)]))
        return pd.concat(tables)

    # -- saving and loading --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As of every optimizer: tensors by parameter in `state`, numbers in `param_groups`. Without the learned schedule itself."""
        self._pull()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a saved run was; the dict stays as it is.

        Raises:
            ValueError: the state is of a schedule with other directions or averages, or of other parameters.
        """
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        mine = initial_state(torch.zeros(1), self._schedule.config, self._directions)
        lazy = tuple(f"{name}/" for name, d in self._directions.items() if d.lazy)
        for saved in state_dict["state"].values():
            keys = {key for key in saved if not key.startswith(lazy)} if lazy else set(saved)
            if keys != set(mine) or saved["ema"].shape != mine["ema"].shape:
                different = sorted(keys ^ set(mine)) or ["ema"]
                raise ValueError(f"this state is of another kind of schedule; what differs: {', '.join(different[:3])}")
        before = self.param_groups[0]["total_steps"]
        super().load_state_dict(state_dict)
        # torch shares tensors with the dict, which a step would change, and casts floating state to the dtype of its parameter, which
        # would round the float32 averages of a bfloat16 one.
        for i, p in zip(ids, (p for group in self.param_groups for p in group["params"]), strict=True):
            for key, value in self.state[p].items() if i in state_dict["state"] else ():
                saved = state_dict["state"][i][key]
                self.state[p][key] = (value if value.dtype == saved.dtype else saved.to(p.device)).detach().clone()
        self._batches, self._key = [], None
        after = self.param_groups[0]["total_steps"]
        if after != before:
            warnings.warn(f"the loaded state is of a run of total_steps={after}; that takes the place of {before}", stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        self._pull()
        own = {name: getattr(self, name) for name in ("learned", "match", "fused")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"process_group": None, **state})  # process groups belong to a process
        if "learned" in state:
            self._prepare()
