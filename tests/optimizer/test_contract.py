"""The contract of torch.optim, clause by clause, and the habits of training loops."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import backward, batch, equal, random_schedule, small_network, train, weights
from resuming import WAYS
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import functional as F

from l3rs import L3RS, LearnedSchedule

ALL = ("sgd", "adam", "adamax", "lion", "lamb", "weight_decay")


def schedule(network: nn.Module, **config: object) -> LearnedSchedule:
    return random_schedule(network, scale=0.1, **{"lr0": 2e-3, **config})


# -- resume ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", [0, 1, 7])
def test_resume_is_bit_equal(way: Callable[..., None], dtype: torch.dtype, after: int, tmp_path: Path) -> None:
    straight = small_network(dtype)
    learned = schedule(straight, directions=ALL)
    optimizer = L3RS(straight.named_parameters(), 12, learned)
    train(straight, optimizer, range(after))
    resumed = copy.deepcopy(straight)
    fresh = L3RS(resumed.named_parameters(), 12, learned)
    way(copy.deepcopy(optimizer.state_dict()), fresh, tmp_path)
    middle = weights(straight)
    train(straight, optimizer, range(after, 12))
    train(resumed, fresh, range(after, 12))
    assert equal(weights(straight), weights(resumed))
    assert not equal(middle, weights(straight))
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert value.dtype == torch.float32
            assert torch.equal(value, fresh.state[q][key]), key


def test_stepping_leaves_the_dict_that_was_loaded_as_it_was() -> None:
    network = small_network()
    learned = schedule(network)
    optimizer = L3RS(network.named_parameters(), 12, learned)
    train(network, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(state)
    fresh = L3RS(network.named_parameters(), 12, learned)
    fresh.load_state_dict(state)
    train(network, fresh, range(3, 6))
    assert all(torch.equal(t, before["state"][i][k]) for i, s in state["state"].items() for k, t in s.items())


def test_distributed_state_dicts_by_name(tmp_path: Path) -> None:
    """The functions of torch.distributed.checkpoint that name parameters, into an optimizer that has not stepped yet."""
    network = small_network()
    learned = schedule(network)
    optimizer = L3RS(network.named_parameters(), 12, learned)
    train(network, optimizer, range(4))
    saved = get_optimizer_state_dict(network, optimizer)
    assert set(saved["state"]) == {name for name, _ in network.named_parameters()}
    resumed = copy.deepcopy(network)
    fresh = L3RS(resumed.named_parameters(), 12, learned)
    set_optimizer_state_dict(resumed, fresh, copy.deepcopy(saved))
    train(network, optimizer, range(4, 8))
    train(resumed, fresh, range(4, 8))
    assert equal(weights(network), weights(resumed))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_of_the_object_itself_go_on_alike(clone: Callable[[Any], Any]) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 12, schedule(network))
    train(network, optimizer, range(4))
    other_network, other = clone((network, optimizer))
    train(network, optimizer, range(4, 8))
    middle = weights(other_network)
    train(other_network, other, range(4, 8))
    assert not equal(middle, weights(network))  # the copy stood still
    assert equal(weights(network), weights(other_network))


def test_a_state_of_another_schedule_is_refused() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 12, schedule(network))
    train(network, optimizer, range(1))
    other = L3RS(network.named_parameters(), 12, schedule(network, directions=("sgd", "lion")))
    with pytest.raises(ValueError, match="another kind of schedule; what differs: adam/exp_avg"):
        other.load_state_dict(optimizer.state_dict())
    other = L3RS(network.named_parameters(), 12, schedule(network, ema_factors=(0.9,)))
    with pytest.raises(ValueError, match="what differs: ema"):
        other.load_state_dict(optimizer.state_dict())


def test_another_total_is_said_when_a_state_is_loaded() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 12, schedule(network))
    other = L3RS(network.named_parameters(), 20, schedule(network))
    with pytest.warns(UserWarning, match="total_steps=12; that takes the place of 20"):
        other.load_state_dict(optimizer.state_dict())


# -- groups ------------------------------------------------------------------------------------------------------------------------


def test_groups_have_their_own_multiplier() -> None:
    network = small_network()
    named = list(network.named_parameters())
    optimizer = L3RS([{"params": named[:3], "lr": 0.0}, {"params": named[3:], "lr": 2.0}], 10, schedule(network))
    plain = small_network()
    reference = L3RS(plain.named_parameters(), 10, schedule(plain))
    train(network, optimizer, range(1))
    train(plain, reference, range(1))
    for i, (p, q, start) in enumerate(zip(network.parameters(), plain.parameters(), small_network().parameters(), strict=True)):
        torch.testing.assert_close(p - start, (0.0 if i < 3 else 2.0) * (q - start), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_schedulers_drive_the_multiplier(as_tensor: bool) -> None:
    network = small_network()
    named = list(network.named_parameters())
    lr = torch.tensor(1.0) if as_tensor else 1.0
    optimizer = L3RS([{"params": named[:2]}, {"params": named[2:]}], 10, schedule(network), lr=lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 if k < 2 else 0.0)
    for k in range(4):
        before = weights(network)
        train(network, optimizer, range(k, k + 1))
        scheduler.step()
        assert equal(before, weights(network)) == (k >= 2)


def test_frozen_parameters_have_no_state_and_do_not_move() -> None:
    network = small_network()
    network[0].weight.requires_grad_(False)
    optimizer = L3RS(network.named_parameters(), 10, schedule(network))
    before = network[0].weight.clone()
    train(network, optimizer, range(3))
    assert torch.equal(before, network[0].weight)
    assert network[0].weight not in optimizer.state
    network[0].weight.requires_grad_(True)  # thawed
    train(network, optimizer, range(3, 5))
    assert not torch.equal(before, network[0].weight)
    assert optimizer.state[network[0].weight]["step"] == 2
    assert optimizer.state[network[4].weight]["step"] == 5


def test_a_parameter_without_a_gradient_waits() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 10, schedule(network))
    for k in range(4):
        loss = backward(network, k)
        if k % 2:
            network[4].weight.grad = None
        before = network[4].weight.clone()
        optimizer.step(loss=loss)
        assert torch.equal(before, network[4].weight) == bool(k % 2)
    assert optimizer.state[network[4].weight]["step"] == 2
    network.zero_grad()
    optimizer.step(loss=1.0)  # nothing has one: the clock goes on
    assert optimizer.param_groups[0]["step"] == 5


def test_a_group_added_in_the_run_gets_its_slot_and_the_runs_clock() -> None:
    network = small_network()
    named = list(network.named_parameters())
    learned = schedule(network)
    optimizer = L3RS(named[-2:], 10, learned)
    train(network, optimizer, range(3))
    optimizer.add_param_group({"params": named[:-2]})
    train(network, optimizer, range(3, 4))
    assert optimizer.param_groups[1]["step"] == 4
    assert optimizer._tables.slots == {p: i for i, (_, p) in enumerate(named)}
    assert list(optimizer.decisions().index) == [name for name, _ in (*named[-2:], *named[:-2])]
    fresh = copy.deepcopy(optimizer.state_dict())
    again = L3RS([{"params": named[-2:]}, {"params": named[:-2]}], 10, learned)
    again.load_state_dict(fresh)
    train(network, again, range(4, 5))


def test_a_group_that_does_not_fit_leaves_the_optimizer_as_it_was() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 10, schedule(network))
    extra = nn.Parameter(torch.zeros(3))
    for group, message in (
        ({"params": [("a.b", extra), ("c.d", nn.Parameter(torch.zeros(1)))]}, r"random knows 7 layers by name, but not a\.b, c\.d"),
        ({"params": [("a.b", extra)], "total_steps": 0}, r"total_steps must be .*\(got 0\)"),
        ({"params": [("a.b", extra)], "lr": -1.0}, r"lr must be .*\(got -1\.0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    with pytest.raises(TypeError, match="complex64"):
        optimizer.add_param_group({"params": [("a.b", nn.Parameter(torch.zeros(3, dtype=torch.complex64)))]})
    train(network, optimizer, range(2))


def test_maximizing_is_minimizing_the_negative() -> None:
    up, down = small_network(), small_network()
    learned = schedule(up)
    a = L3RS(up.named_parameters(), 5, learned, maximize=True)
    b = L3RS(down.named_parameters(), 5, learned)
    for k in range(5):
        (inputs, labels), ends = batch(k), []
        for network, sign in ((up, -1.0), (down, 1.0)):
            network.zero_grad()
            ends.append(sign * F.cross_entropy(network(inputs), labels))
            ends[-1].backward()
        a.step(loss=ends[0])
        b.step(loss=ends[1])
    assert equal(weights(up), weights(down))


# -- training loops ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [torch.tensor([1.0, 2.0]), torch.zeros(0)])
def test_a_loss_is_one_number(loss: Tensor) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, schedule(network))
    with pytest.raises(ValueError, match=r"the loss must be one number, .*\(got shape \([02],\)\)"):
        optimizer.step(loss=loss)


def test_grad_scaler_hands_the_loss_on_and_skips_overflow() -> None:
    network, plain = small_network(), small_network()
    optimizer, reference = (L3RS(n.named_parameters(), 5, schedule(n)) for n in (network, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for k in range(4):
        inputs, labels = batch(k)
        network.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer, loss=loss)
        scaler.update()
        reference.step(loss=backward(plain, k))
    assert equal(weights(network), weights(plain))  # 1024 is a power of two
    before = weights(network)
    scaler.scale(F.cross_entropy(network(batch(4)[0]), batch(4)[1])).backward()
    network[4].weight.grad[0, 0] = float("inf")
    scaler.step(optimizer, loss=1.0)
    scaler.update()
    assert equal(before, weights(network))
    assert scaler.get_scale() == 512.0
    assert optimizer.skipped_steps == 0  # the scaler skipped it, not L3RS


def test_autocast() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 40, random_schedule(network, scale=0.0), lr=4.0)
    inputs, labels = batch(0)
    losses = []
    for _ in range(40):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_accumulated_gradients_are_one_batch() -> None:
    network, whole = nn.Linear(4, 3), nn.Linear(4, 3)
    whole.load_state_dict(network.state_dict())
    optimizer, reference = (L3RS(n.named_parameters(), 5, schedule(n)) for n in (network, whole))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    total = 0.0
    for part in (slice(0, 4), slice(4, 8)):
        loss = F.cross_entropy(network(x[part]), y[part]) / 2
        loss.backward()
        total += loss.item()
    optimizer.step(loss=total)
    loss = F.cross_entropy(whole(x), y)
    loss.backward()
    reference.step(loss=loss)
    for p, q in zip(network.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_clipping_before_the_step_is_seen_as_a_shorter_gradient_along_the_same_direction() -> None:
    """SGD alone and no averages: normalized, a clipped gradient moves layers where the whole one would."""
    network, clipped = small_network(), small_network()
    learned = random_schedule(network, scale=0.0, directions=("sgd",))
    moved = []
    for n in (network, clipped):
        optimizer = L3RS(n.named_parameters(), 5, learned)
        loss = backward(n, 0)
        if n is clipped:
            assert nn.utils.clip_grad_norm_(n.parameters(), 0.01) > 0.01
        optimizer.step(loss=loss)
        moved.append(weights(n))
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from inside torch.compile, with any optimizer
def test_compiled_training_step_is_the_eager_one() -> None:
    compiled, eager = small_network(), small_network()
    a, b = (L3RS(n.named_parameters(), 5, schedule(n)) for n in (compiled, eager))

    def step(network: nn.Module, optimizer: L3RS, inputs: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
        return loss

    fast = torch.compile(step, backend="aot_eager")
    for k in range(3):
        fast(compiled, a, *batch(k))
        step(eager, b, *batch(k))
    assert equal(weights(compiled), weights(eager))
    # a compiled module has other names
    again = L3RS(torch.compile(eager, backend="eager").named_parameters(), 5, schedule(eager))
    assert again._tables.slots.keys() == set(eager.parameters())


def test_channels_last_is_the_same_training() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    assert not last[0].weight.is_contiguous()
    a, b = (L3RS(n.named_parameters(), 5, schedule(n)) for n in (last, plain))
    for k in range(3):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) for p in plain.parameters()]
        for network, optimizer in ((last, a), (plain, b)):
            for p, g in zip(network.parameters(), gradients, strict=True):
                p.grad = torch.empty_like(p).copy_(g)
            optimizer.step(loss=1.0)
    for p, q in zip(last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_tied_parameters_are_one_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    network = Tied()
    optimizer = L3RS(network.named_parameters(), 5, schedule(network))
    loss = network(torch.randn(3, 4)).square().mean()
    loss.backward()
    optimizer.step(loss=loss)
    assert len(optimizer.decisions()) == 3
    assert network.b.weight is network.a.weight


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = L3RS(table.named_parameters(), 5, schedule(table))
    loss = table(torch.tensor([1, 2])).sum()
    loss.backward()
    with pytest.raises(ValueError, match=r"torch\.sparse_coo; L3RS takes dense ones"):
        optimizer.step(loss=loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_stepped_in_float32(dtype: torch.dtype) -> None:
    half, single = small_network(dtype), small_network(dtype).float()
    a, b = (L3RS(n.named_parameters(), 5, schedule(n)) for n in (half, single))
    for p, q in zip(half.parameters(), single.parameters(), strict=True):
        p.grad = torch.randn(p.shape).to(dtype)
        q.grad = p.grad.float()
    a.step(loss=1.0)
    b.step(loss=1.0)
    for p, q in zip(half.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(p, q.to(dtype), rtol=0, atol=torch.finfo(dtype).eps * q.abs().max().item())


# -- what is not finite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("wrong", ["nan gradient", "inf gradient", "nan loss"])
def test_what_is_not_finite_moves_no_layer_and_training_goes_on(wrong: str, fused: bool | None) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 60, random_schedule(network, scale=0.0, directions=ALL), lr=4.0, fused=fused)
    inputs, labels = batch(0)
    losses = []
    for k in range(60):
        network.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        losses.append(loss.item())
        before = weights(network)
        if k in (0, 4, 5):
            value = float(wrong.split()[0])
            if "gradient" in wrong:
                network[4].weight.grad[0, 0] = value
            else:
                loss = loss * value
        optimizer.step(loss=loss)
        assert equal(before, weights(network)) == (k in (0, 4, 5))
        assert (optimizer.decisions()["length"] == 0).all() == (k in (0, 4, 5))
    assert all(torch.isfinite(t).all() for state in optimizer.state.values() for t in state.values())
    assert losses[-1] < 0.3 * losses[0]
    assert optimizer.param_groups[0]["step"] == 60
    with pytest.warns(UserWarning, match=r"nothing in 3 steps.*\(3 so far\)"):
        assert optimizer.skipped_steps == 3
    assert optimizer.skipped_steps == 3  # warned once
    assert optimizer.state_dict()["param_groups"][0]["skipped"] == 3


def test_skipped_steps_are_told_though_a_step_without_gradients_follows() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, schedule(network))
    backward(network, 0)
    optimizer.step(loss=float("nan"))
    optimizer.zero_grad()
    optimizer.step(loss=1.0)
    with pytest.warns(UserWarning, match="nothing in 1 step,"):
        assert optimizer.skipped_steps == 1


def test_a_clock_that_is_written_to_counts_from_the_next_step() -> None:
    def decided(write: bool) -> list[Tensor]:
        network = small_network()
        optimizer = L3RS(network.named_parameters(), 8, schedule(network))
        train(network, optimizer, range(4))
        if write:
            optimizer.param_groups[0]["step"] = 0
            assert optimizer.state_dict()["param_groups"][0]["step"] == 0
        train(network, optimizer, range(1))
        assert optimizer.param_groups[0]["step"] == (1 if write else 5)
        return [torch.tensor(optimizer.decisions()["lambda"].to_numpy())]

    assert not equal(decided(True), decided(False))


def test_a_parameter_that_is_put_into_a_group_by_hand_is_refused() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, schedule(network))
    backward(network, 0)
    stranger = nn.Parameter(torch.ones(2, 3))
    stranger.grad = torch.ones(2, 3)
    optimizer.param_groups[0]["params"].append(stranger)
    with pytest.raises(ValueError, match=r"7 names and 8 parameters: one was put into a group by hand, or taken out: use add_param_group"):
        optimizer.step(loss=1.0)
    without = L3RS(list(network.parameters()), 5, "icons-generalist")
    without.param_groups[0]["params"].append(stranger)
    with pytest.raises(ValueError, match=r"of shape \(2, 3\) was put into a group by hand: use add_param_group"):
        without.step(loss=1.0)
    optimizer = L3RS(network.named_parameters(), 5, schedule(network))
    del optimizer.param_groups[0]["params"][0]
    with pytest.raises(ValueError, match=r"7 names and 6 parameters: .* or requires_grad_\(False\) to leave one as it is"):
        optimizer.step(loss=1.0)


def test_two_parameters_of_one_name_are_refused() -> None:
    groups = [{"params": nn.Sequential(nn.Linear(3, 3)).named_parameters()}, {"params": nn.Sequential(nn.Linear(3, 2)).named_parameters()}]
    with pytest.raises(ValueError, match=r"two parameters are called '0\.weight': give named_parameters\(\) of the whole network"):
        L3RS(groups, 5, "generalist")
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, "generalist")
    with pytest.raises(ValueError, match=r"two parameters are called '0\.weight'"):
        optimizer.add_param_group({"params": nn.Sequential(nn.Linear(3, 3)).named_parameters()})
    assert len(optimizer.param_groups) == 1


def test_it_says_which_layer_it_takes_for_the_head_and_takes_the_named_one() -> None:
    network = small_network()
    assert ", head: 6.weight, " in repr(L3RS(network.named_parameters(), 5, "generalist"))
    assert ", head: parameter 5, " in repr(L3RS(network.parameters(), 5, "generalist"))
    named = L3RS(network.named_parameters(), 5, "generalist", head="4")
    assert ", head: 4.weight, " in repr(named)
    assert ", head: 4.weight, " in repr(copy.deepcopy(named))
    assert ", head: none, " in repr(L3RS(network.named_parameters(), 5, "generalist", head=""))
    with pytest.raises(ValueError, match=r"head must be the name of one dense layer \(got 'fc'\); the last ones are .*, 6"):
        L3RS(network.named_parameters(), 5, "generalist", head="fc")


@pytest.mark.parametrize(("one", "other"), [("head", "head_dist"), ("head.1", "head.0"), ("head.head_dist.l", "head.head.l")])
def test_a_second_head_is_told_of(one: str, other: str) -> None:
    network = nn.ModuleList([nn.Linear(8, 8)])
    named = [(f"0.{name}", p) for name, p in network[0].named_parameters()]
    named += [(f"{module}.weight", nn.Parameter(torch.randn(5, 8))) for module in (other, one)]
    with pytest.warns(UserWarning, match=f"{one} and {other} both look like heads, and L3RS takes {one} for the head") as told:
        L3RS(named, 5, "generalist")
    assert told[0].filename == __file__
    L3RS(named, 5, "generalist", head=other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_within_autocast_is_as_without(dtype: torch.dtype) -> None:
    networks = [small_network().to(dtype) for _ in range(2)]
    optimizers = [L3RS(network.named_parameters(), 5, "generalist", fused=False) for network in networks]
    for k in range(2):
        for network, optimizer, enabled in zip(networks, optimizers, (False, True), strict=True):
            network.zero_grad()
            F.cross_entropy(network(batch(k)[0].to(dtype)).float(), batch(k)[1]).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step(loss=1.0)
                assert torch.is_autocast_enabled("cpu") is enabled
    assert equal(weights(networks[0]), weights(networks[1]))


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("learned", ["generalist", "auto", "icons-generalist"])
def test_no_default_device_matters(learned: str, fused: bool | None) -> None:
    ends = []
    for default in ("cpu", "meta"):
        network = small_network()
        backward(network, 0)
        with torch.device(default):
            optimizer = L3RS(network.named_parameters(), 5, learned, fused=fused)
            optimizer.step(loss=1.0)
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.step(loss=1.0)
            network, optimizer = copy.deepcopy((network, optimizer))
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, device="cpu"))], "param_names": ["more"]})
        backward(network, 1)
        with torch.device(default):
            optimizer.step(loss=1.0)
        ends.append(weights(network))
    assert equal(*ends)


def test_it_says_that_the_last_layer_may_be_the_head_after_all() -> None:
    backbone = nn.ModuleList(nn.ModuleDict({part: nn.Linear(4, 4) for part in ("qkv", "fc1", "fc2")}) for _ in range(2))
    with pytest.warns(
        UserWarning, match=r'takes no layer for the head: 1\.fc2, the last one, .*, such as head="1\.fc2", or head=""'
    ) as told:
        assert ", head: none, " in repr(L3RS(backbone.named_parameters(), 5, "generalist"))
    assert told[0].filename == __file__
    for named in ("", "1.fc2"):
        L3RS(backbone.named_parameters(), 5, "generalist", head=named)


def test_a_network_on_the_meta_device_is_stepped_and_loaded() -> None:
    network = small_network().to("meta")
    optimizer = L3RS(network.named_parameters(), 5, "generalist")
    optimizer.load_state_dict(optimizer.state_dict())
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


@pytest.mark.parametrize("value", [True, np.bool_(True), 1])
def test_maximize_is_a_bool_of_any_library(value: Any) -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, "generalist", maximize=value)
    assert optimizer.param_groups[0]["maximize"] is True
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"first_loss": np.float32(0.5), "cut": torch.tensor(0.25)}
    optimizer.load_state_dict(state)
    assert (optimizer.param_groups[0]["first_loss"], optimizer.param_groups[0]["cut"]) == (0.5, 0.25)
    assert type(optimizer.param_groups[0]["cut"]) is float


def test_biases_without_names_are_told_to_have_some() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    for layer in (network[0], network[2]):
        nn.init.zeros_(layer.bias)
    groups = [{"params": [p for p in network.parameters() if p.ndim == n]} for n in (2, 1)]
    with pytest.warns(
        UserWarning, match=r"parameter 2 is all zeros, as are 1 more: .*; give named_parameters\(\), by which a bias is known"
    ):
        L3RS(groups, 5, "generalist")


def test_gates_of_zeros_are_told_and_scales_of_normalizations_are_not() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gate, self.fc = nn.BatchNorm2d(3), nn.Parameter(torch.zeros(1)), nn.Linear(3, 2)
            nn.init.zeros_(self.norm.weight)
            nn.init.zeros_(self.fc.bias)

    with pytest.warns(UserWarning, match=r"gate is all zeros: L3RS moves a layer by a share of its size"):
        L3RS(Gated().named_parameters(), 5, "generalist")


def test_parameters_that_no_step_can_move_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of shape \(3, 2\) is expanded"):
        L3RS([nn.Parameter(torch.ones(3, 1).expand(3, 2))], 5, "icons-generalist")
    with pytest.raises(TypeError, match=r"of shape \(2,\) is torch.float8_e5m2; L3RS steps real floating ones of 16, 32 or 64 bits"):
        L3RS([nn.Parameter(torch.ones(2).to(torch.float8_e5m2))], 5, "icons-generalist")


def test_compiled_code_that_cannot_be_is_refused_at_once() -> None:
    network = small_network(torch.bfloat16)
    with pytest.raises(ValueError, match=r"fused=True, but a parameter is torch.bfloat16 on cpu"):
        L3RS(network.named_parameters(), 5, schedule(network), fused=True)
    optimizer = L3RS(small_network().named_parameters(), 5, "icons-generalist", fused=True)
    with pytest.raises(ValueError, match="fused=True, but"):
        optimizer.add_param_group({"params": [("more", nn.Parameter(torch.ones(2).double()))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("fused", [None, False])
def test_a_gradient_too_small_for_sums_of_squares_moves_nothing(fused: bool | None) -> None:
    """In float32 they are noise below 1e-17, and a direction would be hundreds of times too long."""
    weight = nn.Parameter(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))
    learned = random_schedule(nn.ParameterDict({"w": weight}), scale=0.1, directions=("sgd",))
    optimizer = L3RS([("w", weight)], 5, learned, fused=fused)
    for size, moved in ((3e-22, False), (1e-15, True)):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, size)
        optimizer.step(loss=1.0)
        length = float((weight.detach() - before).norm())
        assert (length > 0) == moved
        assert length <= 1.001 * optimizer.decisions()["length"].item()


@pytest.mark.parametrize("named", [True, False])
def test_layers_that_are_unfrozen_lie_below_those_that_were_there(named: bool) -> None:
    """Their head, though nothing is called so, and their depth are as if all had been there from the start; also resumed."""

    def layers(network: nn.Sequential, first: int, last: int) -> list[Any]:
        return [(n, p) if named else p for n, p in network.named_parameters() if first <= int(n.partition(".")[0]) < last]

    def stepped(network: nn.Sequential, optimizer: L3RS, steps: range) -> None:
        for k in steps:
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(k))
            optimizer.zero_grad()
            F.cross_entropy(network(x), torch.arange(8) % 3).backward()
            optimizer.step()

    def made() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    whole, parts = made(), made()
    whole[:4].requires_grad_(False)
    together, apart = (L3RS(layers(network, first, 5), 8, "generalist", lr=0.0) for network, first in ((whole, 0), (parts, 4)))
    for first in (2, 0):  # while nothing moves, as decisions also go by the number of layers
        stepped(whole, together, range(1))
        stepped(parts, apart, range(1))
        whole[first].requires_grad_(True)
        apart.add_param_group({"params": layers(parts, first, first + 2)})
    for optimizer in (together, apart):
        for group in optimizer.param_groups:
            group["lr"] = 1.0
    stepped(whole, together, range(2, 5))
    stepped(parts, apart, range(2, 5))
    resumed = copy.deepcopy(parts)
    again = L3RS([{"params": layers(resumed, *ends)} for ends in ((4, 5), (2, 4), (0, 2))], 8, "generalist")
    again.load_state_dict(apart.state_dict())
    for network, optimizer in ((whole, together), (parts, apart), (resumed, again)):
        stepped(network, optimizer, range(5, 8))
    assert equal(weights(parts), weights(resumed))
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_groups_that_are_added_before_the_first_step_lie_as_they_come() -> None:
    def ran(apart: bool) -> list[Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))
        body, head = list(network[0].parameters()), list(network[2].parameters())
        optimizer = L3RS(body if apart else [{"params": body}, {"params": head}], 5, "generalist")
        if apart:
            optimizer.add_param_group({"params": head})
        for k in range(3):
            inputs, labels = batch(k)
            optimizer.zero_grad()
            F.cross_entropy(network(inputs.flatten(1)), labels).backward()
            optimizer.step()
        return weights(network)

    assert equal(ran(True), ran(False))


def test_groups_keep_lengths_of_their_own() -> None:
    network = small_network()
    named = list(network.named_parameters())
    groups = [{"params": named[:2], "total_steps": 50}, {"params": named[2:]}]
    assert [group["total_steps"] for group in L3RS(groups, 100, schedule(network)).param_groups] == [50, 100]
    optimizer = L3RS(named[2:], 20, schedule(network))
    optimizer.param_groups[0]["total_steps"] = 100
    optimizer.add_param_group({"params": named[:2]})
    assert [group["total_steps"] for group in optimizer.param_groups] == [100, 100]


def test_a_group_that_is_refused_changes_nothing() -> None:
    def ran(refused: bool) -> list[Tensor]:
        network = small_network()
        optimizer = L3RS(network.named_parameters(), 5, "generalist", fused=True, guard=False)
        if refused:
            with pytest.raises(ValueError, match="fused=True, but"):
                optimizer.add_param_group({"params": [("more.weight", nn.Parameter(torch.ones(2, 2).double()))]})
        train(network, optimizer, range(3))
        return weights(network)

    assert equal(ran(True), ran(False))


def test_a_clock_that_runs_ahead_on_the_device_is_read_each_time() -> None:
    """As where a captured step is replayed."""
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 50, schedule(network))
    train(network, optimizer, range(3))
    for replays, steps in ((5, 8), (5, 13)):
        for layers in optimizer._tables.by_device:
            layers.decision.clock += replays
        assert optimizer.state_dict()["param_groups"][0]["step"] == steps
    tables = optimizer._tables.by_device
    train(network, optimizer, range(1))
    assert optimizer._tables.by_device is tables
    assert optimizer.state_dict()["param_groups"][0]["step"] == 14


def test_matrices_of_zeros_are_told_of() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    nn.init.zeros_(network[1].weight)
    with pytest.warns(UserWarning, match=r"1\.weight is all zeros: L3RS moves a layer by a share of its size"):
        L3RS(network.named_parameters(), 5, "generalist")
    network[1].weight.requires_grad_(False)
    nn.init.zeros_(network[2].weight)  # the head has a length of its own
    L3RS(network.named_parameters(), 5, "generalist")


def test_the_count_of_skipped_steps_survives_a_resume() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, schedule(network))
    backward(network, 0)
    optimizer.step(loss=float("nan"))
    with pytest.warns(UserWarning, match="nothing in 1 step,"):
        state = optimizer.state_dict()
    fresh = L3RS(network.named_parameters(), 5, schedule(network))
    fresh.load_state_dict(state)
    assert fresh.skipped_steps == 1


def test_others_may_keep_what_is_no_tensor_in_the_states() -> None:
    network, other = small_network(), small_network()
    optimizer, alone = (L3RS(n.named_parameters(), 5, schedule(n)) for n in (network, other))
    train(network, optimizer, range(1))
    train(other, alone, range(1))
    optimizer.state[next(network.parameters())]["note"] = "mine"
    train(network, optimizer, range(1, 3))
    train(other, alone, range(1, 3))
    assert equal(weights(network), weights(other))
    optimizer.load_state_dict(optimizer.state_dict())


# -- what it can be asked ----------------------------------------------------------------------------------------------------------


def test_decisions() -> None:
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 5, schedule(network))
    with pytest.raises(RuntimeError, match="no step has been decided since this was made, loaded, or given a group: call step"):
        optimizer.decisions()
    start = weights(network)
    train(network, optimizer, range(1))
    table = optimizer.decisions()
    assert list(table.columns) == ["lambda", "length", "mu_sgd", "mu_adam"]
    assert list(table.index) == [name for name, _ in network.named_parameters()]
    assert table[["mu_sgd", "mu_adam"]].sum(axis=1).to_numpy() == pytest.approx(1.0)
    for p, before, length in zip(network.parameters(), start, table["length"], strict=True):
        assert (p - before).norm().item() <= length * (1 + 1e-4)
    unnamed = L3RS(network.parameters(), 5, random_schedule(network, specialist=False))
    backward(network, 0)
    unnamed.step(loss=1.0)
    assert list(unnamed.decisions().index) == [str(i) for i in range(7)]


def test_unknown_arguments_are_named() -> None:
    network = small_network()
    with pytest.raises(ValueError, match=r"match must be 'name' or 'position' \(got 'order'\)"):
        L3RS(network.named_parameters(), 5, match="order")
    for lr in (-1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="lr must be a finite number of at least 0"):
            L3RS(network.named_parameters(), 5, lr=lr)  # type: ignore[arg-type]
