"""What users give: numbers of any library, and the loss in other ways than the right one."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import backward, small_network, train
from test_states import OPTIMIZERS, Make, every_optimizer

from l3rs import L3RS
from l3rs.learned import Celo2, VeLO, theta
from l3rs.learned.celo2 import SHAPES


@pytest.mark.parametrize("total_steps", [np.int64(20), np.uint8(20), torch.tensor(20)])
@pytest.mark.parametrize("lr", [np.float32(0.5), np.float64(0.5), np.array(0.5), Fraction(1, 2), 0.5])
def test_numbers_of_any_library_are_kept_as_pythons(total_steps: Any, lr: Any) -> None:
    network = small_network()
    for optimizer in (
        L3RS(network.named_parameters(), total_steps, "icons-generalist", lr),
        VeLO(network.named_parameters(), theta.random(VeLO.FORM.shapes, 0), total_steps, lr),
    ):
        group = optimizer.param_groups[0]
        assert [(type(group[key]), group[key]) for key in ("total_steps", "lr")] == [(int, 20), (float, 0.5)]


@pytest.mark.parametrize("total_steps", [True, np.bool_(True), 10.0, np.float64(10), "10", None, np.array([10, 20]), 10**400])
def test_what_is_no_whole_number_is_refused(total_steps: Any) -> None:
    with pytest.raises(ValueError, match="total_steps"):
        L3RS(small_network().named_parameters(), total_steps, "icons-generalist")


@every_optimizer
def test_a_checkpoint_has_no_number_of_numpy(make: Make, tmp_path: Path) -> None:
    network = small_network()
    optimizer = make(network.named_parameters())
    optimizer.param_groups[0]["lr"] = np.float64(0.5)
    train(network, optimizer, range(1))
    optimizer.param_groups[0]["lr"] = np.float32(0.25)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    fresh = make(network.named_parameters())
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert fresh.param_groups[0]["lr"] == 0.25


@every_optimizer
@pytest.mark.parametrize(
    "lr", [torch.tensor(float("nan")), torch.tensor(-1.0), torch.tensor([1.0, 1.0]), torch.tensor(1j), "1", -1.0, float("inf"), None]
)
def test_an_lr_that_is_no_number_of_at_least_0_is_refused(make: Make, lr: Any) -> None:
    network = small_network()
    with pytest.raises(ValueError, match="lr"):
        make([{"params": list(network.parameters()), "lr": lr}])
    optimizer = make(network.parameters())
    loss = backward(network, 0)
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(ValueError, match="lr must be a number of at least 0"):
        optimizer.step(loss=loss)  # type: ignore[call-arg]
    assert optimizer.param_groups[0]["step"] == 0


@pytest.mark.parametrize("wrong", [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).state_dict()])
def test_a_model_in_the_place_of_its_parameters_is_told(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"takes the parameters of a model, model.named_parameters\(\) \(got a (Linear|OrderedDict)\)"):
        L3RS(wrong, total_steps=10)


@every_optimizer
def test_a_loss_in_the_closures_place_is_told_where_it_goes(make: Make) -> None:
    network = small_network()
    optimizer = make(network.named_parameters())
    for loss in (backward(network, 0), 0.5):
        with pytest.raises(TypeError, match=r"use step\(loss=loss\)"):
            optimizer.step(loss)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["step"] == 0


@pytest.mark.parametrize("name", ["L3RS", "VeLO"])
@pytest.mark.parametrize("wrong", ["tuple", "dict", "str", "list"])
def test_a_closure_that_returns_more_than_the_loss_is_told_what_it_returns(name: str, wrong: str) -> None:
    network = small_network()
    optimizer = OPTIMIZERS[name](network.named_parameters())
    loss = backward(network, 0)
    returned = {"tuple": (loss, network), "dict": {"loss": loss}, "str": "0.5", "list": [loss, [1.0, 2.0]]}[wrong]
    for call in (lambda: optimizer.step(lambda: returned), lambda: optimizer.step(loss=returned)):  # type: ignore[call-arg]
        with pytest.raises(ValueError, match=rf"the loss must be one number, which a closure returns alone \(got {wrong}\)"):
            call()
    assert optimizer.param_groups[0]["step"] == 0


@pytest.mark.parametrize("name", ["L3RS", "VeLO"])
@pytest.mark.parametrize("wrong", [10**400, torch.tensor(1 + 1j), torch.ones(1).to_sparse()], ids=["of 400 digits", "complex", "sparse"])
def test_a_loss_that_is_no_number_that_float32_may_hold_is_refused(name: str, wrong: Any) -> None:
    network = small_network()
    optimizer = OPTIMIZERS[name](network.named_parameters())
    backward(network, 0)
    with pytest.raises(ValueError, match="the loss must be one number"):
        optimizer.step(loss=wrong)  # type: ignore[call-arg]
    assert optimizer.param_groups[0]["step"] == 0


def test_an_lr_that_is_meant_as_a_learning_rate_is_told_once() -> None:
    network = small_network()
    with pytest.warns(UserWarning, match=r"lr is 0\.001: it multiplies the step that L3RS has learned, and is 1 by default") as said:
        optimizer = L3RS(network.named_parameters(), 20, "icons-generalist", lr=1e-3)
    assert said[0].filename == __file__
    train(network, optimizer, range(2))  # warnings are errors here
    with pytest.warns(UserWarning, match=r"lr is 0\.01:"):  # the default of skorch
        L3RS(network.named_parameters(), 20, "icons-generalist", lr=0.01)
    with pytest.warns(UserWarning, match="it multiplies the step that VeLO has learned"):
        VeLO(network.parameters(), theta.random(VeLO.FORM.shapes, 0), 20, lr=1e-3)
    Celo2(network.parameters(), theta.random(SHAPES, 0), lr=1e-3)  # is a learning rate


def test_a_scheduler_that_sets_a_learning_rate_is_told_and_one_that_warms_up_or_ends_is_not() -> None:
    schedulers = torch.optim.lr_scheduler
    for make, small in (
        (lambda o: schedulers.OneCycleLR(o, 1e-3, 20, cycle_momentum=False), True),
        (lambda o: schedulers.LinearLR(o, 1e-3, total_iters=5), False),
        (lambda o: schedulers.CosineAnnealingLR(o, 5), False),
    ):
        network = small_network()
        optimizer = L3RS(network.named_parameters(), 20, "icons-generalist")
        scheduler = make(optimizer)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for k in range(6):
                train(network, optimizer, range(k, k + 1))
                scheduler.step()
        found = [w for w in said if "multiplies the step" in str(w.message)]
        assert len(found) == small
