"""Meta-training of L3RS that starts from an existing schedule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import quick

from l3rs.controller.config import ANY_NETWORK, L3RSConfig
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.train import meta_train, start
from l3rs.schedules.find import PAPER_SPECIALIST, START, load, save
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError


def going_on(given: str, **changes: object) -> MetaTrainConfig:
    return quick(1, **({"start": (given,), "schedule": L3RSConfig()} | changes))  # type: ignore[arg-type]


def test_meta_training_takes_up_the_numbers_and_the_form_of_a_schedule(tmp_path: Path) -> None:
    shipped = load(START)
    mine = replace(shipped, theta=shipped.theta + torch.linspace(-0.1, 0.1, len(shipped.theta)), name="mine", training={"generation": 7})
    save(mine, tmp_path / "mine.safetensors")
    chosen = meta_train(going_on(str(tmp_path / "mine.safetensors"), name="further"), tmp_path / "run", progress=False)
    first, last = (LearnedSchedule.read(tmp_path / "run" / f"theta-0000{generation}.safetensors") for generation in (0, 1))
    assert torch.equal(first.theta, mine.theta)
    assert first.config == ANY_NETWORK
    assert not torch.equal(last.theta, mine.theta)
    assert chosen.name == "further"
    assert chosen.training["config"]["start"] == [str(tmp_path / "mine.safetensors")]
    assert chosen.training["generation"] in (0, 1)


def test_a_specialist_goes_on_where_its_layers_are_the_networks() -> None:
    paper = load(PAPER_SPECIALIST)
    found = start(going_on(PAPER_SPECIALIST, specialist=True))  # ResNet-18, whose layers ResNet-34 has
    assert isinstance(found, LearnedSchedule)
    assert torch.equal(found.theta, paper.theta)
    assert (found.layers, found.config, found.name, found.training) == (paper.layers, paper.config, "quick", {})
    assert found.sizes == paper.sizes
    with pytest.raises(ValueError, match=r"start must fit the network \(got icons-resnet34-paper: .*110 layers by name, but not layer1"):
        start(going_on(PAPER_SPECIALIST, specialist=True, model="resnet50", width=None))


@pytest.mark.parametrize(
    ("given", "changes", "said"),
    [
        (START, {"schedule": L3RSConfig(lr0=0.1)}, r"schedule\.lr0 must be that of the start start, 0\.02, or left out \(got 0\.1\)"),
        (START, {"schedule": L3RSConfig(embedding=8)}, r"schedule\.embedding must be that of the start start, 0, or left out \(got 8\)"),
        (START, {"specialist": True}, r"specialist must be False with the start start, which knows no layer by name \(got True\)"),
        (PAPER_SPECIALIST, {}, "specialist must be True with the start icons-resnet34-paper, which knows 110 layers by name"),
    ],
)
def test_settings_that_contradict_the_start_are_refused(given: str, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        start(going_on(given, **changes))


def test_the_form_of_the_start_may_be_repeated() -> None:
    found = start(going_on(START, schedule=ANY_NETWORK))
    assert torch.equal(found.theta, load(START).theta)


def test_what_is_no_schedule_or_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a file; a learned schedule is one of"):
        start(going_on("nowhere"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        start(going_on(str(tmp_path / "file")))
    with pytest.raises(ValueError, match=r"start must be one schedule, for l3rs \(got start, icons-generalist\)"):
        quick(1, start=(START, "icons-generalist"))
