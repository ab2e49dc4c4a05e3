"""Meta-training over a zoo: what a task is follows from its seed, and candidates and gradients have the same runs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_runs import quick

from l3rs.controller.config import L3RSConfig
from l3rs.finetuning.tasks import TaskConfig, TaskDistribution
from l3rs.finetuning.variety import META_PURPOSES, Variety, ZooConfig
from l3rs.learners import LEARNERS
from l3rs.meta.config import LOG_FLOOR, GradientConfig, MetaTrainConfig
from l3rs.meta.problem import FineTuning
from l3rs.meta.train import generation_tasks, meta_train, start
from l3rs.networks.create import create

ROOT = Path(__file__).resolve().parents[2]
ZOO = ZooConfig(str(ROOT / "configs" / "zoo.yaml"), "nowhere")
TWO = """
one: {split: icons, model: resnet18, width: 4, weights: grey.safetensors, held_out: false}
two: {split: emoji, side: 32, model: resnet18, width: 4, weights: colour.safetensors, held_out: false}
three: {split: icons, model: resnet18, width: 4, weights: none.safetensors, held_out: true}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> MetaTrainConfig:
    """Two networks with short runs."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "two.yaml").write_text(TWO)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, channels in (("grey", 1), ("colour", 3)):
            save_file(create("resnet18", 4, channels, 10).state_dict(), folder / f"{name}.safetensors")
    zoo = ZooConfig(
        str(folder / "two.yaml"), str(folder), classes=(3, 12), batch_size=(8, 12), evaluation_size=(16, 24), random_heads=0.5, frozen=0.5
    )
    return quick(2, search="gradient", objective="log", meta_batch=4, head="start", refresh=True, zoo=zoo)


def test_every_task_of_the_zoo_can_be_drawn_and_each_network_has_its_turn() -> None:
    variety = Variety(ZOO, "start")
    met, settings = Counter[str](), []
    for purpose in META_PURPOSES:
        for place in range(60):
            seed = variety.seed_for(1000 * place, place)
            setting = variety.setting(purpose, seed)
            assert setting == variety.setting(purpose, seed)
            workload, task = setting.workload, setting.task
            classes = workload.class_split.classes[purpose]
            assert len(TaskDistribution(workload.images(purpose), classes, task).draw(seed, 1).classes) == task.classes
            assert 2 <= task.classes <= 50
            assert 8 <= task.batch_size <= 128
            assert 16 <= task.evaluation_size <= 200
            met[str(workload.weights)] += 1
            settings.append(setting)
    assert set(met.values()) == {8}
    assert len(met) == 15
    assert {s.head for s in settings} == {"random", "start"}
    assert {s.frozen for s in settings} == {False, True}
    assert {s.workload.split for s in settings} == {"icons", "emoji"}  # Glyphs has no classes to meta-train on
    assert min(s.task.classes for s in settings) <= 3 < 40 <= max(s.task.classes for s in settings)


def test_what_images_there_are_is_asked_of_each_network(small: MetaTrainConfig) -> None:
    """Not of the split alone: two networks may have folders of their own with the same classes."""
    assert small.variety is not None
    one, two = small.variety.workloads
    counted = {workload: small.variety._smallest(replace(workload, split="icons", side=None), "meta-train") for workload in (one, two)}
    assert counted[one] == counted[two]
    assert len({key for key in small.variety._counts if key[0].split == "icons"}) >= 2


def test_each_network_meets_short_runs_and_long_ones(small: MetaTrainConfig) -> None:
    """Also where networks take turns as tasks of a generation do: two of one, and four of the other."""
    config = replace(small, steps=(5, 150), steps_distribution="log-uniform")
    met: dict[str, list[int]] = {}
    for generation in range(40):
        for seed, steps in generation_tasks(config, generation):
            met.setdefault(config.setting("meta-train", seed).workload.split, []).append(steps)
    assert len(met) == 2
    assert all(min(steps) < 12 and max(steps) > 80 for steps in met.values())


def test_candidates_and_gradients_have_the_same_runs_whose_losses_count_by_their_logarithm(small: MetaTrainConfig) -> None:
    learned = start(small)
    problem = FineTuning(learned, small)
    problem.tasks = generation_tasks(small, 1)  # generation 0 has a task whose gradient is chaotic, in the thousands
    settings = [small.setting("meta-train", seed) for seed, _ in problem.tasks]
    assert len({s.workload.weights for s in settings}) == 2
    assert any(s.frozen for s in settings)
    found = problem.gradients(learned.theta)
    assert not any(task.error for task in found)
    loss, diverged = problem.loss(learned.theta)
    assert not diverged
    assert sum(task.loss for task in found) / len(found) == pytest.approx(loss, rel=1e-3)
    plain = FineTuning(learned, replace(small, objective="final"))
    plain.tasks = problem.tasks
    for log, of_loss in zip(found, plain.gradients(learned.theta), strict=True):
        assert log.loss == pytest.approx(math.log(of_loss.loss + LOG_FLOOR), rel=1e-4)
        torch.testing.assert_close(log.theta, of_loss.theta / (of_loss.loss + LOG_FLOOR), rtol=1e-3, atol=1e-6)


def test_a_run_over_a_zoo_is_made_to_its_end(small: MetaTrainConfig, tmp_path: Path) -> None:
    chosen = meta_train(small, tmp_path / "run", progress=False)
    assert chosen.training["config"]["zoo"]["classes"] == [3, 12]
    assert (pd.read_csv(tmp_path / "run" / "curve.csv").mean_loss.dropna() > 0).all()  # in nats, not their logarithms
    last = LEARNERS["l3rs"].read(tmp_path / "run" / "theta-00002.safetensors")  # the start itself may be chosen, by validation
    assert not torch.equal(last.theta, start(small).theta)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"specialist": True}, "specialist must be false with a zoo"),
        ({"device": "cuda"}, r"device must be cpu with a zoo \(got cuda\)"),
    ],
)
def test_what_fits_one_network_alone_is_refused(changes: dict[str, object], said: str) -> None:
    form = MetaTrainConfig().schedule if changes.get("specialist") else quick().schedule
    with pytest.raises(ValueError, match=said):
        quick(zoo=ZOO, schedule=form, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zoo": ZOO, "model": "resnet18"}, r"^model has no effect with a zoo: leave it out \(got resnet18\)"),
        ({"zoo": ZOO, "task": TaskConfig(classes=5)}, r"^task\.classes has no effect with a zoo: leave it out \(got 5\)"),
        ({"zoo": ZooConfig(frozen=0.5)}, r"^zoo\.frozen has no effect with no zoo\.file: leave it out \(got 0\.5\)"),
        ({"gradient": GradientConfig(lr=0.1)}, r"^gradient\.lr has no effect with search nes: leave it out \(got 0\.1\)"),
        (
            {"optimizer": "celo", "schedule": L3RSConfig(lr0=0.1)},
            r"^schedule\.lr0 has no effect with optimizer celo: leave it out \(got 0\.1\)",
        ),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quick(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": (1, 5)}, r"classes must be two whole numbers of at least 2, the smaller first \(got \[1, 5\]\)"),
        ({"batch_size": (8, 4)}, r"batch_size must be two whole numbers .* \(got \[8, 4\]\)"),
        ({"frozen": 1.5}, r"frozen must be a share between 0 and 1 \(got 1.5\)"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(ZOO, **changes)


def test_weights_that_are_missing_are_found_before_work_is_lost(tmp_path: Path) -> None:
    config = quick(zoo=ZOO)
    with pytest.raises(ValueError, match=r"resnet18-w16-icons\.safetensors"):
        meta_train(config, tmp_path / "run", progress=False)
    (tmp_path / "all.yaml").write_text(TWO.replace("false", "true"))
    with pytest.raises(ValueError, match="has no network to meta-train on: all are held out"):
        Variety(ZooConfig(str(tmp_path / "all.yaml")), "start")
