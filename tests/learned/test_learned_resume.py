"""States of VeLO, Celo, Celo2 and small_fc_lopt: resumed to the bit, in every way; and those that do not fit."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import backward, equal, small_network, train, weights
from forms import FORMS, WATCHING, every_form, finite, make, states, theta
from resuming import WAYS
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", [0, 1, 4])
@every_form
def test_resume_is_bit_equal(form: str, after: int, way: Callable[..., None], dtype: torch.dtype, tmp_path: Path) -> None:
    straight = small_network(dtype)
    optimizer = make(form, straight.parameters())
    train(straight, optimizer, range(after))
    resumed, middle = copy.deepcopy(straight), weights(straight)
    fresh = make(form, resumed.parameters())
    way(copy.deepcopy(optimizer.state_dict()), fresh, tmp_path)
    assert {**fresh.param_groups[0], "params": 0} == {**optimizer.param_groups[0], "params": 0}
    train(straight, optimizer, range(after, 7))
    train(resumed, fresh, range(after, 7))
    assert equal([*weights(straight), *states(optimizer)], [*weights(resumed), *states(fresh)])
    assert not any(torch.equal(a, b) for a, b in zip(middle, weights(straight), strict=True))
    assert {t.dtype for t in states(fresh)} == {torch.float32}
    assert {p.dtype for p in resumed.parameters()} == {dtype}


@every_form
@pytest.mark.parametrize(
    ("key", "value", "said"), [("lr", "abc", "lr must be a finite number"), ("step", -1, "step must be a whole number")]
)
def test_a_state_with_numbers_that_cannot_be_changes_nothing(form: str, key: str, value: object, said: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    train(network, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    groups, before = copy.deepcopy(optimizer.param_groups), [t.clone() for t in states(optimizer)]
    state["param_groups"][0][key] = value
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(state)
    assert [{**g, "params": 0} for g in optimizer.param_groups] == [{**g, "params": 0} for g in groups]
    assert equal(states(optimizer), before)
    train(network, optimizer, range(2, 3))
    assert finite(weights(network))


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_state_that_was_cast_is_of_the_right_type_again(form: str, dtype: torch.dtype) -> None:
    """Else the C kernel would read past it."""
    network = small_network()
    optimizer = make(form, network.parameters())
    train(network, optimizer, range(2))
    resumed = copy.deepcopy(network)
    fresh = make(form, resumed.parameters())
    state = copy.deepcopy(optimizer.state_dict())
    for of in state["state"].values():
        of.update({key: t.to(dtype) for key, t in of.items()})
    fresh.load_state_dict(state)
    assert {t.dtype for t in states(fresh)} == {torch.float32}
    train(network, optimizer, range(2, 4))
    train(resumed, fresh, range(2, 4))
    assert finite(weights(resumed))
    assert equal(weights(network), weights(resumed)) == (dtype == torch.float64)


@every_form
def test_hooks_see_the_dict_first_and_the_finished_state_last(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    train(network, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())

    def halved(states: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
        return {i: {key: t / 2 for key, t in s.items()} for i, s in states.items()}

    plain, before, after = (make(form, network.parameters()) for _ in range(3))
    before.register_load_state_dict_pre_hook(lambda _, saved: {**saved, "state": halved(saved["state"])})
    after.register_load_state_dict_post_hook(lambda optimizer: optimizer.state.update(halved(optimizer.state)))
    for each in (plain, before, after):
        each.load_state_dict(state)
    assert equal([t / 2 for t in states(plain)], states(before))
    assert equal(states(before), states(after))
    assert not equal(states(plain), states(before))


@every_form
def test_stepping_leaves_the_dict_that_was_loaded_as_it_was(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    train(network, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(state)
    fresh = make(form, network.parameters())
    fresh.load_state_dict(state)
    train(network, fresh, range(2, 4))
    assert state["param_groups"] == before["param_groups"]
    assert all(torch.equal(t, before["state"][i][k]) for i, s in state["state"].items() for k, t in s.items())


@every_form
def test_distributed_state_dicts_by_name(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.named_parameters())
    train(network, optimizer, range(3))
    saved = get_optimizer_state_dict(network, optimizer)
    assert set(saved["state"]) == {name for name, _ in network.named_parameters()}
    resumed = copy.deepcopy(network)
    fresh = make(form, resumed.named_parameters())
    set_optimizer_state_dict(resumed, fresh, copy.deepcopy(saved))
    train(network, optimizer, range(3, 6))
    train(resumed, fresh, range(3, 6))
    assert equal([*weights(network), *states(optimizer)], [*weights(resumed), *states(fresh)])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
@every_form
def test_copies_of_the_object_itself_go_on_alike(form: str, clone: Callable[[Any], Any]) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    train(network, optimizer, range(2))
    optimizer.param_groups[0]["skipped"] = 3
    other_network, other = clone((network, optimizer))
    middle = weights(network)
    train(network, optimizer, range(2, 5))
    assert equal(middle, weights(other_network))  # the copy stood still
    train(other_network, other, range(2, 5))
    assert equal([*weights(network), *states(optimizer)], [*weights(other_network), *states(other)])
    assert other.skipped_steps == 3
    other.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})
    assert other.param_groups[1]["step"] == 5


@pytest.mark.parametrize("form", WATCHING)
def test_a_loaded_run_of_another_length_is_told_where_it_is_loaded(form: str) -> None:
    run, other = (make(form, small_network().parameters(), total_steps=steps) for steps in (12, 20))
    with pytest.warns(UserWarning, match="total_steps=12; that takes the place of 20") as caught:
        other.load_state_dict(run.state_dict())
    assert caught[0].filename == __file__
    run.load_state_dict(other.state_dict())  # of the same length: pytest would raise its warning


def state_of_sgd(network: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    backward(network, 0)
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("form", "other", "differs"),
    [
        ("Celo2", "Celo2-base", "adam/m, adam/step, adam/v"),
        ("Celo2-base", "Celo2", "adam/m"),
        ("VeLO", "Celo2-base", "cell, hidden"),
        ("Celo2-base", "Celo", "cell, hidden"),
        ("VeLO", "Celo", "cell, hidden"),  # of another width
        ("Celo2", "SGD", "col, momentum, momentum_buffer"),
        ("Celo2-base", "SmallFC", "than Celo2: SmallFC"),  # whose states are alike
        ("SmallFC", "Celo2-base", "than SmallFC: Celo2"),
    ],
)
def test_a_state_of_another_kind_is_refused(form: str, other: str, differs: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    state = state_of_sgd(network) if other == "SGD" else make(other, network.parameters()).state_dict()
    train(network, optimizer, range(1))
    before, groups = states(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=f"another kind of optimizer.*{differs}"):
        optimizer.load_state_dict(state)
    assert equal(before, states(optimizer))
    assert optimizer.state_dict()["param_groups"] == groups
    train(network, optimizer, range(1, 2))


@every_form
def test_a_state_under_other_meta_parameters_is_refused(form: str) -> None:
    """But not one that is older than their fingerprint."""
    network = small_network()
    run, other = make(form, network.parameters()), make(form, network.parameters(), theta=theta(FORMS[form][0]) * 1.01)
    train(network, run, range(2))
    before, groups, state = states(other), copy.deepcopy(other.state_dict()["param_groups"]), run.state_dict()
    marks = [each.state_dict()["param_groups"][0]["l3rs_theta"] for each in (run, other)]
    with pytest.raises(
        ValueError, match=f"under other meta-parameters, .* {marks[0]}, and those here have {marks[1]}: pass those of the run"
    ):
        other.load_state_dict(state)
    assert equal(before, states(other))
    assert other.state_dict()["param_groups"] == groups
    del state["param_groups"][0]["l3rs_theta"]
    other.load_state_dict(state)
    assert equal(states(run), states(other))
    assert "l3rs_theta" not in other.param_groups[0]


@every_form
def test_a_state_of_another_network_is_refused(form: str) -> None:
    narrow, wide = nn.Linear(3, 4), nn.Linear(5, 4)
    with pytest.raises(ValueError, match="or network; what differs"):
        make(form, narrow.parameters()).load_state_dict(make(form, wide.parameters()).state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        make(form, narrow.parameters()).load_state_dict(make(form, [narrow.weight]).state_dict())
