"""The head in closed form: its formula, what it leaves as it was, what it chooses, and hard cases."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from ranks import processes, run_on
from torch import Tensor, nn
from torch.nn import functional as F

import l3rs
from l3rs.networks.head_start import HeadStartConfig, head_start

C = 5
FIXED = HeadStartConfig(ridges=(0.3,), scales=(4.0,))


class Network(nn.Module):
    """Dense, with BatchNorm, dropout and a head that it knows."""

    def __init__(self, features: int = 8, inputs: int = 12, classes: int = C, head: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(inputs, features), nn.BatchNorm1d(features), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(features, classes) if head is None else head

    def get_classifier(self) -> nn.Module:
        return self.head

    def features(self, x: Tensor) -> Tensor:
        """As in training, without dropout."""
        return F.relu(F.batch_norm(self.body[0](x), None, None, self.body[1].weight, self.body[1].bias, True))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def data(batches: int = 4, size: int = 20, spread: float = 0.5, seed: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Images of classes that lie around centres of their own."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(C, 12, generator=torch.Generator().manual_seed(0))
    labels = [torch.randint(C, (size,), generator=g) for _ in range(batches)]
    return [(centres[y] + spread * torch.randn(size, 12, generator=g), y) for y in labels]


def by_hand(network: Network, batches: Sequence[tuple[Tensor, Tensor]], r: float = 0.3, s: float = 4.0) -> tuple[Tensor, Tensor]:
    """The formula."""
    with torch.no_grad():
        x = torch.cat([network.features(x) for x, _ in batches]).double()
    one_hot = F.one_hot(torch.cat([y for _, y in batches]), C).double()
    z = x - x.mean(0)
    weight = s * torch.linalg.solve(z.T @ z + r * (z.T @ z).diagonal().mean() * torch.eye(z.shape[1]), z.T @ (one_hot - one_hot.mean(0))).T
    return weight, -weight @ x.mean(0)


def is_close(network: Network, expected: tuple[Tensor, Tensor], tolerance: float = 1e-4) -> bool:
    found = network.head.weight, network.head.bias
    return all(torch.allclose(a.double(), b, rtol=tolerance, atol=tolerance) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("features", [8, 200])  # fewer, and more, than images
@pytest.mark.parametrize("keep_mib", [64, 1e-3])
def test_it_is_the_formula_however_much_is_kept(features: int, keep_mib: float) -> None:
    network = Network(features)
    found = head_start(network, data(), config=HeadStartConfig((0.3,), (4.0,), keep_mib=keep_mib))
    assert is_close(network, by_hand(network, data()))
    assert (found.ridge, found.scale, found.images) == (0.3, 4.0, 80)


@pytest.mark.parametrize("features", [8, 200])
def test_what_is_chosen_hardly_depends_on_what_is_kept(features: int) -> None:
    all_kept, some_kept = (
        head_start(Network(features), data(20), config=HeadStartConfig(keep_mib=mib)) for mib in (64, 100 * 4 * features / 2**20)
    )
    assert all_kept.kind == some_kept.kind == "fitted"
    assert all_kept.images == some_kept.images == 400
    assert all_kept.accuracy == pytest.approx(some_kept.accuracy, abs=0.1)
    assert all_kept.accuracy > 0.8


def test_it_changes_the_head_alone() -> None:
    network = Network()
    network.body[1].eval()
    network.head.weight.grad = torch.ones_like(network.head.weight)
    for mode in (True, False):
        network.train(mode)
        nn.init.zeros_(network.head.weight)
        nn.init.zeros_(network.head.bias)
        before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

        def drawn(batches: list[tuple[Tensor, Tensor]] = data()):  # type: ignore[no-untyped-def]  # noqa: B008
            for batch in batches:
                torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
                yield batch

        head_start(network, drawn())
        after = network.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
        assert [m.training for m in network.modules()] == modes
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
        assert torch.equal(network.head.weight.grad, torch.ones_like(network.head.weight))
        assert all(p.grad is None for p in network.body.parameters())


def test_batch_norm_that_stays_in_evaluation_mode_is_left_there() -> None:
    network = Network().train()
    network.body[1].eval()
    network.body[1].running_mean.fill_(0.5)
    head_start(network, data(), config=FIXED)
    assert not is_close(network, by_hand(network, data()))
    network.features = lambda x: network.body[:3](x)  # type: ignore[method-assign]
    assert is_close(network, by_hand(network, data()))


def test_images_that_come_again_count_once_by_their_numbers_or_their_inputs() -> None:
    first, second = data(2)
    for batches in (
        [first, second, second, first],
        [(*first, torch.arange(20)), (*second, torch.arange(20) + 50), (data(3)[2][0], first[1], torch.arange(20))],
    ):
        network = Network()
        assert head_start(network, batches, config=FIXED).images == 40
        assert is_close(network, by_hand(network, [first, second]))


def test_numbers_that_are_not_of_images_are_refused() -> None:
    inputs, labels = data(1)[0]
    with pytest.raises(ValueError, match=r"number of each image, and number 0 has labels \d and \d; where it is something else, give"):
        head_start(Network(), [(inputs, labels, torch.arange(20) % 3)])  # cameras


@pytest.mark.parametrize("rare", [0.1, 0.03])
def test_a_head_of_uneven_classes_knows_their_shares(rare: float) -> None:
    """Two classes that are told apart by the features, one rare: better than to tell the shares whatever the image."""
    torch.manual_seed(0)
    labels = (torch.rand(320) < rare).long()
    inputs = torch.randn(320, 12) + 3 * labels[:, None]
    network = Network(classes=2)
    found = head_start(network, [(inputs[i : i + 32], labels[i : i + 32]) for i in range(0, 320, 32)])
    share = labels.double().mean().item()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert found.kind == "fitted"
    assert found.loss < 0.8 * entropy
    assert found.accuracy > 1 - share
    assert F.cross_entropy(network.eval()(inputs), labels).item() < entropy
    even = HeadStartConfig(uneven=1e-9)
    assert head_start(network, [(inputs, labels)], config=even).loss > 2 * found.loss


@pytest.mark.parametrize("counts", [[300] + [1] * 50, [max(1, int(150 / (i + 1) ** 1.5)) for i in range(60)]])
def test_images_that_teach_nothing_are_no_better_than_the_shares_of_uneven_classes(counts: list[int]) -> None:
    torch.manual_seed(0)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[torch.randperm(sum(counts))]
    found = head_start(Network(classes=len(counts)), [(torch.randn(len(labels), 12), labels)])
    assert found.kind == "careful"


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "form", [lambda z: z.softmax(1), lambda z: z.log_softmax(1), lambda z: 0.1 * z, lambda z: z.log_softmax(1).bfloat16()]
)
def test_rounded_forms_of_the_logits_are_those_of_the_head(form: Callable[[Tensor], Tensor], dtype: torch.dtype, classes: int) -> None:
    class Other(Network):
        def forward(self, x: Tensor) -> Tensor:
            return form(super().forward(x))

    network = Other(classes=classes).to(dtype)
    nn.init.normal_(network.head.weight, std=0.02)
    head_start(network, [(inputs.to(dtype), labels) for inputs, labels in data()], config=FIXED)


def test_a_layer_that_does_not_give_the_logits_is_not_taken_for_the_head() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.out = Network(), nn.Linear(Network().head.out_features, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.backbone(x)))

    network, batches = Wrapped().train(), [(inputs, labels % 4) for inputs, labels in data()]
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"backbone\.head was taken for the head, and Wrapped gives other logits, \(20, 4\), than it does"):
        head_start(network, batches)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert head_start(network, batches, head=network.out).kind != "random"
    assert torch.equal(network.backbone.head.weight, before["backbone.head.weight"])


@pytest.mark.parametrize("form", [lambda z: z.softmax(1), lambda z: SimpleNamespace(logits=z), lambda z: {"logits": z}, lambda z: (z, z)])
def test_the_networks_output_may_have_another_form(form: Callable[[Tensor], Any]) -> None:
    class Other(Network):
        def forward(self, x: Tensor) -> Any:
            return form(super().forward(x))

    network = Other()
    assert head_start(network, data(), config=FIXED).kind != "random"


def test_a_module_whose_eval_does_more_is_left_alone() -> None:
    class Merging(nn.Identity):
        def train(self, mode: bool = True) -> Merging:
            raise AssertionError("it was merged")

    network = Network()
    network.merging = Merging()
    head_start(network, data(), config=FIXED)
    assert network.merging.training


def test_a_batch_samplers_own_generator_is_given_back() -> None:
    inputs, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    images = torch.utils.data.TensorDataset(inputs, labels)
    own = torch.Generator().manual_seed(3)
    sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(images, generator=own), 20, False)
    before = own.get_state()
    head_start(Network(), torch.utils.data.DataLoader(images, batch_sampler=sampler), config=FIXED)
    assert torch.equal(own.get_state(), before)


def test_a_shuffling_loader_gives_the_run_the_batches_that_the_head_start_saw() -> None:
    inputs, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), 20, shuffle=True)
    network = Network()
    head_start(network, loader, 2, config=FIXED)
    run = list(loader)
    assert is_close(network, by_hand(network, run[:2]))  # type: ignore[arg-type]


def test_workers_that_persist_give_the_run_the_batches_that_the_head_start_saw() -> None:
    inputs, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    images = torch.utils.data.TensorDataset(inputs, labels)
    orders = []
    for started in (True, False):
        loader = torch.utils.data.DataLoader(images, 20, shuffle=True, num_workers=1, persistent_workers=True)
        torch.manual_seed(7)
        if started:
            network = Network()
            torch.manual_seed(7)
            head_start(network, loader, 2, config=FIXED)
        orders.append(list(loader))
        del loader
    assert is_close(network, by_hand(network, orders[0][:2]))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for one, other in zip(*orders, strict=True) for a, b in zip(one, other, strict=True))


def test_a_head_may_be_called_by_keyword() -> None:
    class ByKeyword(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=self.body(x))

    network = ByKeyword()
    head_start(network, data(), config=FIXED)
    assert is_close(network, by_hand(network, data()))


def test_under_autocast_it_is_the_same_but_for_rounding() -> None:
    network = Network()
    with torch.autocast("cpu", torch.bfloat16):
        head_start(network, data(), config=FIXED)
    assert network.head.weight.dtype == torch.float32
    assert is_close(network, by_hand(network, data()), tolerance=0.1)
    assert not is_close(network, by_hand(network, data()))


def test_a_head_without_bias_is_fitted_without_centring() -> None:
    network = Network(head=nn.Linear(8, C, bias=False))
    head_start(network, data(), config=FIXED)
    with torch.no_grad():
        x, y = torch.cat([network.features(x) for x, _ in data()]).double(), F.one_hot(torch.cat([y for _, y in data()]), C).double()
    gram = x.T @ x
    expected = 4 * torch.linalg.solve(gram + 0.3 * gram.diagonal().mean() * torch.eye(8), x.T @ (y - y.mean(0))).T
    assert torch.allclose(network.head.weight.double(), expected, rtol=1e-4, atol=1e-4)


def loss_of(network: Network, batches: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return float(np.mean([F.cross_entropy(network.head(network.features(x)), y).item() for x, y in batches]))


def test_the_images_are_left_a_loss_to_learn_from() -> None:
    network, batches = Network(200), data(2, spread=1.5)  # more features than images, which the weakest ridge would interpolate
    found = head_start(network, batches)
    assert found.kind == "fitted"
    assert 0.4 < loss_of(network, batches) / np.log(C) <= 0.51
    easy = data(20, spread=0.05)  # there the head may be as sure as it is right on images that it has not seen
    assert head_start(network, easy).loss < 0.1
    assert loss_of(network, easy) < 0.1


def test_what_is_no_better_than_chance_on_held_out_images_becomes_a_small_head() -> None:
    batches = [(x, torch.randint(C, (20,), generator=torch.Generator().manual_seed(i))) for i, (x, _) in enumerate(data())]
    network = Network(200)
    found = head_start(network, batches)
    assert found.kind == "careful"
    assert found.accuracy < 0.35
    assert found.loss < np.log(C) + 0.05  # where a fitted head would be sure of what it does not know
    assert loss_of(network, batches) > 0.8 * np.log(C)


def test_the_size_of_the_features_is_the_mean_norm_of_the_centred_ones() -> None:
    network = Network()
    x = torch.cat([network.features(x) for x, _ in data()])
    assert head_start(network, data()).feature_norm == pytest.approx((x - x.mean(0)).norm(dim=1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("size", [3, 12])
def test_few_images_and_classes_without_any(size: int) -> None:
    x, y = data(1, 60)[0]
    few = torch.cat([(y == c).nonzero()[: size // 3, 0] for c in (0, 2, 4)])
    network = Network(30)
    found = head_start(network, [(x[few], y[few])])
    assert found.images == size
    assert found.kind == ("careful" if size == 3 else "fitted")
    assert network.head.weight.isfinite().all()
    assert network.head.weight[1].count_nonzero() == 0  # of a class that was not seen
    assert (network.head(network.features(x[few])).argmax(1) == y[few]).all()


@pytest.mark.parametrize("features", [8, 200])  # fewer, and more, than images
@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 1], [0, 5, 10, 15], [3, 3, 7, 7]])
def test_images_without_which_one_class_is_left_are_not_judged(labels: list[int], features: int) -> None:
    """A fold has all of [0, 5, 10, 15], as each is the first of its class, and the classes begin at different folds."""
    x = torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(3))
    if len(x) > 2:
        x[-1] = x[-2]  # the same image twice leaves nothing but rounding
    network = Network(features, classes=16)
    found = head_start(network, [(x, torch.tensor(labels))])
    assert found.kind == "careful"
    assert network.head.weight.isfinite().all()
    assert network.head.weight.count_nonzero() > 0
    assert str(found).startswith(f"head start: from {len(set(map(tuple, x.tolist())))} images, ")


def test_one_class_and_equal_images_teach_nothing() -> None:
    x, y = data(1)[0]
    for inputs, labels in ((x, torch.ones_like(y)), (x[:1].expand(20, -1) + 0, y), (x.fill_(torch.nan), y)):
        network = Network()
        before = network.head.weight.clone()
        found = head_start(network, [(inputs, labels, torch.arange(20))])
        assert found.kind == "random"
        assert "the head stays as it was" in str(found)
        assert torch.equal(network.head.weight, before)
        assert not network.body[1].running_mean.any()


def test_a_batch_with_an_image_of_nan_does_not_count() -> None:
    good, bad = data(2)
    bad[0][3] = torch.nan
    network = Network()
    assert head_start(network, [good, bad], config=FIXED).images == 20
    assert is_close(network, by_hand(network, [good]))


def test_the_head_of_a_network_that_does_not_say_is_the_last_dense_layer_that_is_called_so() -> None:
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=C)  # classifier.0, an activation, dropout, and classifier.3
    batches = [(torch.randn(20, 3, 32, 32), torch.randint(C, (20,)))]
    named = copy.deepcopy(network)
    before = {name: p.clone() for name, p in network.named_parameters()}
    head_start(network, batches)
    head_start(named, batches, head=named.classifier[3])
    moved = [name for name, p in network.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["classifier.3.weight", "classifier.3.bias"]
    assert torch.equal(network.classifier[3].weight, named.classifier[3].weight)


def frozen_bias() -> nn.Linear:
    head = nn.Linear(8, C)
    head.bias.requires_grad_(False)
    return head


@pytest.mark.parametrize(
    ("network", "batches", "message"),
    [
        (Network(), [], "at least one batch"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), data(), "Sequential has no dense layer, and so no dense head$"),  # as SqueezeNet
        (nn.Sequential(nn.Linear(2, 3)), data(), r"Sequential has no dense head .*: give it, head_start\(network, batches, head=\.\.\.\)"),
        (Network(head=nn.Conv2d(8, C, 1)), data(), "no dense head: it says that its head is of Conv2d, which is no dense layer"),
        (Network().requires_grad_(False), data(), r"the head is frozen, .*: thaw it, head\.requires_grad_\(True\), or leave it out"),
        (Network(head=frozen_bias()), data(), r"the head is frozen, or a part of it, .*: thaw it"),
        (Network(head=nn.utils.parametrizations.weight_norm(nn.Linear(8, C))), data(), "weights of its own"),
        (Network(head=nn.utils.spectral_norm(nn.Linear(8, C))), data(), "weights of its own"),
        (Network(classes=4), data(), r"from 0 to 3, the classes of the head \(got 4\)"),
        (
            Network(),
            [(x, F.one_hot(y, C).float()) for x, y in data()],
            "labels must be whole numbers, .*; a head start is for images that are",
        ),
        (Network(), [(x, y > 0) for x, y in data()], "labels must be whole numbers"),
        (Network(), [(x, y, torch.ones(len(x))) for x, y in data()], r"the number of each image, .* alone \(got \(\d+,\), torch.float32\)"),
        (Network(), [(x, y, ["a.png"] * len(x)) for x, y in data()], r"the number of each image, .* alone \(got list\)"),
        (Network(), [(x[:, None], y) for x, y in data()], "features of"),
        (
            Network(),
            [{"pixels": x, "labels": y} for x, y in data()],
            r"\(inputs, labels\), tensors \(got a dict of pixels, labels\); of mappings",
        ),
        (Network(), [x for x, _ in data()], r"a batch must be \(inputs, labels\), tensors \(got \(\d+, .*float32\)"),
        (Network(), [(x, y.tolist()) for x, y in data()], r"a batch must be \(inputs, labels\), tensors \(got tuple\)"),
    ],
)
def test_what_cannot_be_is_refused(network: nn.Module, batches: list[tuple[Tensor, Tensor]], message: str) -> None:
    if isinstance(network, Network) and message == "features of":
        network.body[1] = nn.Identity()
    with pytest.raises(ValueError, match=message):
        head_start(network, batches)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_whole_numbers_of_any_size(dtype: torch.dtype) -> None:
    one, other = Network(), Network()
    other.load_state_dict(one.state_dict())
    head_start(one, data())
    head_start(other, [(x, y.to(dtype)) for x, y in data()])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_limits_are_whole_numbers() -> None:
    for limit in (0, 1.5):
        with pytest.raises(ValueError, match=f"limit must be a whole number of batches, at least 1 .got {limit}"):
            head_start(Network(), data(), limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [("ridges", ()), ("ridges", (1.0, 0.3)), ("scales", (-1.0,)), ("left", 1.0), ("folds", 1), ("keep_mib", 0.0), ("sure", -1.0)],
)
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        HeadStartConfig(**{field: value})  # type: ignore[arg-type]


def shared(rank: int, folder: Path) -> dict[str, Tensor]:
    """What two processes find that have two batches each, kept or not."""
    found: dict[str, Tensor] = {}
    configs = {"kept": FIXED, "sums": replace(FIXED, keep_mib=1e-3), "chosen": HeadStartConfig()}
    for name, config in configs.items():
        network = Network()
        start = head_start(network, data()[rank::2], config=config)
        found |= {f"{name}.weight": network.head.weight.detach(), f"{name}.images": torch.tensor(start.images)}
    return found


@pytest.mark.slow  # two processes import everything
def test_processes_make_one_head_of_all_their_images(tmp_path: Path) -> None:
    with processes(2) as ranks:
        first, second = run_on(ranks, shared, tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("kept", "sums"):
        assert first[f"{name}.images"] == 80
        assert torch.allclose(first[f"{name}.weight"].double(), by_hand(Network(), data())[0], rtol=1e-4, atol=1e-4)


def test_it_does_no_harm_with_1280_features_and_5_images_a_class() -> None:
    """A run from it is ahead of one from a random head, where a head that interpolates the images is behind."""
    classes = 25
    g = torch.Generator().manual_seed(4)
    centres = torch.randn(classes, 12, generator=g)
    labels = torch.arange(classes).repeat(5)[torch.randperm(5 * classes, generator=g)]
    batches = [(centres[y] + torch.randn(25, 12, generator=g), y) for y in labels.split(25)]
    y = torch.arange(classes).repeat(20)
    held_out = centres[y] + torch.randn(len(y), 12, generator=g)

    def run(config: HeadStartConfig | None) -> float:
        """The loss after 10 steps."""
        network = Network(1280, classes=classes)
        network.body[3].p = 0.0
        if config is not None:
            head_start(network, batches, config=config)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for k in range(10):
            optimizer.zero_grad()
            F.cross_entropy(network(batches[k % 5][0]), batches[k % 5][1]).backward()
            optimizer.step()
        return F.cross_entropy(network(held_out), y).item()

    random_head, chosen, interpolating = run(None), run(HeadStartConfig()), run(HeadStartConfig((0.3,), (30.0,)))
    assert chosen < random_head < interpolating


def test_it_is_at_the_top() -> None:
    assert l3rs.head_start is head_start
    with pytest.raises(AttributeError, match="no attribute 'tail_start'"):
        l3rs.tail_start  # noqa: B018
