"""L3RS as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from l3rs.directions import DIRECTIONS
from l3rs.directions.torch_optimizer import TorchOptimizerDirection
from l3rs.extras import require
from l3rs.optimizer.advice import tell_of_no_head, tell_of_several_heads, tell_what_names_would_give, tell_what_would_hardly_move
from l3rs.optimizer.arguments import LONGEST, Multipliers, call_closure, check_group, plain
from l3rs.optimizer.distributed import average_over_ranks, local
from l3rs.optimizer.guard import Guard
from l3rs.optimizer.kernels import kernel_class
from l3rs.optimizer.layers import Controller, Layers, Network, expected_states, finite
from l3rs.optimizer.observed import Losses
from l3rs.optimizer.saving import Resumable
from l3rs.optimizer.states import (
    GUARD,
    HEAD,
    MATCH,
    MATCHES,
    NEW,
    SCHEDULE,
    check_groups,
    check_names,
    check_states,
    check_unlike,
    names_of,
    same_schedule,
    saved_mark,
    saved_options,
    schedule_mark,
)
from l3rs.optimizer.surroundings import undisturbed
from l3rs.optimizer.tables import Active, Tables, state_of
from l3rs.schedules.find import SHIPPED, Chosen, load, resolve
from l3rs.schedules.schedule import LearnedSchedule

if TYPE_CHECKING:
    import pandas as pd
    from torch.distributed import ProcessGroup


class L3RS(Resumable):
    """Learned Layer-wise Learning Rate Scheduler (arXiv 2408.09310).

    At step k each layer l, a parameter tensor, moves by

        - lr * lambda(l) * unit(l) * sum over p of mu_p(l) * d_p(l) / ||d_p(l)||

    where d are the directions of the base optimizers (Eq. 2). A controller sets lambda and mu from the layer's features. unit(l) is what
    lambda is counted in, see `L3RSConfig.unit`. A direction of norm 0 adds nothing.

    l3rs/optimizer/reference.py is the readable twin: the step as the paper has it, in plain loops. This class takes the same step fast,
    and tables.py keeps its books. docs/how-l3rs-decides.md walks through one step.

    The guard watches the loss, and schedules of the paper's form see it: call `step(loss=loss)` or `step(closure)`, or `observe(loss)`
    where a trainer calls `step()`. Other schedules take a bare `step()`. `torch.distributed` ranks average the loss, like gradients. If the
    loss or a gradient is not finite, no layer moves in that step, the moments take in zeros, and `skipped_steps` counts it.

    Args:
        params: `model.named_parameters()`, or parameters, or groups of either. A specialist needs names; a generalist does not. A group
            may have its own `lr`, `maximize`, `total_steps` and `weight_decay`. A group added during the run is taken for layers that
            are unfrozen: they lie before all others in the network, and share the clock of the first group, unless it sets its own.
        total_steps: K, the number of steps of the whole run. Later steps are decided as if at step K.
        learned: the learned schedule: `"auto"`, a shipped name, a path, a Hub id, or a `LearnedSchedule`. `"auto"` takes the shipped
            specialist whose layer names match, if the weights are of about the same size, layer by layer, as those of its own network; else
            the shipped generalist. `repr` says which, and why.
        lr: multiplies every step, 1 by default; ordinary schedulers may drive `group["lr"]`.
        maximize: maximizes the loss instead of minimizing it.
        weight_decay: decoupled, as in AdamW, with the layer's step in the place of a learning rate: after the step each layer is multiplied
            by 1 - weight_decay * s. s bounds the root mean square of the step over the layer's elements: `length` in `decisions()`, over
            the square root of their number.
        match: how layers find their learned numbers: by `"name"`, or by `"position"` among all parameters.
        head: the name of the dense layer that classifies, whose steps are measured by what they do to the logits; "" says that it is not
            among `params`. None takes the last one that is called as heads are, or else the last matrix, unless it is a part of one of
            several blocks; `repr` says which that is.
        guard: where the loss of one of the first 20 steps is far above that of the first, multiplies all further steps by 0.3, once, with
            a warning. A run without such a leap, or whose steps are told no loss, is as without it.
        fused: takes the step in compiled code, for float32 parameters. None does so where it can: on CPU, if a C compiler was there at
            installation, and on CUDA by Triton. False takes torch operations; True raises ValueError if compiled code cannot step these
            parameters. `repr` says which runs.
        process_group: the ranks that train together; None is all. Give a group of one if each rank trains on its own.

    Raises:
        ValueError: an argument is wrong, or `learned` is unknown or does not fit the parameters' names.
        TypeError: a parameter is complex or not floating, or a model stands in the place of its parameters.

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
        learned: str | LearnedSchedule | Chosen = "auto",
        lr: float | Tensor = 1.0,
        *,
        maximize: bool = False,
        weight_decay: float = 0.0,
        match: str = "name",
        head: str | None = None,
        guard: bool = True,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if isinstance(params, torch.nn.Module | Mapping):
            raise TypeError(f"L3RS takes the parameters of a model, model.named_parameters() (got a {type(params).__name__})")
        if match not in MATCHES:
            raise ValueError(f"match must be 'name' or 'position' (got {match!r})")
        self.learned: LearnedSchedule | None = None  # until super().__init__ has sorted the parameters into groups
        self.match, self.head, self.fused, self.process_group = match, head, fused, process_group
        self.guard = self._may_guard = bool(guard)  # of the run, and here: a loaded run may have none
        chosen = {"lr": lr, "maximize": maximize, "weight_decay": weight_decay, "total_steps": total_steps}
        super().__init__(params, {**chosen, **NEW})
        every = [p for group in self.param_groups for p in group["params"]]
        named = zip(names_of(self.param_groups) or [], every, strict=False)
        with undisturbed():
            self.learned, self.why = resolve(learned, list(named), match)
        self._prepare()
        self._multipliers.read(self.param_groups, stacklevel=3, step=False)
        if learned == "auto" and match == "name" and names_of(self.param_groups) is None:
            tell_what_names_would_give(self.learned, every)
        tell_what_would_hardly_move(self.learned, self._tables.network, self.param_groups, every)
        if head is None:
            network, (_, names) = self._tables.network, self._whole_network()
            tell_of_no_head(network.table, names)
            tell_of_several_heads(network.table, [p.shape for p in network.params], names)

    def _prepare(self) -> None:
        """Builds the controller and the tables from the learned schedule and the groups."""
        assert self.learned is not None
        self._multipliers = Multipliers("L3RS")
        self._warned_of_end, self._guard = False, Guard()
        with undisturbed():
            self._controller = Controller.of(self.learned)
            self._assign()

    def _assign(self) -> None:
        """Gives every parameter its slot in the schedule, and every trained parameter its state."""
        assert self.learned is not None
        every = [p for group in self.param_groups for p in group["params"]]
        names = names_of(self.param_groups)
        check_unlike(names)
        slots = self.learned.slots(len(every), names, self.match)
        slot = dict(zip(every, slots, strict=True)) if slots else {}
        sharded = any(local(p) is not p for p in every)
        wrapped = [name for name, d in self._controller.directions.items() if isinstance(d, TorchOptimizerDirection)]
        if sharded and wrapped:
            raise ValueError(f"direction {wrapped[0]!r} steps whole parameters, and these are sharded; use {', '.join(DIRECTIONS)}")
        network = Network.of(*self._whole_network(), self.head)
        if self.fused:
            self._kernels()  # raises ValueError where there is none
        self._tables = Tables(self._controller, slot, network, sharded, self.fused)
        for p in every:
            if p.requires_grad:
                state_of(p, self.state, self._controller)

    def _whole_network(self) -> tuple[list[Tensor], list[str] | None]:
        """The layers by which a layer's place is told, in the order of the network, and their names if they have some.

        They are those of the groups: what was unfrozen last lies lowest; what came at one step, as it came.
        """
        groups = sorted(self.param_groups, key=lambda group: -group["late"])
        return [p for group in groups for p in group["params"]], names_of(groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group. During the run it also gets slots, states and the run's clock.

        Raises:
            ValueError, TypeError: as the constructor; the optimizer stays as it was.
        """
        if self.param_groups:
            shared = ["step", "first_loss", "cut"]
            if self.learned is not None:  # after the constructor
                self._pull()
                if self.match == "position" and self.learned.layers and self.param_groups[0]["step"]:
                    raise ValueError("match='position' counts the layers of the whole network: give all at the start, or match by name")
                shared.append("total_steps")
            first = self.param_groups[0]
            param_group = {**{key: first[key] for key in shared}, **param_group, "late": first["step"]}
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            if self.learned is not None:
                with undisturbed():
                    self._assign()
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise
        if self.learned is not None:
            self._multipliers.read(self.param_groups, stacklevel=3, step=False)
            tell_what_would_hardly_move(self.learned, self._tables.network, self.param_groups, self.param_groups[-1]["params"])

    def __repr__(self) -> str:
        assert self.learned is not None
        forms = ", ".join(f"{name} on {device}" for device, name in self._kernels().items()) or "nothing to step"
        why = f" ({self.why})" if self.why else ""
        numbers = f"{len(self.learned.theta)} meta-parameters"
        return f"L3RS(learned={self.learned.name!r}{why}, {numbers}, head: {self._head}, step: {forms})\n{super().__repr__()}"

    def _kernels(self) -> dict[torch.device, str]:
        """What steps the parameters of each device that require a gradient. Raises ValueError if `fused` asks for what there is not."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for p in (p for group in self.param_groups for p in group["params"] if p.requires_grad and not p.is_meta):
            by_device.setdefault(p.device, []).append(local(p))
        directions, config = self._controller.directions, self._controller.config
        return {device: kernel_class(some, directions, config, self.fused).name for device, some in by_device.items()}

    @property
    def _head(self) -> str:
        """The name of the head's weights, or their number where there are no names."""
        place = self._tables.network.table.head[0]
        if place is None:
            return "none"
        _, names = self._whole_network()
        return names[place] if names else f"parameter {place}"

    # -- the step ----------------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None, *, loss: Tensor | float | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any], *, loss: Tensor | float | None = None) -> Any: ...

    @_disable_dynamo  # as torch's own optimizers are where they do not compile: torch.compile leaves the step as it is
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """Takes one step. Only a schedule that sees the loss must be given it; a loss that is not finite is noticed by any.

        Args:
            closure: evaluates the model and returns the loss; called once, as in every optimizer.
            loss: the loss of this step's batch, if there is no closure; unscaled, and the mean over accumulated batches. None takes what
                was given to `observe`.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: the schedule sees the loss, and there is none; the loss is not one number, a gradient is sparse, or a layer was
                resized. Nothing has changed then.
            TypeError: the loss stands in the closure's place.
        """
        self._multipliers.read(self.param_groups, stacklevel=7)
        for group in self.param_groups:  # which may have been written to
            decay, steps = group["weight_decay"], group["total_steps"]
            named = len(group.get("param_names", group["params"])) == len(group["params"])
            if not named or type(decay) is not float or not 0 <= decay < math.inf or type(steps) is not int or not 1 <= steps < LONGEST:
                check_group(group)
        result = call_closure(closure, "L3RS")
        observed = self._loss_of_step(loss if loss is not None else result, "L3RS", self._controller.config.sees_loss)
        with undisturbed():
            active = self._tables.active(self.param_groups, self.state)
            self._warn_past_the_end()
            if active:
                self._take(active, observed)
        for group in self.param_groups:
            group["step"] += 1
        self._losses = Losses()
        return result

    def _take(self, active: Sequence[Active], observed: Tensor | None) -> None:
        """Takes the step of the layers that have a gradient."""
        if observed is not None:
            observed = average_over_ranks(observed, active[0].layers.device, self.process_group)
        ok = self._all_finite(active, observed) if len(active) > 1 else None
        signs = [-1.0 if group["maximize"] else 1.0 for group in self.param_groups]
        if self.guard:
            self._guard.watch(observed, self.param_groups, signs[0], stacklevel=8)
        cut = self.param_groups[0]["cut"] if self.guard else 1.0
        lrs = [group["lr"] if cut == 1 else cut * group["lr"] for group in self.param_groups]
        for layers, grads in active:
            layers.step(grads, observed, None if ok is None else ok.to(layers.device), lrs, signs)
            self._decay(layers)

    def _decay(self, layers: Layers) -> None:
        """Decays the weights of the layers of a device by their step."""
        decays = [group["weight_decay"] for group in self.param_groups]
        if any(decays):
            assert layers.decided is not None
            factors = 1 - layers.decision.spread(decays) * layers.decided.lengths / layers.decision.root_numel
            torch._foreach_mul_([local(self._tables.params[i]) for i in layers.where], list(factors.unbind()))

    @staticmethod
    def _all_finite(active: Sequence[Active], loss: Tensor | None) -> Tensor:
        """Whether the loss and all gradients are finite: no device moves if there is something wrong on another."""
        device = active[0].layers.device
        each = [finite(grads).to(device) for _, grads in active]
        return torch.stack(each if loss is None else [loss.float().isfinite().to(device), *each]).all()

    def _warn_past_the_end(self) -> None:
        past = [group["total_steps"] for group in self.param_groups if group["step"] >= group["total_steps"]]
        if past and not self._warned_of_end:
            self._warned_of_end = True
            warnings.warn(
                f"L3RS was given total_steps={past[0]} and goes on past it, deciding as at its end: it is the steps of all epochs",
                stacklevel=7,
            )

    # -- looking inside ------------------------------------------------------------------------------------------------------------

    @property
    def skipped_steps(self) -> int:
        """Counts the steps that moved nothing, because the loss or a gradient was not finite. Waits for the device; warns of new ones."""
        self._pull()
        return max(int(group["skipped"]) for group in self.param_groups)

    def _pull(self) -> None:
        self._guard.settle(self.param_groups, stacklevel=4)
        skipped = self._tables.pull(self.param_groups)
        if skipped:
            total = self.param_groups[0]["skipped"]
            warnings.warn(
                f"L3RS moved nothing in {skipped} step{'s' if skipped > 1 else ''}, whose loss or gradient was not finite, "
                f"or too large for a sum of squares in float32 ({total} so far)",
                stacklevel=3,
            )

    def decisions(self) -> pd.DataFrame:
        """Shows the decisions of the last step, one row a layer. Training pays nothing for it.

        Returns:
            Columns `lambda`, in units of the schedule; `length`, the bound on the l2 norm of the update, weight decay aside: lambda times
            unit times lr (0 in a skipped step); and `mu_NAME` for each direction, which sum to 1. The index is the layer's name, or its
            number.

        Raises:
            RuntimeError: it has taken no step with a gradient since it was made, a state was loaded, or a group was added.
            ModuleNotFoundError: pandas is not installed; the message names the extra that brings it.
        """
        require("L3RS.decisions()", "pandas")
        import pandas as pd

        decided = [layers.decided for layers in self._tables.by_device]
        if not decided or decided[0] is None:
            raise RuntimeError("no step has been decided since this was made, loaded, or given a group: call step() first")
        names = names_of(self.param_groups)
        every = [p for group in self.param_groups for p in group["params"]]
        called = {p: names[i] if names else str(i) for i, p in enumerate(every)}
        tables = []
        for layers, d in zip(self._tables.by_device, decided, strict=True):
            assert d is not None
            values = torch.cat([torch.stack([d.lam, d.lengths], dim=1), d.mu], dim=1).cpu().double().numpy()
            index = pd.Index([called[self._tables.params[i]] for i in layers.where], name="layer")
            tables.append(pd.DataFrame(values, index, ["lambda", "length", *(f"mu_{name}" for name in self._controller.directions)]))
        return pd.concat(tables)

    # -- saving and loading --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors by parameter in `state`, and numbers in `param_groups`, as every optimizer does.

        The schedule is not in it, but its name and fingerprint, in each group as `l3rs_schedule`, beside `l3rs_match`, `l3rs_head` and
        `l3rs_guard`.
        """
        assert self.learned is not None
        self._pull()
        plain(self.param_groups)
        saved, mark = super().state_dict(), schedule_mark(self.learned)
        for group in saved["param_groups"]:
            group.update({SCHEDULE: mark, MATCH: self.match, HEAD: self.head, GUARD: self.guard})
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a saved run; the dict stays as it is.

        The run goes on with its `lr`, `weight_decay` and `match`, and its `head`, unless another is named here; without a guard, if it had
        none or has none here. Where `auto` took another schedule than the run has, it takes the run's, if that is a shipped one.

        Raises:
            ValueError: the state belongs to other parameters, to another optimizer, or to a run under another schedule; the optimizer stays
                as it was.
        """
        self._load(state_dict)

    def _check(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        assert self.learned is not None
        groups = state_dict["param_groups"]
        check_groups(groups, self.param_groups)
        check_names(groups, self.param_groups)
        mark, mine = saved_mark(groups), schedule_mark(self.learned)
        found = Chosen(self.learned, self.why) if same_schedule(mark, mine) else self._followed(mark)
        under = "" if found else f"; it is of a run under {mark}, and this optimizer has {mine}"
        learned = found.schedule if found else self.learned
        controller = self._controller if learned is self.learned else Controller.of(learned)
        ids = [i for group in groups for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        fresh = dict(zip(ids, expected_states(params, controller), strict=False))  # torch says where their numbers differ
        state = {i: state_dict["state"].get(i, {}) for i in ids}
        check_states(state, fresh, self.param_groups, controller.lazy, under)
        if not found:
            raise ValueError(f"this state is of a run under {mark}, and this optimizer has {mine}: pass that schedule as `learned`")
        self._loading = found, state, fresh, saved_options(groups)
        stripped = [{key: value for key, value in group.items() if key not in (SCHEDULE, MATCH, HEAD, GUARD)} for group in groups]
        return {**state_dict, "state": {i: s for i, s in state.items() if s}, "param_groups": stripped}  # no states of no parameter

    def _followed(self, mark: str) -> Chosen | None:
        """The schedule of a saved run that has another than the one here: after `auto` a shipped one, else None."""
        others = map(load, SHIPPED if self.why else ())
        found = next((other for other in others if same_schedule(mark, schedule_mark(other))), None)
        return None if found is None else Chosen(self._called_as_here(found), "the loaded run has it")

    def _finish_loading(self) -> None:
        (learned, why), state, fresh, (self.match, head, guard) = self._loading
        del self._loading
        self.guard = guard and self._may_guard
        self.head = head if self.head is None else self.head  # names may be others here, as under wrappers
        for group in self.param_groups:
            check_group(group)
        params = [p for group in self.param_groups for p in group["params"]]
        for (i, saved), p in zip(state.items(), params, strict=True):
            self._copy(p, saved, fresh[i])
        self._guard = Guard()
        if learned is self.learned:
            self._assign()  # groups may be known by now as added late
        else:
            self.learned, self.why = learned, why
            self._prepare()

    def _called_as_here(self, learned: LearnedSchedule) -> LearnedSchedule:
        """The schedule of a loaded run, with its layers called as here."""
        return learned

    def __getstate__(self) -> dict[str, Any]:
        self._pull()
        own = {name: getattr(self, name) for name in ("learned", "why", "match", "head", "guard", "_may_guard", "fused")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle; or, within `load_state_dict`, of the state and the groups alone."""
        copied = "learned" in state
        super().__setstate__({"process_group": None, **state} if copied else state)  # process groups belong to a process
        if copied:
            self._prepare()
