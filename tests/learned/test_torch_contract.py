"""The contract of torch.optim, for VeLO, Celo, the forms of Celo2 and small_fc_lopt, with random meta-parameters."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import backward, batch, equal, small_network, train, weights
from forms import FORMS, WATCHING, every_form, finite, make, states, theta
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F

from l3rs.learned import Celo2, VeLO
from l3rs.learned.base import LearnedRule
from l3rs.learned.celo2 import SHAPES
from l3rs.learned.elements import library
from l3rs.learned.theta import MODULE, flatten, unflatten

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
        with pytest.raises(ValueError, match=rf"the loss must be one number, .*\(got shape \({shape[0]}"):
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


@pytest.mark.parametrize("fused", [None, False])
@every_form
def test_no_default_device_matters(form: str, fused: bool | None) -> None:
    ends = []
    for default in ("cpu", "meta"):
        network = small_network()
        theta(FORMS[form][0])
        with torch.device(default):
            optimizer = make(form, network.parameters(), fused=fused)
        for k in range(2):
            backward(network, k)
            with torch.device(default):
                optimizer.step(loss=1.0)
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                network, optimizer = copy.deepcopy((network, optimizer))
        ends.append(weights(network))
    assert equal(*ends)


@pytest.mark.parametrize("fused", [None, False])
@every_form
def test_a_step_within_autocast_is_as_without(form: str, fused: bool | None) -> None:
    networks = [small_network(), small_network()]
    for network, enabled in zip(networks, (False, True), strict=True):
        optimizer = make(form, network.parameters(), fused=fused)
        for k in range(2):
            backward(network, k)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step(loss=1.0)
    assert equal(weights(networks[0]), weights(networks[1]))


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


@pytest.mark.parametrize("form", WATCHING)
def test_a_group_added_in_the_run_has_the_length_of_the_run_unless_it_sets_its_own(form: str) -> None:
    def params() -> dict[str, Any]:
        return {"params": [nn.Parameter(torch.ones(2, 2))]}

    optimizer = make(form, [{**params(), "total_steps": 30}, params()], total_steps=20)
    assert [group["total_steps"] for group in optimizer.param_groups] == [30, 20]
    loaded = make(form, [params(), params()], total_steps=5)
    with pytest.warns(UserWarning, match="a run of total_steps=30; that takes the place of 5"):
        loaded.load_state_dict(optimizer.state_dict())
    loaded.add_param_group(params())
    copied = copy.deepcopy(loaded)
    copied.add_param_group(params())
    loaded.add_param_group({**params(), "total_steps": 7})
    assert [group["total_steps"] for group in copied.param_groups] == [30, 20, 30, 30]
    assert [group["total_steps"] for group in loaded.param_groups] == [30, 20, 30, 7]


@every_form
def test_a_group_that_does_not_fit_leaves_the_optimizer_as_it_was(form: str) -> None:
    network = small_network()
    optimizer = make(form, network.parameters())
    for group, error, message in (
        ({"params": [nn.Parameter(torch.zeros(3))], "lr": -1.0}, ValueError, r"lr must be .*\(got -1\.0\)"),
        ({"params": [nn.Parameter(torch.zeros(3, dtype=torch.complex64))]}, TypeError, r"shape \(3,\) is torch\.complex64"),
        ({"params": [network[4].weight]}, ValueError, "more than one parameter group"),
    ):
        with pytest.raises(error, match=message):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    train(network, optimizer, range(1))


# -- options -----------------------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    *(("Celo2", {"lr": lr}, rf"lr must be a finite number of at least 0 \(got {lr!r}\)") for lr in (-1.0, math.nan, math.inf, "1")),
    ("VeLO", {"lr": -0.5}, r"lr must be a finite number of at least 0 \(got -0\.5\)"),
    *(("Celo2", {name: -0.5}, rf"{name} must be a finite number of at least 0 \(got -0\.5\)") for name in ("weight_decay", "adam_lr_mult")),
    *(
        ("Celo2", {name: math.nan}, rf"{name} must be a finite number of at least 0 \(got nan\)")
        for name in ("weight_decay", "adam_lr_mult")
    ),
    ("Celo2", {"weight_decay": "0.1"}, r"weight_decay must be a finite number of at least 0 \(got '0\.1'\)"),
    ("Celo2", {"vectors": "adamax"}, r"vectors must be one of adamw, adam, learned \(got 'adamax'\)"),
    ("Celo2", {"adam_names": "embed"}, r"adam_names is 'embed', and the parameters have no names: pass model\.named_parameters\(\)"),
    *(
        (form, {"total_steps": k}, rf"total_steps must be a whole number of at least 1, .*\(got {k!r}\)")
        for form in WATCHING
        for k in (0, -3, 2.5, True, None)
    ),
    *(("Celo2", {"total_steps": k}, rf"total_steps must be a whole number of at least 1, .*\(got {k!r}\)") for k in (0, 2.5, "9")),
    *((form, {"maximize": "False"}, r"maximize must be True or False \(got 'False'\)") for form in FORMS),
    *((form, {"theta": torch.zeros(7)}, r"theta has shape \(7,\); there are") for form in ("Celo2", "VeLO", "Celo")),
    ("Celo2", {"theta": theta(Celo2).clone().fill_(math.nan)}, r"theta holds numbers that are not finite \(\d+ of \d+\)"),
]


@pytest.mark.parametrize(("form", "options", "message"), OPTIONS)
def test_options_that_make_no_sense_are_named(form: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(form, small_network().parameters(), **options)


def test_numbers_of_numpy_are_options_like_any_others() -> None:
    group = make("Celo2", small_network().parameters(), weight_decay=np.float32(0.5), adam_lr_mult=np.int64(3)).param_groups[0]
    assert (group["weight_decay"], group["adam_lr_mult"]) == (0.5, 3.0)
    assert (type(group["weight_decay"]), type(group["adam_lr_mult"])) == (float, float)


@every_form
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_real_floating_ones_are_refused(form: str, dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.zeros(2, 3, dtype=dtype), requires_grad=False)
    with pytest.raises(TypeError, match=rf"shape \(2, 3\) is {dtype}; {FORMS[form][0].__name__} steps real floating parameters"):
        make(form, [p])


@every_form
def test_sharded_parameters_are_refused_with_the_cure(form: str, tmp_path: Path) -> None:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        sharded = nn.Parameter(distribute_tensor(torch.ones(4, 3), init_device_mesh("cpu", (1,)), [Shard(0)]))
        optimizer = make(form, small_network().parameters())
        message = rf"shape \(4, 3\) is sharded .* {FORMS[form][0].__name__} takes whole ones: .*DistributedDataParallel, or take L3RS"
        for call in (lambda: make(form, [sharded]), lambda: optimizer.add_param_group({"params": [sharded]})):
            with pytest.raises(ValueError, match=message):
                call()
        assert len(optimizer.param_groups) == 1
    finally:
        destroy_process_group()


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
def test_torch_operations_are_taken_where_they_are_asked_for(form: str) -> None:
    """As users see it: the steps are those of compiled code but for rounding. Copies ask for the same."""
    ends = []
    for fused in (None, False):
        network = small_network()
        optimizer = copy.deepcopy(make(form, network.parameters(), fused=fused))
        network = nn.ParameterList([p for group in optimizer.param_groups for p in group["params"]])
        for k in range(3):
            for p in network:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
            optimizer.step(loss=1.0)
        compiled = library() is not None and fused is not False and any("momentum" in optimizer.state[p] for p in network)
        assert bool(optimizer._portions._kernels) == compiled
        ends.append(weights(network))
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@every_form
def test_compiled_code_is_refused_where_there_is_none_for_a_parameter(form: str) -> None:
    wrong = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    message = r"fused=True, but no compiled code steps a parameter of shape \(4, 3\), torch.float64 on cpu"
    with pytest.raises(ValueError, match=message):
        make(form, [wrong], fused=True)
    if library() is not None:
        optimizer = make(form, [nn.Parameter(torch.zeros(4, 3))], fused=True)
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [wrong]})
        assert len(optimizer.param_groups) == 1
        assert wrong not in optimizer.state
        wrong.requires_grad_(False)  # frozen, it is nobody's
        optimizer.add_param_group({"params": [wrong]})
        wrong.requires_grad_(True)
        before = copy.deepcopy(optimizer.state_dict())
        wrong.grad = torch.ones_like(wrong)
        with pytest.raises(ValueError, match=message):
            optimizer.step(loss=1.0)
        assert optimizer.state_dict()["param_groups"] == before["param_groups"]


@pytest.mark.skipif(library() is None, reason="elements.c was not built")
def test_compiled_code_is_not_asked_for_what_adam_moves() -> None:
    vector = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = make("Celo2", [nn.Parameter(torch.zeros(4, 3)), vector], fused=True)
    vector.grad = torch.ones_like(vector)
    optimizer.step()
    assert vector.detach().all()


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
