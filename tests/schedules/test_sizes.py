"""By which `auto` knows the network that a specialist was meta-trained on: names, and the sizes of the weights."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_schedule, small_network
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from l3rs import L3RS, load, save
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import Run, execute
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS, Start, sizes_of
from l3rs.networks.create import initialize, resnet34
from l3rs.networks.pretrained import pretrained
from l3rs.schedules import find
from l3rs.schedules.find import CHECKPOINTS, SHIPPED, SPECIALISTS, resolve
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError, read_sealed, write_sealed
from l3rs.schedules.sizes import TOLERANCE, log_sizes

NAME = SPECIALISTS[0]
AGREE, UNKNOWN = f"{NAME}: names and sizes agree", f"names agree with {NAME}, sizes cannot be compared"


def why(network: nn.Module) -> str:
    return str(resolve("auto", list(network.named_parameters())))


@pytest.fixture
def own() -> nn.Module:
    return pretrained(7, head_seed=3)


def test_auto_takes_a_specialist_for_its_own_network_and_for_no_other(own: nn.Module) -> None:
    assert why(own) == AGREE
    assert f"(learned={NAME!r} (names and sizes agree), " in repr(L3RS(own.named_parameters(), 10))
    drawn = resnet34(16)
    initialize(drawn, 0)
    for network, gap in ((pretrained(7, weights="glyphs"), 0.2), (resnet34(16), 0.7), (drawn, 0.7), (resnet34(64), 1.3)):
        found = resolve("auto", list(network.named_parameters()))
        said = re.fullmatch(rf"names agree with {NAME}, sizes do not \(median ([\d.]+) nats apart\)", found.why)
        assert said, found.why
        assert float(said[1]) > gap
        assert not found.schedule.layers
    assert why(small_network()).endswith(": no specialist knows all names")
    assert resolve("auto", []).why == "only names tell a network, and there are none"
    assert str(resolve(NAME, [])) == NAME  # asked for by name: nothing is compared


def test_it_is_the_same_network_in_any_form_and_in_part(own: nn.Module) -> None:
    named = list(own.named_parameters())
    assert why(nn.ModuleDict({"wrapped": own})) == AGREE
    assert str(resolve("auto", named[60:])) == AGREE  # a frozen stem
    assert why(pretrained(7).to(torch.bfloat16)) == AGREE
    assert why(pretrained(7).to(memory_format=torch.channels_last)) == AGREE  # type: ignore[call-overload]


def test_where_sizes_cannot_be_told_it_is_the_generalist(own: nn.Module) -> None:
    assert resolve("auto", list(own.named_parameters())[-2:]).why == UNKNOWN  # the head alone, which is new
    with torch.device("meta"):
        assert UNKNOWN in repr(L3RS(resnet34(16).named_parameters(), 10))
    with torch.no_grad():
        own.get_parameter("layer1.0.conv1.weight").fill_(torch.nan)
    assert "sizes do not (median nan" in why(own)


def test_sizes_of_sharded_parameters_are_of_the_whole(tmp_path: Path) -> None:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        mesh, weights = init_device_mesh("cpu", (1,)), [torch.randn(4, 3), torch.zeros(5), torch.zeros(0)]
        sharded = [nn.Parameter(distribute_tensor(w, mesh, [Shard(0)])) for w in weights]
        assert log_sizes(sharded) == log_sizes(weights)
    finally:
        destroy_process_group()
    assert log_sizes([torch.full((4,), 0.5)]) == pytest.approx([-0.6931], abs=1e-4)


def test_of_several_specialists_that_know_the_names_it_is_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    networks = {weights: pretrained(7, weights=weights) for weights in ("glyphs", "icons")}
    for weights, network in networks.items():
        save(replace(load(NAME), name=weights, sizes=sizes_of(network)), tmp_path / f"{weights}.safetensors")
    monkeypatch.setattr(find, "SPECIALISTS", tuple(str(tmp_path / f"{weights}.safetensors") for weights in networks))
    assert [why(network) for network in networks.values()] == [f"{weights}: names and sizes agree" for weights in networks]


def test_a_file_without_sizes_is_never_taken_by_auto(own: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "old.safetensors"
    save(replace(load(NAME), sizes=()), old)
    assert "sizes" not in read_sealed(old)[0]
    monkeypatch.setattr(find, "SPECIALISTS", (str(old),))
    found = resolve("auto", list(own.named_parameters()))
    assert (found.why, found.schedule.layers) == (UNKNOWN, ())


def test_every_shipped_schedule_of_layers_by_name_keeps_sizes() -> None:
    for schedule in map(load, SHIPPED):
        assert len(schedule.sizes) == len(schedule.layers)
        assert [name for name, size in zip(schedule.layers, schedule.sizes, strict=True) if size is None] == [
            *(("fc.weight", "fc.bias") if schedule.layers else ())
        ]


def test_meta_training_begins_with_the_sizes_of_its_network(tmp_path: Path) -> None:
    made = LEARNERS["l3rs"].start(Start(), "mine", lambda: resnet34(4))
    assert isinstance(made, LearnedSchedule)
    save(made, tmp_path / "mine.safetensors")
    assert load(tmp_path / "mine.safetensors").sizes == made.sizes
    assert made.apart(list(resnet34(4).named_parameters())) == pytest.approx(0, abs=0.1)  # drawn anew
    assert random_schedule(small_network()).apart(list(small_network().named_parameters())) is None
    with torch.device("meta"):
        assert sizes_of(resnet34(4)) == ()


@pytest.mark.parametrize("sizes", [[0.5], "many", {"a": 1}, ["a"] * 110, [True] * 110, [float("nan")] * 110, 3])
def test_sizes_that_cannot_be_are_refused(sizes: object, tmp_path: Path) -> None:
    about, tensors = read_sealed(CHECKPOINTS / f"{NAME}.safetensors")
    write_sealed(tmp_path / "wrong.safetensors", about | {"sizes": sizes}, tensors)
    with pytest.raises(CheckpointError, match="has l3rs metadata that this version cannot read"):
        load(tmp_path / "wrong.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["icons", "glyphs"])
@pytest.mark.parametrize("optimizer", ["l3rs", "adam", "adamw-layer-decay"])
def test_fine_tuning_leaves_a_network_what_it_was(split: str, optimizer: str) -> None:
    workload, purpose = Workload(split, weights="icons"), "meta-validation" if split == "icons" else "meta-test"
    execute(Run("sizes", Arm(optimizer, optimizer, learned=NAME), 100, 0, purpose, workload=workload))
    tuned = list(workbench(workload, TaskConfig(), "cpu").network.named_parameters())
    gap = load(NAME).apart(tuned)
    assert gap is not None
    assert 0 < gap < 0.6 * TOLERANCE
