"""How layers find what was learned for them."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm and torchvision)

from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from conftest import random_schedule, small_network
from torch import nn

from l3rs import L3RS, L3RSConfig, LearnedSchedule, load
from l3rs.controller.initial import initial_theta
from l3rs.networks.create import resnet, resnet34
from l3rs.schedules.find import GENERALIST


def named(learned: LearnedSchedule, names: list[str], match: str = "name") -> list[str]:
    """The layers that the schedule takes `names` for."""
    return [learned.layers[i] for i in learned.slots(len(names), names, match)]


@pytest.fixture(scope="module")
def specialist() -> LearnedSchedule:
    return load("icons-resnet34")


def test_every_resnet34_of_timm_and_torchvision_matches(specialist: LearnedSchedule) -> None:
    for network in (resnet34(2), timm.create_model("resnet34", num_classes=7), torchvision.models.resnet34(num_classes=7)):
        names = [name for name, _ in network.named_parameters()]
        assert len(names) == 110
        assert named(specialist, names) == names


def test_unused_slots_are_fine(specialist: LearnedSchedule) -> None:
    names = [name for name, _ in resnet(18, 2).named_parameters()]
    assert named(specialist, names) == names
    assert "icons-resnet34" in repr(L3RS(resnet(18, 2).named_parameters(), 5, specialist))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "network.", "model.backbone."])
def test_wrappers_do_not_matter(specialist: LearnedSchedule, prefix: str) -> None:
    assert named(specialist, [prefix + name for name in specialist.layers]) == list(specialist.layers)


@pytest.mark.parametrize("head", ["classifier", "head.fc", "fc.1"])
def test_a_head_of_another_name_and_size_has_the_heads_slot(specialist: LearnedSchedule, head: str) -> None:
    names = [name.replace("fc.", f"{head}.") if name.startswith("fc.") else name for name in specialist.layers]
    assert named(specialist, names) == list(specialist.layers)
    assert named(specialist, names[-2:] + names[:5]) == list(specialist.layers[-2:] + specialist.layers[:5])


def test_two_unknown_modules_are_not_a_head(specialist: LearnedSchedule) -> None:
    names = [name for name in specialist.layers if not name.startswith("fc.")] + ["fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"]
    with pytest.raises(ValueError, match=r"not fc\.0\.weight, fc\.0\.bias, fc\.2\.weight and 1 more; use learned='auto', a generalist"):
        specialist.slots(len(names), names)
    with pytest.raises(ValueError, match=r"but not extra\.weight"):  # the head is there: what is unknown is something else
        specialist.slots(111, [*specialist.layers, "extra.weight"])


def test_a_network_of_which_nothing_is_known_has_no_head(specialist: LearnedSchedule) -> None:
    assert GENERALIST in repr(L3RS(nn.Linear(3, 2).named_parameters(), 5))
    with pytest.raises(ValueError, match="but not weight, bias"):
        specialist.slots(2, ["weight", "bias"])


def test_auto_falls_back_to_the_generalist() -> None:
    resnet50 = timm.create_model("resnet50", num_classes=3)
    for params in (resnet50.named_parameters(), small_network().named_parameters()):
        assert GENERALIST in repr(L3RS(params, 5))
    with pytest.warns(UserWarning, match=r"110 parameters without names; .*pass model\.named_parameters\(\)"):
        optimizer = L3RS(resnet34(2).parameters(), 5)
    assert GENERALIST in repr(optimizer)


def test_names_are_asked_for_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"the parameters have none: pass model\.named_parameters\(\)"):
        L3RS(resnet34(2).parameters(), 5, "icons-resnet34")


def test_by_position() -> None:
    network = nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.Linear(3, 1)))
    learned = random_schedule(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)))
    optimizer = L3RS(network.parameters(), 5, learned, match="position")
    assert list(optimizer._tables.slots.values()) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="has slots for 6 layers, and there are 7, with match='position'"):
        L3RS(small_network().named_parameters(), 5, learned, match="position")
    with pytest.raises(
        ValueError, match=r"random knows 6 layers by name, but not a\.weight, a\.bias, b\.weight and 1 more.*match='position'"
    ):
        L3RS(network.named_parameters(), 5, learned)


def test_by_position_no_layer_may_come_during_the_run() -> None:
    """It would be counted after those that it lies before."""
    network = nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.Linear(3, 1)))
    learned = random_schedule(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)))
    optimizer = L3RS(network.b.parameters(), 5, learned, match="position")
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step(loss=1.0)
    with pytest.raises(ValueError, match="match='position' counts the layers of the whole network: give all at the start"):
        optimizer.add_param_group({"params": list(network.a.parameters())})
    assert len(optimizer.param_groups) == 1


def test_a_layer_uses_the_embedding_of_its_slot() -> None:
    """Two networks with the same layers in another order are stepped alike, layer by layer."""
    config = L3RSConfig()
    theta = initial_theta(config, ("a", "b"), 0)
    learned = LearnedSchedule(config, ("a", "b"), theta + 0.1 * torch.randn(theta.shape))
    moved = []
    for order in (("a", "b"), ("b", "a")):
        params = {name: nn.Parameter(torch.ones(4)) for name in order}
        for name, p in params.items():
            p.grad = torch.arange(1.0, 5.0) * (1 if name == "a" else 2)
        L3RS(list(params.items()), 5, learned).step(loss=1.0)
        moved.append(params)
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in "ab")
    assert not torch.equal(moved[0]["a"], moved[0]["b"])
