"""The loss handed over before the step, where a trainer calls `step()`: once, several times, never, or for another step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import backward, batch, equal, random_schedule, small_network, train, weights
from test_states import OPTIMIZERS, Make
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS
from l3rs.networks.create import resnet
from l3rs.schedules.find import PAPER_SPECIALIST, SPECIALISTS, START

watches_loss = pytest.mark.parametrize("make", [OPTIMIZERS[name] for name in ("L3RS", "VeLO")], ids=["L3RS", "VeLO"])


def trained(make: Make, *losses: Any) -> list[torch.Tensor]:
    """The weights after a step for each of these losses, with the gradients of the batches."""
    network = small_network()
    optimizer = make(network.named_parameters())
    for k, loss in enumerate(losses):
        backward(network, k)
        optimizer.step(loss=loss)  # type: ignore[call-arg]
    return weights(network)


@watches_loss
def test_an_observed_loss_is_that_of_the_step(make: Make) -> None:
    plain, network = small_network(), small_network()
    train(plain, make_plain := make(plain.named_parameters()), range(4))
    optimizer: Any = make(network.named_parameters())
    for k in range(4):
        loss = backward(network, k)
        optimizer.observe(loss)
        loss.detach().div_(7)  # as trainers do that accumulate gradients
        optimizer.step()
    assert equal(weights(plain), weights(network))
    assert not equal(weights(plain), trained(make, 9.0, 9.0, 1.0, 9.0))  # the loss matters
    assert make_plain.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@watches_loss
def test_no_loss_is_told_in_one_line_that_names_both_ways(make: Make) -> None:
    network = small_network()
    optimizer: Any = make(network.named_parameters())
    told = r"^\w+ watches the loss: call step\(loss=loss\) or step\(closure\), or observe\(loss\) before a step\(\) that a trainer calls$"
    optimizer.observe(backward(network, 0))
    optimizer.step()
    before = weights(network)
    for step in (optimizer.step, lambda: optimizer.step(lambda: None)):  # the loss of the step before is not that of this one
        with pytest.raises(ValueError, match=told):
            step()
    assert equal(before, weights(network))
    assert optimizer.param_groups[0]["step"] == 1


@watches_loss
def test_several_losses_before_a_step_are_their_mean(make: Make) -> None:
    network = small_network()
    optimizer: Any = make(network.named_parameters())
    for k, parts in enumerate([(1, 2.0, torch.tensor(6.0, dtype=torch.float64)), (torch.tensor([[4]]),)]):
        backward(network, k)
        for part in parts:
            optimizer.observe(part)
        optimizer.step()
        optimizer.zero_grad()
    assert equal(weights(network), trained(make, 3.0, 4.0))


@watches_loss
def test_what_step_is_given_comes_first_and_is_for_one_step(make: Make) -> None:
    network = small_network()
    optimizer: Any = make(network.named_parameters())
    backward(network, 0)
    optimizer.observe(9.0)
    optimizer.step(loss=1.0)
    optimizer.observe(9.0)
    optimizer.step(lambda: backward(network, 1) * 0 + 2.0)

    def closure() -> None:
        backward(network, 2)
        optimizer.observe(3.0)

    optimizer.step(closure)
    assert equal(weights(network), trained(make, 1.0, 2.0, 3.0))


@watches_loss
def test_a_loss_in_evaluation_is_of_no_step(make: Make) -> None:
    network = small_network()
    optimizer: Any = make(network.named_parameters())
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            optimizer.observe(9.0)
    backward(network, 0)
    optimizer.observe(1.0)
    optimizer.step()
    assert equal(weights(network), trained(make, 1.0))


@pytest.mark.parametrize("order", ["observe, zero_grad, backward", "zero_grad, observe, backward", "zero_grad, backward, observe"])
def test_the_loss_of_a_step_that_a_scaler_skipped_is_dropped(order: str) -> None:
    networks = [small_network(), small_network()]
    optimizer, reference = (L3RS(n.named_parameters(), 5, random_schedule(n)) for n in networks)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for k in range(4):
        loss = F.cross_entropy(networks[0](batch(k)[0]), batch(k)[1])
        parts = {"observe": partial(optimizer.observe, loss), "backward": scaler.scale(loss).backward, "zero_grad": optimizer.zero_grad}
        for part in order.split(", "):
            parts[part]()
        if k == 1:
            networks[0][4].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if k != 1:
            reference.step(loss=backward(networks[1], k))
        else:
            networks[1](batch(k)[0])  # whose BatchNorm sees the batch
    assert equal(weights(networks[0]), weights(networks[1]))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("first", ["zero_grad, observe, backward", "observe, zero_grad, backward"])
def test_the_losses_of_accumulated_gradients_count_wherever_zero_grad_stands(first: str, set_to_none: bool) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    for k in range(3):
        losses = []
        for part in range(3):
            if part == 0 and first.startswith("zero"):
                optimizer.zero_grad(set_to_none)
            loss = F.cross_entropy(network(batch(3 * k + part)[0]), batch(3 * k + part)[1])
            optimizer.observe(loss)
            losses.append(loss.detach())
            if part == 0 and first.startswith("observe"):
                optimizer.zero_grad(set_to_none)
            (loss / 3).backward()
        torch.testing.assert_close(optimizer._losses.mean(), torch.stack(losses).mean())
        optimizer.step()


@pytest.mark.parametrize("late", [False, True], ids=["observe, zero_grad", "zero_grad, observe"])
def test_a_loss_whose_batch_was_left_out_is_of_no_step(late: bool) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, random_schedule(network))
    for k in range(2):
        if late:
            optimizer.zero_grad()
        loss = F.cross_entropy(network(batch(k)[0]), batch(k)[1])
        optimizer.observe(loss if k else loss * float("nan"))
        if k == 0:  # where it is not finite, the loop goes on to the next one
            continue
        if not late:
            optimizer.zero_grad()
        loss.backward()
    assert torch.equal(optimizer._losses.mean(), loss.detach())


@watches_loss
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
def test_a_copy_has_what_was_observed_and_a_loaded_state_has_not(make: Make, clone: Callable[[Any], Any]) -> None:
    network = small_network()
    optimizer: Any = make(network.named_parameters())
    train(network, optimizer, range(1))
    loss = backward(network, 1)
    optimizer.observe(loss)
    other_network, other = clone((network, optimizer))
    for p, q in zip(other_network.parameters(), network.parameters(), strict=True):
        p.grad = q.grad.clone()
    other.step()
    optimizer.step()
    assert equal(weights(network), weights(other_network))
    other.observe(loss)
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="observe"):
        other.step()


def test_what_is_no_loss_is_refused_where_it_is_observed() -> None:
    network = small_network()
    for make in OPTIMIZERS.values():
        optimizer: Any = make(network.named_parameters())
        with pytest.raises(ValueError, match=r"the loss must be one number, .*\(got shape \(2,\)\)"):
            optimizer.observe(torch.ones(2))
        with pytest.raises(ValueError, match=r"the loss must be one number, .*\(got dict\)"):
            optimizer.observe({})


def test_a_schedule_that_sees_no_loss_takes_a_bare_step_and_notices_a_loss_that_is_not_finite() -> None:
    networks = [small_network() for _ in range(3)]
    learned = random_schedule(networks[0], signals=("log_weight_norm", "log_grad_norm"))
    bare, told, watched = (L3RS(n.named_parameters(), 9, learned) for n in networks)
    for k in range(4):
        losses = [backward(n, k) for n in networks]
        bare.step()
        told.step(loss=losses[1] * 7)
        watched.observe(losses[2] * -7)
        watched.step()
    assert equal(weights(networks[0]), weights(networks[1]))
    assert equal(weights(networks[0]), weights(networks[2]))
    watched.observe(backward(networks[2], 4) * float("nan"))
    watched.step()
    assert equal(weights(networks[0]), weights(networks[2]))
    with pytest.warns(UserWarning, match="nothing in 1 step,"):
        assert watched.skipped_steps == 1


@pytest.mark.parametrize("name", [START, *SPECIALISTS])
def test_a_bare_step_does_with_a_shipped_schedule_that_sees_no_loss(name: str) -> None:
    torch.manual_seed(0)
    network = small_network() if name == START else resnet(18, width=4, in_chans=1, num_classes=3)
    x, y = (batch(0)) if name == START else (torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0]))
    optimizer = L3RS(network.named_parameters(), 20, name)
    F.cross_entropy(network(x), y).backward()
    before = weights(network)
    optimizer.step()
    assert not equal(before, weights(network))


@pytest.mark.parametrize("name", ["icons-generalist", PAPER_SPECIALIST])
def test_a_shipped_schedule_that_sees_the_loss_still_asks_for_it(name: str) -> None:
    network = small_network() if name == "icons-generalist" else resnet(18, width=4, in_chans=1, num_classes=3)
    optimizer = L3RS(network.named_parameters(), 20, name)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"L3RS watches the loss: call step\(loss=loss\)"):
        optimizer.step()


def test_a_wrapper_that_imitates_the_class_hands_the_loss_to_the_optimizer_in_it() -> None:
    """As those of Lightning do: it has the methods of the optimizer, and not its attributes."""

    class Wrapper:
        def __init__(self, optimizer: L3RS) -> None:
            self.optimizer = optimizer
            self.__class__ = type("Wrapped", (Wrapper, L3RS), {})

        def step(self) -> None:
            self.optimizer.step()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.optimizer, name)

    network: nn.Module = small_network()
    wrapper: Any = Wrapper(L3RS(network.named_parameters(), 20, "icons-generalist"))
    for k in range(2):
        wrapper.observe(9.0)
        wrapper.zero_grad()
        loss = backward(network, k)
        wrapper.observe(loss)
        wrapper.step()
    plain = small_network()
    train(plain, L3RS(plain.named_parameters(), 20, "icons-generalist"), range(2))
    assert equal(weights(plain), weights(network))
