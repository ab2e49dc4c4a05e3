"""What a saved run is known by, and that a state which cannot be loaded leaves the optimizer as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import backward, equal, random_schedule, small_network, train, weights
from torch import Tensor, nn

from l3rs import L3RS, LearnedSchedule
from l3rs.directions import Direction
from l3rs.lightning.mixin import _NamedL3RS, _renamed
from l3rs.networks.create import resnet34
from l3rs.networks.pretrained import pretrained
from l3rs.optimizer.guard import CUT
from l3rs.optimizer.states import SCHEDULE
from l3rs.schedules.find import load, resolve

pytestmark = pytest.mark.filterwarnings("ignore:the loss leapt")  # what is trained here is noise
MISSPELT = "x" * 10**6
State = dict[str, Any]


def schedule(network: nn.Module, **config: object) -> LearnedSchedule:
    return random_schedule(network, scale=0.1, **{"lr0": 2e-3, **config})


def started(learned: LearnedSchedule | None = None, **options: Any) -> tuple[nn.Module, L3RS]:
    """A small network and its optimizer after two steps."""
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 12, learned or schedule(network), **options)
    train(network, optimizer, range(2))
    return network, optimizer


def marks(optimizer: L3RS) -> set[str]:
    return {group[SCHEDULE] for group in optimizer.state_dict()["param_groups"]}


def test_a_state_of_another_training_is_refused() -> None:
    """Names may change, and the numbers and the config tell."""
    own = schedule(small_network())
    state = started(own)[1].state_dict()
    for other in (replace(own, theta=2 * own.theta, name="other"), replace(own, config=replace(own.config, lr0=0.003), name="other")):
        _, optimizer = started(other)
        with pytest.raises(ValueError, match=r"a run under random \w{12}, and this optimizer has other \w{12}: pass that schedule as `lea"):
            optimizer.load_state_dict(state)
    for same in (replace(own, name="renamed"), replace(own, theta=own.theta.double())):
        started(same)[1].load_state_dict(state)
    _, unlike = started(schedule(small_network(), directions=("sgd", "lion")))
    with pytest.raises(ValueError, match=r"another kind of schedule; what differs: .*; it is of a run under random \w{12}, and this"):
        unlike.load_state_dict(state)


def test_a_run_goes_on_with_its_own_head_and_match() -> None:
    network, learned = small_network(), load("start")
    optimizer = L3RS(network.named_parameters(), 4, learned, head="4", match="position")
    train(network, optimizer, range(2))
    resumed = copy.deepcopy(network)
    other = L3RS(resumed.named_parameters(), 4, learned)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert (other.head, other.match) == ("4", "position")
    assert ", head: 4.weight, " in repr(other)
    train(network, optimizer, range(2, 4))
    train(resumed, other, range(2, 4))
    assert equal(weights(network), weights(resumed))


@pytest.mark.parametrize(("key", "value"), [("l3rs_head", 7), ("l3rs_match", None), ("l3rs_head", "nowhere")])
def test_options_that_cannot_be_leave_the_optimizer_as_it_was(key: str, value: object) -> None:
    _, optimizer = started()
    state, before = copy.deepcopy(optimizer.state_dict()), repr(optimizer)
    state["param_groups"][0][key] = value
    with pytest.raises(ValueError, match=r"must be the same in all groups|head must be the name of one dense layer"):
        optimizer.load_state_dict(state)
    assert repr(optimizer) == before


@pytest.mark.parametrize("key", [SCHEDULE, "weight_decay", "cut", "l3rs_head"])
def test_a_state_that_lacks_something_is_of_another_optimizer(key: str) -> None:
    _, optimizer = started()
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group[key]
    with pytest.raises(ValueError, match=f"this state is of another optimizer: its groups have no '{key}', and have"):
        started()[1].load_state_dict(state)


def test_a_run_goes_on_under_its_own_schedule_where_auto_took_another() -> None:
    """The optimizer may be made before the weights are loaded, by which `auto` knows a network."""
    straight = pretrained(num_classes=4).train()
    optimizer = L3RS(straight.named_parameters(), 4)
    train(straight, optimizer, range(2))
    resumed = resnet34(16, 1, 4).train()
    fresh = L3RS(resumed.named_parameters(), 4)
    assert optimizer.learned is not None
    assert fresh.learned is not None
    assert (optimizer.learned.name, fresh.learned.name) == ("icons-resnet34", "generalist")
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert "learned='icons-resnet34' (the loaded run has it)" in repr(fresh)
    train(straight, optimizer, range(2, 4))
    train(resumed, fresh, range(2, 4))
    assert equal(weights(straight), weights(resumed))
    asked = L3RS(resumed.named_parameters(), 4, "generalist")
    with pytest.raises(ValueError, match="a run under icons-resnet34"):
        asked.load_state_dict(optimizer.state_dict())


def test_lightning_follows_a_run_whose_head_has_a_name_of_its_own() -> None:
    def made(learned: str) -> _NamedL3RS:
        """As `l3rs_optimizer` makes it, for the head alone."""
        module = nn.Module()
        module.network = resnet34(16, 1, 4)
        module.network.classifier = module.network.fc
        del module.network.fc
        named = list(module.named_parameters())
        found = resolve(learned, named)
        found = found._replace(schedule=_renamed(found.schedule, [name for name, _ in named]))
        return _NamedL3RS(module, named[-2:], 10, found)

    auto = made("auto")
    auto.load_state_dict(made("icons-resnet34").state_dict())
    assert auto.learned is not None
    assert auto.learned.name == "icons-resnet34"
    copied = copy.deepcopy(auto)
    assert len(copied._called) == 110


def two_groups(optimizer: L3RS, state: State) -> State:
    """Of other groups, which torch finds last."""
    first = state["param_groups"][0]
    halves = [{**first, "params": first["params"][:1]}, {**first, "params": first["params"][1:]}]
    return {**state, "param_groups": [{k: v for k, v in half.items() if k != "param_names"} for half in halves]}


def marked(mark: Any) -> Callable[[L3RS, State], State]:
    return lambda optimizer, state: {**state, "param_groups": [{**group, SCHEDULE: mark} for group in state["param_groups"]]}


def with_value(key: str, value: Any) -> Callable[[L3RS, State], State]:
    return lambda optimizer, state: {**state, "param_groups": [{**group, key: value} for group in state["param_groups"]]}


def with_number(key: str, number: float) -> Callable[[L3RS, State], State]:
    """Of the first parameter, in one place."""

    def changed(optimizer: L3RS, state: State) -> State:
        first = {name: t.clone() for name, t in state["state"][0].items()}
        first[key].view(-1)[-1] = number
        return {**state, "state": {**state["state"], 0: first}}

    return changed


def of_sgd(optimizer: L3RS, state: State) -> State:
    return torch.optim.SGD([p for group in optimizer.param_groups for p in group["params"]], 0.1).state_dict()


def without_numbers(optimizer: L3RS, state: State) -> State:
    return {**state, "state": {i: {**s, "step": 1} for i, s in state["state"].items()}}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (two_groups, "different number of parameter groups"),
        (of_sgd, "this state is of another optimizer: its groups have no 'total_steps', and have lr, momentum"),
        (without_numbers, "step of .* has shape None, and would be "),
        (lambda optimizer, state: {"state": {}, "param_groups": []}, "different number of parameter groups"),
        (marked(7), r"l3rs_schedule must be the same in all groups of a state, a name and a fingerprint \(got \[7\]\)"),
        (marked(b"x"), "l3rs_schedule must be"),
        (marked(torch.zeros(2)), "l3rs_schedule must be"),
        (marked(MISSPELT), r"l3rs_schedule must be .{350,400}$"),
        (marked("\x1b[31mred 012345678901"), r"a run under \\x1b\[31mred 012345678901"),
        (with_value("total_steps", 0), "total_steps must be a whole number of at least 1"),
        (with_value("step", None), r"step must be a whole number of at least 0, the steps that were taken \(got None\)"),
        (with_value("step", -1), "step must be a whole number of at least 0"),
        (with_value("lr", "fast"), "lr must be a finite number"),
        *((with_value("cut", cut), r"cut must be a number above 0 and at most 1") for cut in (-1.0, 0, 1e9, math.nan, math.inf, "x")),
        *((with_value("first_loss", loss), "first_loss must be a finite number") for loss in ("x", math.nan, math.inf)),
        *(
            (with_value(key, wrong), f"{key} must be a whole number of at least 0")
            for key in ("skipped", "late")
            for wrong in (-5, "a", None)
        ),
        (with_value("maximize", "no"), r"maximize must be True or False \(got 'no'\)"),
        *(
            (with_number(key, math.nan), rf"{key} of 0\.weight must be finite numbers")
            for key in ("ema", "step", "adam/exp_avg", "adam/exp_avg_sq")
        ),
        (with_number("adam/exp_avg_sq", -1.0), r"adam/exp_avg_sq of 0\.weight must be finite numbers of at least 0 in this state"),
        (with_number("step", -1.0), r"step of 0\.weight must be finite numbers of at least 0 in this state"),
    ],
)
@pytest.mark.parametrize("learned", ["generalist", None], ids=["auto", "asked"])
def test_a_state_that_cannot_be_loaded_leaves_the_optimizer_as_it_was(
    learned: str | None, change: Callable[[L3RS, State], State], error: str
) -> None:
    """Also where `auto` would have followed the run to another schedule."""
    network = small_network()
    found = resolve("auto", list(network.named_parameters())) if learned else schedule(network)
    optimizer = L3RS(network.named_parameters(), 12, found)
    train(network, optimizer, range(2))
    twin, other = copy.deepcopy((network, optimizer))
    before = repr(optimizer)
    with pytest.raises(ValueError, match=error):
        optimizer.load_state_dict(change(optimizer, optimizer.state_dict()))
    assert repr(optimizer) == before
    train(network, optimizer, range(2, 4))
    train(twin, other, range(2, 4))
    assert equal(weights(network), weights(twin))
    assert marks(optimizer) == marks(other)


class Remembering(Direction):
    """Keeps numbers that no direction of ours does: some below 0, some that are not finite."""

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"last_step": torch.zeros_like(param), "best": torch.full_like(param, math.inf)}

    def update(self, grads: Any, params: Any, states: Any, steps: Any, constants: Any) -> list[Tensor]:
        for g, state in zip(grads, states, strict=True):
            state["last_step"].mul_(0.5).add_(g)
        return [state["last_step"].clone() for state in states]


def test_a_direction_of_ones_own_may_keep_any_numbers_and_a_schedule_may_have_a_long_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l3rs.directions._registered", {"remembering": Remembering()})
    whole, half = small_network(), small_network()
    learned = replace(random_schedule(whole, False, directions=("sgd", "remembering")), name="x" * 400)
    optimizers = [L3RS(network.named_parameters(), 4, learned) for network in (whole, half)]
    train(whole, optimizers[0], range(4))
    train(half, optimizers[1], range(2))
    again = L3RS(half.named_parameters(), 4, learned)
    again.load_state_dict(optimizers[1].state_dict())
    train(half, again, range(2, 4))
    assert equal(weights(whole), weights(half))


def test_names_come_with_the_state() -> None:
    """So that a specialist is followed where the optimizer was given none."""
    own = pretrained(num_classes=4).train()
    optimizer = L3RS(own.named_parameters(), 4)
    nameless = L3RS(resnet34(16, 1, 4).parameters(), 4, resolve("auto", []))
    nameless.load_state_dict(optimizer.state_dict())
    assert marks(nameless) == marks(optimizer)


def test_a_refusal_after_auto_would_have_followed_changes_nothing() -> None:
    state = L3RS(pretrained(num_classes=4).named_parameters(), 4).state_dict()
    network = resnet34(16, 1, 4).train()
    named = list(network.named_parameters())
    optimizer = L3RS([{"params": named[:-2]}, {"params": named[-2:]}], 4)
    twin, other = copy.deepcopy((network, optimizer))
    before = repr(optimizer)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(state)
    assert repr(optimizer) == before
    train(network, optimizer, range(2))
    train(twin, other, range(2))
    assert equal(weights(network), weights(twin))


def test_hooks_see_the_dict_first_and_the_finished_state_last() -> None:
    state = started()[1].state_dict()

    def halved(states: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
        return {i: {**s, "adam/exp_avg": s["adam/exp_avg"] / 2} for i, s in states.items()}

    plain, before, after = (started()[1] for _ in range(3))
    before.register_load_state_dict_pre_hook(lambda _, saved: {**saved, "state": halved(saved["state"])})
    after.register_load_state_dict_post_hook(lambda optimizer: optimizer.state.update(halved(optimizer.state)))
    for optimizer in (plain, before, after):
        optimizer.load_state_dict(state)
    moments = [[s["adam/exp_avg"] for s in optimizer.state.values()] for optimizer in (plain, before, after)]
    assert equal([m / 2 for m in moments[0]], moments[1])
    assert equal(moments[1], moments[2])


def test_states_of_no_parameter_are_left_out() -> None:
    network, optimizer = started()
    state = optimizer.state_dict()
    optimizer.load_state_dict({**state, "state": {**state["state"], "note": {"x": 1}}})
    train(network, optimizer, range(2, 3))
    assert "note" not in optimizer.state


def test_what_the_optimizer_was_told_outlives_a_loaded_state() -> None:
    group: Any = object()  # stands for a process group, which is only kept here
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 12, schedule(network), guard=False, process_group=group)
    optimizer.load_state_dict(optimizer.state_dict())
    assert (optimizer.guard, optimizer.process_group) == (False, group)


def test_a_users_own_key_of_groups_is_kept() -> None:
    network = small_network()
    named = list(network.named_parameters())
    optimizer = L3RS([{"params": named[:2], "schedule": "cosine"}, {"params": named[2:], "schedule": "none"}], 12, schedule(network))
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["schedule"] for group in optimizer.param_groups] == ["cosine", "none"]
    assert all(SCHEDULE not in group for group in optimizer.param_groups)


def test_without_the_guard_a_cut_of_the_loaded_run_is_lifted() -> None:
    learned = load("generalist")  # which does not see the loss itself
    network, optimizer = started(learned)
    backward(network, 2)
    optimizer.step(loss=1e3)
    assert optimizer.param_groups[0]["cut"] == CUT
    moved = []
    for guard in (True, False):
        twin = copy.deepcopy(network)
        resumed = L3RS(twin.named_parameters(), 12, learned, guard=guard)
        resumed.load_state_dict(optimizer.state_dict())
        train(twin, resumed, range(3, 4))
        moved.append(torch.cat([(p - q).flatten() for p, q in zip(weights(twin), weights(network), strict=True)]).norm())
    assert moved[1] > 0.01
    assert torch.allclose(moved[0], CUT * moved[1], rtol=1e-4)
