"""The contract of torch.optim, for VeLO, Celo, the forms of Celo2 and small_fc_lopt, with random meta-parameters."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import backward, batch, equal, small_network, train, weights
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import functional as F

from l3rs.learned import Celo, Celo2, SmallFC, VeLO, small_fc
from l3rs.learned.base import LearnedRule
from l3rs.learned.celo2 import SHAPES
from l3rs.learned.theta import MODULE, flatten, random, unflatten

# Of random meta-parameters the learning rates of VeLO and Celo have to be large for a step to be seen in bfloat16.
FORMS: dict[str, tuple[type[LearnedRule], dict[str, Any]]] = {
    "Celo2": (Celo2, {"lr": 0.02}),
    "Celo2 adam": (Celo2, {"lr": 0.005, "vectors": "adam", "weight_decay": 0.1}),
    "Celo2-base": (Celo2, {"lr": 0.02, "orthogonalize": False, "vectors": "learned"}),
    "VeLO": (VeLO, {"lr": 3000.0, "total_steps": 12}),
    "Celo": (Celo, {"lr": 1000.0, "total_steps": 12}),
    "SmallFC": (SmallFC, {"lr": 20.0}),
}
WATCHING = ["VeLO", "Celo"]
every_form = pytest.mark.parametrize("form", FORMS)


@cache
def theta(of: type[LearnedRule]) -> Tensor:
    """No biases of zero, which may leave an MLP dead."""
    shapes = {Celo2: SHAPES, SmallFC: small_fc.SHAPES}.get(of) or of.FORM.shapes  # type: ignore[attr-defined]
    drawn = random(shapes, 0)
    return drawn + 0.05 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))


def make(form: str, params: Iterable[Any], **options: Any) -> LearnedRule:
    of, usual = FORMS[form]
    return of(params, **{"theta": theta(of), **usual, **options})  # type: ignore[arg-type]


def states(optimizer: LearnedRule) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.clone() for p in params if p in optimizer.state for _, t in sorted(optimizer.state[p].items())]


def finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


# -- steps -------------------------------------------------------------------------------------------------------------------------


@every_form
def test_random_meta_parameters_move_every_parameter_and_nothing_runs_away(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    train(network, optimizer, range(8))
    assert not any(torch.equal(a, b) for a, b in zip(weights(small_network()), weights(network), strict=True))
    assert finite([*weights(network), *states(optimizer)])
    assert optimizer.param_groups[0]["step"] == 8
    assert optimizer.skipped_steps == 0


def downhill(of: type[LearnedRule]) -> Tensor:
    """An MLP whose direction is its first feature, the gradient; the LSTM does nothing."""
    shapes = SHAPES if of is Celo2 else of.FORM.shapes  # type: ignore[attr-defined]
    t = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for leaf, where in (("w0__0", (0, 0)), ("w1", (0, 0)), ("w1", (1, 1)), ("w2", (0, 0))):
        t[MODULE + leaf][(..., *where)] = 1.0
    t[f"{MODULE}w0__0"][..., 0, 1] = t[f"{MODULE}w2"][..., 1, 0] = -1.0
    if of is VeLO:
        for leaf in ("w0__0", "w1", "w2"):
            t[MODULE + leaf] /= 100.0
        t["rnn_params/rnn_to_controls/b"] += 1.0
        t["rnn_params/step_size/b"] += 1.0
    return flatten(t, shapes)


@pytest.mark.parametrize(("form", "lr"), [("Celo2", 0.02), ("Celo2 adam", 0.005), ("Celo2-base", 0.01), ("VeLO", 50.0), ("Celo", 500.0)])
def test_meta_parameters_that_follow_the_gradient_lower_the_loss(form: str, lr: float) -> None:
    network = small_network()
    optimizer = make(form, network.parameters(), theta=downhill(FORMS[form][0]), lr=lr)
    losses = []
    for _ in range(30):
        losses.append(backward(network, 0))
        optimizer.step(loss=losses[-1])
    assert losses[-1] < 0.6 * losses[0]


@every_form
def test_gradients_stay_as_they_are(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters(), maximize=True)
    loss = backward(network, 0)
    before = [p.grad.clone() for p in network.parameters()]
    optimizer.step(loss=loss)
    assert equal(before, [p.grad for p in network.parameters()])


@every_form
def test_a_learning_rate_of_zero_moves_nothing(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters(), lr=0.0)
    before, state = weights(network), states(optimizer)
    train(network, optimizer, range(2))
    assert equal(before, weights(network))
    assert not equal(state, states(optimizer))


@every_form
def test_a_learning_rate_in_a_tensor_is_read_at_each_step(form: str) -> None:
    lr = torch.tensor(FORMS[form][1]["lr"])
    network, plain = small_network(), small_network()
    optimizer, reference = make(form, network.parameters(), lr=lr), make(form, plain.parameters())
    for k in range(3):
        train(network, optimizer, range(k, k + 1))
        train(plain, reference, range(k, k + 1))
        for p, q in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        lr.div_(2)
        reference.param_groups[0]["lr"] = lr.item()
    resumed = make(form, network.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["lr"] == lr
    assert resumed.param_groups[0]["lr"] is not lr


@every_form
def test_a_scheduler_drives_it(form: str) -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = make(form, network.parameters()), make(form, plain.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    usual = FORMS[form][1]["lr"]
    for k in range(5):
        before = weights(network)
        reference.param_groups[0]["lr"] = scheduler.get_last_lr()[0]
        assert scheduler.get_last_lr()[0] == pytest.approx(usual * (1 + math.cos(math.pi * k / 4)) / 2)
        train(network, optimizer, range(k, k + 1))
        train(plain, reference, range(k, k + 1))
        scheduler.step()
        assert equal(weights(network), weights(plain))
        assert equal(before, weights(network)) == (k == 4)


@every_form
def test_maximizing_is_minimizing_the_negative(form: str) -> None:
    up, down = small_network(), small_network()
    pairs = ((up, make(form, up.parameters(), maximize=True), -1.0), (down, make(form, down.parameters()), 1.0))
    for k in range(4):
        for network, optimizer, sign in pairs:
            network.zero_grad()
            loss = sign * F.cross_entropy(network(batch(k)[0]), batch(k)[1])
            loss.backward()
            optimizer.step(loss=loss)
    assert equal(weights(up), weights(down))
    assert not equal(weights(up), weights(small_network()))


@every_form
def test_a_closure_is_called_once_with_gradients_and_its_value_is_returned(form: str) -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = make(form, network.parameters()), make(form, plain.parameters())
    calls = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        calls.append(backward(network, len(calls)))
        return calls[-1]

    for k in range(3):
        with torch.no_grad():
            assert optimizer.step(closure) is calls[-1]
        assert len(calls) == k + 1
        assert not torch.is_inference_mode_enabled()
    train(plain, reference, range(3))
    assert equal(weights(network), weights(plain))
    assert optimizer.step(loss=1.0) is None


@every_form
def test_grad_scaler_hands_the_loss_on_and_skips_overflow(form: str) -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = make(form, network.parameters()), make(form, plain.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for k in range(3):
        network.zero_grad()
        loss = F.cross_entropy(network(batch(k)[0]), batch(k)[1])
        scaler.scale(loss).backward()
        if k == 2:
            network[4].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer, loss=loss)
        scaler.update()
    train(plain, reference, range(2))
    assert equal(weights(network), weights(plain))  # 1024 is a power of two
    assert optimizer.skipped_steps == 0  # the scaler skipped it


# -- the loss ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", WATCHING)
def test_the_loss_has_to_be_given_and_be_one_number(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    loss = backward(network, 0)
    before, state = weights(network), states(optimizer)
    for call in (optimizer.step, lambda: optimizer.step(lambda: None)):
        with pytest.raises(ValueError, match=rf"{form} watches the loss: call step\(loss=loss\)"):
            call()
    for shape in ((2,), (0,), (1, 3)):
        with pytest.raises(ValueError, match=rf"the loss has shape \({shape[0]}.*\); it is one number"):
            optimizer.step(loss=torch.ones(shape))
    assert equal([*before, *state], [*weights(network), *states(optimizer)])
    assert optimizer.param_groups[0]["step"] == 0
    ends = []
    for given in (loss, loss.item(), loss.detach().view(1, 1)):
        other = copy.deepcopy(network)
        for p, q in zip(other.parameters(), network.parameters(), strict=True):
            p.grad = q.grad.clone()
        make(form, other.parameters()).step(loss=given)
        ends.append(weights(other))
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])


@pytest.mark.parametrize("form", WATCHING)
def test_the_loss_is_seen(form: str) -> None:
    ends = []
    for later in (1.0, 0.2):
        network = small_network()
        optimizer = make(form, network.parameters())
        for k in range(4):
            backward(network, k)
            optimizer.step(loss=1.0 if k < 2 else later)
        ends.append(weights(network))
    assert not equal(*ends)


@pytest.mark.parametrize("form", WATCHING)
@pytest.mark.parametrize("wrong", ["no gradient", "nan"])
def test_averages_of_the_loss_start_at_the_first_that_is_seen(form: str, wrong: str) -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = make(form, network.parameters()), make(form, plain.parameters())
    if wrong == "nan":
        backward(network, 0)
        with pytest.warns(UserWarning, match="moved nothing"):
            optimizer.step(loss=float("nan"))
    else:
        optimizer.step(loss=9.0)
    for k, loss in enumerate((3.0, 2.0, 2.5)):
        backward(network, k)
        backward(plain, k)
        optimizer.step(loss=loss)
        reference.step(loss=loss)
    ours, theirs = (of.param_groups[0] for of in (optimizer, reference))
    assert (ours["loss_means"], ours["loss_least"]) == (theirs["loss_means"], theirs["loss_least"])
    assert min(ours["loss_means"]) > 0
    assert (ours["step"], theirs["step"]) == (4, 3)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in WATCHING])
def test_celo2_needs_no_loss_and_does_not_watch_it(form: str) -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = make(form, network.parameters()), make(form, plain.parameters())
    backward(network, 0)
    backward(plain, 0)
    optimizer.step()
    reference.step(loss=float("nan"))
    assert equal(weights(network), weights(plain))
    assert reference.skipped_steps == 0


BROKEN = [(form, wrong) for form in FORMS for wrong in ("nan gradient", "-inf gradient", "nan loss", "inf loss")]


@pytest.mark.parametrize(("form", "wrong"), [(form, wrong) for form, wrong in BROKEN if "gradient" in wrong or form in WATCHING])
def test_what_is_not_finite_moves_nothing_and_only_the_clock_goes_on(form: str, wrong: str) -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = make(form, network.parameters()), make(form, plain.parameters())
    value = float(wrong.split()[0])
    for k in range(5):
        if k in (0, 3):
            loss = backward(network, k)
            if "gradient" in wrong:
                network[4].weight.grad[0, 0] = value
            else:
                loss = loss * value
            before = [*weights(network), *states(optimizer)]
            said = rf"{type(optimizer).__name__} moved nothing in a step whose loss or gradient was not finite \({1 + (k > 0)} so far\)"
            with pytest.warns(UserWarning, match=said) as caught:
                optimizer.step(loss=loss)
            assert caught[0].filename == __file__
            assert equal(before, [*weights(network), *states(optimizer)])
            reference.param_groups[0]["step"] += 1
        train(network, optimizer, range(k, k + 1))
        train(plain, reference, range(k, k + 1))
    assert optimizer.skipped_steps == 2
    assert finite(weights(network))
    assert equal(weights(network), weights(plain))
    assert {**optimizer.param_groups[0], "params": 0} == {**reference.param_groups[0], "params": 0, "skipped": 2}


@every_form
def test_the_count_of_skipped_steps_is_kept_with_the_state(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    backward(network, 0)
    network[4].weight.grad[0, 0] = math.nan
    with pytest.warns(UserWarning, match="moved nothing"):
        optimizer.step(loss=1.0)
    fresh = make(form, network.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.skipped_steps == 1


# -- resume ------------------------------------------------------------------------------------------------------------------------


def directly(state: dict[str, Any], fresh: LearnedRule, folder: Path) -> None:
    before = copy.deepcopy(state)
    fresh.load_state_dict(state)
    fresh.load_state_dict(state)  # twice
    assert state["param_groups"] == before["param_groups"]
    assert all(torch.equal(t, before["state"][i][k]) for i, s in state["state"].items() for k, t in s.items())


def through_file(state: dict[str, Any], fresh: LearnedRule, folder: Path) -> None:
    torch.save(state, folder / "optimizer.pt")
    fresh.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))


def through_distributed_checkpoint(state: dict[str, Any], fresh: LearnedRule, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no process group is there
        dcp.save({"optimizer": state}, checkpoint_id=folder / "dcp")
        place = {"optimizer": fresh.state_dict()}
        dcp.load(place, checkpoint_id=folder / "dcp")
    fresh.load_state_dict(place["optimizer"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", [directly, through_file, through_distributed_checkpoint])
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
def test_a_state_of_another_network_is_refused(form: str) -> None:
    narrow, wide = nn.Linear(3, 4), nn.Linear(5, 4)
    with pytest.raises(ValueError, match="or network; what differs"):
        make(form, narrow.parameters()).load_state_dict(make(form, wide.parameters()).state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        make(form, narrow.parameters()).load_state_dict(make(form, [narrow.weight]).state_dict())


# -- groups ------------------------------------------------------------------------------------------------------------------------


@every_form
def test_groups_have_their_own_learning_rate(form: str) -> None:
    network, plain = small_network(), small_network()
    named, usual = list(network.named_parameters()), FORMS[form][1]["lr"]
    optimizer = make(form, [{"params": named[:3], "lr": 0.0}, {"params": named[3:], "lr": 2 * usual}])
    train(network, optimizer, range(1))
    train(plain, make(form, plain.parameters()), range(1))
    for i, (p, q, start) in enumerate(zip(network.parameters(), plain.parameters(), small_network().parameters(), strict=True)):
        torch.testing.assert_close(p - start, (0.0 if i < 3 else 2.0) * (q - start), rtol=1e-3, atol=1e-6)


@every_form
def test_frozen_parameters_have_no_state_and_are_stepped_once_thawed(form: str) -> None:
    network = small_network()
    frozen = network[0].weight
    frozen.requires_grad_(False)
    optimizer = make(form, network.parameters())
    before = frozen.clone()
    train(network, optimizer, range(2))
    assert torch.equal(before, frozen)
    assert frozen not in optimizer.state
    assert network[4].weight in optimizer.state
    frozen.requires_grad_(True)
    train(network, optimizer, range(2, 4))
    assert not torch.equal(before, frozen)
    assert finite(weights(network))
    fresh = make(form, network.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    assert equal(states(fresh), states(optimizer))


@every_form
def test_a_parameter_without_a_gradient_waits(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    waiting = network[4].weight
    for k in range(4):
        loss = backward(network, k)
        if k % 2:
            waiting.grad = None
        before, state = waiting.detach().clone(), copy.deepcopy(optimizer.state[waiting])
        optimizer.step(loss=loss)
        assert torch.equal(before, waiting) == bool(k % 2)
        assert all(torch.equal(t, optimizer.state[waiting][key]) for key, t in state.items()) == bool(k % 2)
    network.zero_grad()
    before_all = weights(network)
    optimizer.step(loss=1.0)  # nothing has one: the clock goes on
    assert equal(before_all, weights(network))
    assert optimizer.param_groups[0]["step"] == 5


@every_form
def test_a_group_added_in_the_run_shares_its_clock_and_is_saved(form: str) -> None:
    network = small_network()
    params = list(network.parameters())
    optimizer = make(form, params[-2:])
    train(network, optimizer, range(2))
    optimizer.add_param_group({"params": params[:-2], "lr": FORMS[form][1]["lr"] / 2})
    assert [group["step"] for group in optimizer.param_groups] == [2, 2]
    before = weights(network)
    train(network, optimizer, range(2, 4))
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(network), strict=True))
    resumed = copy.deepcopy(network)
    again = list(resumed.parameters())
    fresh = make(form, [{"params": again[-2:]}, {"params": again[:-2]}])
    fresh.load_state_dict(optimizer.state_dict())
    train(network, optimizer, range(4, 6))
    train(resumed, fresh, range(4, 6))
    assert equal(weights(network), weights(resumed))


@every_form
def test_a_group_that_does_not_fit_leaves_the_optimizer_as_it_was(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    for group, error, message in (
        ({"params": [nn.Parameter(torch.zeros(3))], "lr": -1.0}, ValueError, r"lr is -1\.0"),
        ({"params": [nn.Parameter(torch.zeros(3, dtype=torch.complex64))]}, TypeError, r"shape \(3,\) is torch\.complex64"),
        ({"params": [network[4].weight]}, ValueError, "more than one parameter group"),
    ):
        with pytest.raises(error, match=message):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    train(network, optimizer, range(1))


# -- options -----------------------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    *(("Celo2", {"lr": lr}, rf"lr is {lr!r}; it is a number of at least 0") for lr in (-1.0, math.nan, math.inf, "1")),
    ("VeLO", {"lr": -0.5}, r"lr is -0\.5; it is a number of at least 0"),
    *(("Celo2", {name: -0.5}, rf"{name} is -0\.5; it is a number of at least 0") for name in ("weight_decay", "adam_lr_mult")),
    *(("Celo2", {name: math.nan}, rf"{name} is nan; it is a number of at least 0") for name in ("weight_decay", "adam_lr_mult")),
    ("Celo2", {"weight_decay": "0.1"}, r"weight_decay is '0\.1'; it is a number of at least 0"),
    ("Celo2", {"vectors": "adamax"}, "vectors is 'adamax'; it is one of adamw, adam, learned"),
    ("Celo2", {"adam_names": "embed"}, r"adam_names is 'embed', and the parameters have no names: pass model\.named_parameters\(\)"),
    *((form, {"total_steps": k}, rf"total_steps is {k!r}; it is a whole number") for form in WATCHING for k in (0, -3, 2.5, True, None)),
    *((form, {"theta": torch.zeros(7)}, r"theta has shape \(7,\); this optimizer has") for form in ("Celo2", "VeLO", "Celo")),
]


@pytest.mark.parametrize(("form", "options", "message"), OPTIONS)
def test_options_that_make_no_sense_are_named(form: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(form, small_network().parameters(), **options)


@every_form
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_real_floating_ones_are_refused(form: str, dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.zeros(2, 3, dtype=dtype), requires_grad=False)
    with pytest.raises(TypeError, match=rf"shape \(2, 3\) is {dtype}; {FORMS[form][0].__name__} steps real floating parameters"):
        make(form, [p])


@every_form
def test_sparse_gradients_are_refused(form: str) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = make(form, table.parameters())
    loss = table(torch.tensor([1, 2])).sum()
    loss.backward()
    before = weights(table)
    with pytest.raises(ValueError, match=rf"shape \(5, 3\) is torch\.sparse_coo; {FORMS[form][0].__name__} takes dense ones"):
        optimizer.step(loss=loss)
    assert equal(before, weights(table))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adam_moves_what_is_named(dtype: torch.dtype) -> None:
    layers = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 3), "late": nn.Embedding(4, 3)}).to(dtype)
    late = layers["late"].weight.requires_grad_(False)
    optimizer = make("Celo2", layers.named_parameters(), adam_names="embed|late")
    late.requires_grad_(True)
    for p in layers.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    by_adam = {name for name, p in layers.named_parameters() if "adam/m" in optimizer.state[p]}
    assert by_adam == {"embed.weight", "out.bias", "late.weight"}
    assert set(optimizer.state[layers["out"].weight]) == {"momentum", "second", "row", "col"}


def test_adamw_of_vectors_is_that_of_torch() -> None:
    p, q = (nn.Parameter(torch.linspace(-1, 1, 9)) for _ in range(2))
    optimizer = Celo2([p], theta(Celo2), lr=0.01, weight_decay=0.1, adam_lr_mult=3.0)
    reference = torch.optim.AdamW([q], lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        p.grad = torch.randn(9)
        q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_adam_of_vectors_is_not_corrected_and_takes_twenty_times_the_learning_rate() -> None:
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, -4.0])
    Celo2([p], theta(Celo2), lr=0.01, vectors="adam").step()
    torch.testing.assert_close(p.detach(), -0.2 * 0.1 / 0.05**0.5 * torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("form", ["Celo2", "Celo2-base"])
def test_weight_decay_is_decoupled(form: str) -> None:
    network, plain = small_network(), small_network()
    train(network, make(form, network.parameters(), weight_decay=0.5), range(1))
    train(plain, make(form, plain.parameters()), range(1))
    for p, q, start in zip(network.parameters(), plain.parameters(), small_network().parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.02 * 0.5 * start, rtol=1e-4, atol=1e-6)


# -- shapes and layouts ------------------------------------------------------------------------------------------------------------

SIZES: list[tuple[int, ...]] = [(), (1,), (5,), (1, 1), (3, 4), (3, 4, 2), (2, 3, 2, 2), (2, 3, 1, 2, 2), (3, 2, 9, 9)]
EMPTY: list[tuple[int, ...]] = [(0,), (0, 3), (3, 0, 2, 2)]


def filled(sizes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype)) for i, size in enumerate(sizes)]


def step(params: list[nn.Parameter], optimizer: LearnedRule, k: int) -> None:
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * k + i)).to(p)
    optimizer.step(loss=1.0)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_parameters_of_any_number_of_axes(form: str, dtype: torch.dtype) -> None:
    params = filled([*SIZES, *EMPTY], dtype)
    alone = filled(SIZES, dtype)
    optimizer, reference = make(form, params), make(form, alone)
    before = [p.detach().clone() for p in params]
    for k in range(3):  # an odd number: Celo2 moves a single element by lr, up or down
        step(params, optimizer, k)
        step(alone, reference, k)
    for p, start in zip(params, before, strict=True):
        assert (p.shape, p.dtype) == (start.shape, dtype)
        assert finite([p])
        assert not p.numel() or dtype.itemsize == 2 or not torch.equal(p, start), p.shape
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=False))  # as if there were no empty ones
    assert {t.dtype for t in states(optimizer) if t.dim()} == {torch.promote_types(dtype, torch.float32)}  # but Adam's count
    fresh = make(form, params)
    fresh.load_state_dict(optimizer.state_dict())
    step(params, fresh, 3)


@every_form
def test_nothing_but_empty_parameters(form: str) -> None:
    params = filled(EMPTY)
    optimizer = make(form, params)
    step(params, optimizer, 0)
    assert optimizer.skipped_steps == 0


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_stepped_in_float32(form: str, dtype: torch.dtype) -> None:
    half, single = filled(SIZES, dtype), [nn.Parameter(p.detach().float()) for p in filled(SIZES, dtype)]
    for params in (half, single):
        optimizer = make(form, params)
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(dtype).to(p)
        optimizer.step(loss=1.0)
    for p, q in zip(half, single, strict=True):
        torch.testing.assert_close(p, q.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


@every_form
def test_layouts_in_memory_are_the_same_training(form: str) -> None:
    last, plain = small_network().to(memory_format=torch.channels_last), small_network()
    for network in (last, plain):
        with torch.no_grad():
            if network is last:
                network[4].weight = nn.Parameter(network[4].weight.T.contiguous().T)
    assert not last[4].weight.is_contiguous()
    a, b = make(form, last.parameters()), make(form, plain.parameters())
    for k in range(3):
        for network, optimizer in ((last, a), (plain, b)):
            for i, p in enumerate(network.parameters()):
                g = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * k + i))
                p.grad = torch.empty_like(p).copy_(g)
            optimizer.step(loss=1.0)
    for p, q, start in zip(last.parameters(), plain.parameters(), small_network().parameters(), strict=True):
        assert ((p - q).norm() / (q - start).norm()).item() < 1e-4
    assert not last[4].weight.is_contiguous()


def test_a_vector_of_meta_parameters_by_name_is_what_is_stepped_with() -> None:
    """That a test here with random meta-parameters can tell them apart."""
    network, other = small_network(), small_network()
    changed = unflatten(theta(Celo2).clone(), SHAPES)
    changed[f"{MODULE}w0__13"][2, 7] += 1.0
    train(network, make("Celo2-base", network.parameters()), range(2))
    train(other, make("Celo2-base", other.parameters(), theta=flatten(changed, SHAPES)), range(2))
    assert not equal(weights(network), weights(other))
