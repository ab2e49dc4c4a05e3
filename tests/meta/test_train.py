"""Meta-training on Icons, small: it learns, resumes, and refuses what does not belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from small_runs import bits, quick, same

from l3rs.controller.config import L3RSConfig
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.meta import train
from l3rs.meta.config import MetaTrainConfig, NESConfig
from l3rs.meta.problem import FineTuning, fine_tune, remote_bench
from l3rs.meta.train import generation_tasks, meta_train, start
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.stats import mean_interval

TASK = TaskConfig(classes=5, batch_size=16, evaluation_size=40)


def tiny(generations: int, **changes: object) -> MetaTrainConfig:
    """Ten steps on five classes, from a step size that is far too small: there is something to learn, and quickly."""
    settings: dict[str, object] = {
        "name": "tiny",
        "generations": generations,
        "specialist": False,
        "steps": (4, 6),
        "validate_every": 2,
        "validation_steps": (5,),
        "validation_tasks": 2,
        "workers": 1,
        "finalists": 2,
        "final_tasks": 2,
        "schedule": L3RSConfig(embedding=0, lr0=1e-4),
        "nes": NESConfig(population=8, sigma=0.1, lr=0.05),
        "task": TASK,
    }
    return MetaTrainConfig.of(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations."""
    out = tmp_path_factory.mktemp("plain")
    meta_train(quick(2), out, progress=False)
    return out


@pytest.fixture(scope="module")
def learned_something(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six generations, from a bad start."""
    out = tmp_path_factory.mktemp("learned")
    meta_train(tiny(6), out, progress=False)
    return out


def test_held_out_loss_falls_beyond_noise(learned_something: Path) -> None:
    """Paired over 12 meta-validation tasks that had no part in it, the 95% interval of the change lies below 0."""
    config = tiny(6)
    learned = LearnedSchedule.read(learned_something / "theta-00006.safetensors")
    before, bench = start(config), workbench(config.workload, TASK)
    changes = [
        fine_tune(learned, learned.theta, bench, "meta-validation", seed, 5).loss[5]
        - fine_tune(before, before.theta, bench, "meta-validation", seed, 5).loss[5]
        for seed in range(1000, 1012)
    ]
    mean, _, high = mean_interval(changes)
    assert high < 0
    assert mean < -0.02
    curve = pd.read_csv(learned_something / "curve.csv")
    assert curve.generation.to_list() == list(range(7))
    assert curve.validation_loss.dropna().shape == (4,)


def test_the_best_finalist_is_kept(learned_something: Path) -> None:
    kept = LearnedSchedule.read(learned_something / "tiny.safetensors")
    curve = pd.read_csv(learned_something / "curve.csv").dropna(subset=["validation_accuracy"])
    generation, finals = kept.training["generation"], kept.training["finalists"]
    assert len(finals) == 2
    assert set(map(int, finals)) <= set(curve.generation)
    assert finals[str(generation)][1] == min(loss for _, loss in finals.values())
    assert torch.equal(LearnedSchedule.read(learned_something / f"theta-{generation:05d}.safetensors").theta, kept.theta)
    assert (learned_something / "curve.png").exists()


def test_a_run_in_two_parts_is_the_same_run(plain: Path, tmp_path: Path) -> None:
    meta_train(quick(1), tmp_path, progress=False)
    with (tmp_path / "curve.csv").open("a") as curve:
        curve.write("9,5,1,1,1,1,0,1,1,,,1,1\n")  # as if it had been killed between a row and the state
    meta_train(quick(2), tmp_path, progress=False)
    assert same(bits(plain, 2), bits(tmp_path, 2))
    assert pd.read_csv(tmp_path / "curve.csv").generation.to_list() == [0, 1, 2]


def test_a_run_that_was_extended_keeps_what_a_straight_one_keeps(tmp_path: Path) -> None:
    """The end of its first part, which only that part validates, is no candidate."""
    longer = quick(4, validate_every=2, finalists=9)
    straight = meta_train(longer, tmp_path / "straight", progress=False)
    meta_train(replace(longer, generations=3), tmp_path / "extended", progress=False)
    extended = meta_train(longer, tmp_path / "extended", progress=False)
    assert set(straight.training["finalists"]) == {"0", "2", "4"}
    assert extended.training["finalists"] == straight.training["finalists"]
    assert extended.training["generation"] == straight.training["generation"]


def test_generations_share_tasks_and_differ_from_each_other() -> None:
    config = MetaTrainConfig(meta_batch=3)
    tasks = generation_tasks(config, 5)
    assert tasks == generation_tasks(config, 5) != generation_tasks(config, 6)
    assert len({seed for seed, _ in tasks}) == 3
    drawn = {steps for g in range(2000) for _, steps in generation_tasks(config, g)}
    assert (min(drawn), max(drawn)) == (10, 100)


@pytest.mark.parametrize(("distribution", "thirds"), [("uniform", (9.5, 40, 70, 100.5)), ("log-uniform", (9.5, 20.9, 45.8, 100.5))])
def test_each_generation_has_short_and_long_runs(distribution: str, thirds: tuple[float, ...]) -> None:
    for generation in range(200):
        steps = [k for _, k in generation_tasks(MetaTrainConfig(meta_batch=3, steps_distribution=distribution), generation)]
        assert all(low - 0.5 <= k <= high + 0.5 for k, low, high in zip(steps, thirds, thirds[1:], strict=False)), (generation, steps)


def test_log_uniform_steps_dwell_on_short_runs() -> None:
    """Both ends are drawn, and half of all runs are shorter than the geometric mean of the ends; of uniform ones, a quarter."""
    drawn = {
        distribution: np.array([generation_tasks(MetaTrainConfig(steps_distribution=distribution), g)[0][1] for g in range(3000)])
        for distribution in ("uniform", "log-uniform")
    }
    short = {distribution: (steps < math.sqrt(10 * 100)).mean() for distribution, steps in drawn.items()}
    assert short["log-uniform"] == pytest.approx(math.log(31.5 / 9.5) / math.log(100.5 / 9.5), abs=0.03)
    assert short["log-uniform"] == pytest.approx(0.5, abs=0.04)
    assert short["uniform"] == pytest.approx(22 / 91, abs=0.03)
    for steps in drawn.values():
        assert (steps.min(), steps.max()) == (10, 100)
    tens = (drawn["log-uniform"] == 10).mean()  # an end is no rarer than it should be
    assert tens == pytest.approx(math.log(10.5 / 9.5) / math.log(100.5 / 9.5), abs=0.015)
    narrow = {generation_tasks(MetaTrainConfig(steps=(1, 2), steps_distribution="log-uniform"), g)[0][1] for g in range(100)}
    assert narrow == {1, 2}


@pytest.mark.parametrize(
    "changes",
    [{"objective": "mean"}, {"precision": "bfloat16"}, {"nes": replace(quick().nes, lr=5.0, optimizer="sgd")}],
    ids=["mean", "bfloat16", "sgd"],
)
def test_settings_change_what_is_learned_and_resume_all_the_same(changes: dict[str, object], plain: Path, tmp_path: Path) -> None:
    meta_train(quick(2, **changes), tmp_path / "straight", progress=False)
    for generations in (1, 2):
        meta_train(quick(generations, **changes), tmp_path / "parts", progress=False)
    assert same(bits(tmp_path / "straight", 2), bits(tmp_path / "parts", 2))
    assert not torch.equal(bits(tmp_path / "straight", 2)["center"], bits(plain, 2)["center"])
    losses = [pd.read_csv(run / "curve.csv").mean_loss[1] for run in (tmp_path / "straight", plain)]
    assert ("nes" in changes) == (losses[0] == losses[1])
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("objective", ["mean", "error"])
def test_the_objective_is_the_mean_of_the_training_losses_or_the_share_of_errors(objective: str) -> None:
    config = quick(objective=objective, meta_batch=2)
    learned = start(config)
    problem = FineTuning(learned, config)
    problem.tasks = generation_tasks(config, 0)
    bench = workbench(config.workload, config.task)
    reports = [fine_tune(learned, learned.theta, bench, "meta-train", seed, steps) for seed, steps in problem.tasks]
    each = [
        np.mean(r.train_losses) if objective == "mean" else 1 - r.accuracy[steps]
        for r, (_, steps) in zip(reports, problem.tasks, strict=True)
    ]
    assert problem.loss(learned.theta) == (pytest.approx(np.mean(each)), False)


def test_a_diverged_candidate_gets_the_penalty() -> None:
    learned = start(tiny(1, schedule=L3RSConfig(embedding=0, lr0=1e30)))
    problem = FineTuning(learned, tiny(1))
    problem.tasks = [(0, 3)]
    assert problem.loss(learned.theta) == (20.0, True)


@pytest.fixture
def ray_ends() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.mark.slow
def test_two_workers_do_what_one_does(tmp_path: Path, ray_ends: None) -> None:
    alone = meta_train(tiny(2), tmp_path / "1", progress=False)
    both = meta_train(tiny(2, workers=2), tmp_path / "2", progress=False)
    assert torch.equal(alone.theta, both.theta)


def test_a_process_looks_at_the_images_once_and_not_for_each_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(Workload, "prepare", lambda *what, **how: looked.append(what))
    problem = FineTuning(start(tiny(1)), tiny(1))
    problem._actor_index = 0  # as in a process of Ray's
    remote_bench.cache_clear()
    setting = problem.config.setting("meta-train", 0)
    assert problem._bench(setting) is problem._bench(setting)
    assert len(looked) == 1


@pytest.mark.parametrize("given", [None, "10.0.0.1:6379"])
def test_ray_is_started_here_unless_an_address_is_given(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where RAY_ADDRESS is set, as on the nodes of a cluster; and on no more cores than this process may use."""
    asked: dict[str, object] = {}
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(train, "cores", lambda: 3)
    monkeypatch.setattr(train, "check_address", lambda _: None)
    monkeypatch.setattr(train, "places", lambda _: 5)
    monkeypatch.setattr(train.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(train.ray, "init", lambda **options: asked.update(options))
    assert train.processes(quick(workers=0, ray_address=given)) == 5
    assert asked["address"] == (given or "local")
    assert asked.get("num_cpus") == (None if given else 3)
