"""Meta-training on Icons, small: it learns, resumes, and refuses what does not belong together."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from l3rs.checkpoint import CheckpointError, read
from l3rs.config import L3RSConfig
from l3rs.meta.config import MetaTrainConfig, NESConfig
from l3rs.meta.problem import FineTuning, fine_tune
from l3rs.meta.train import generation_tasks, meta_train, start
from l3rs.stats import mean_interval
from l3rs.tasks import TaskConfig
from l3rs.workbench import workbench

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
    return MetaTrainConfig(**(settings | changes))  # type: ignore[arg-type]


def test_held_out_loss_falls_beyond_noise(tmp_path: Path) -> None:
    """Paired over 12 meta-validation tasks that had no part in it, the 95% interval of the change lies below 0."""
    config = tiny(6)
    meta_train(config, tmp_path, progress=False)
    learned = read(tmp_path / "theta-00006.safetensors")
    before, bench = start(config), workbench(config.workload, TASK)
    changes = [
        fine_tune(learned, learned.theta, bench, "meta-validation", seed, 5).loss[5]
        - fine_tune(before, before.theta, bench, "meta-validation", seed, 5).loss[5]
        for seed in range(1000, 1012)
    ]
    mean, _, high = mean_interval(changes)
    assert high < 0
    assert mean < -0.02
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve.generation.to_list() == list(range(7))
    assert curve.validation_loss.dropna().shape == (4,)


def test_the_best_finalist_is_kept(tmp_path: Path) -> None:
    kept = meta_train(tiny(4), tmp_path, progress=False)
    curve = pd.read_csv(tmp_path / "curve.csv").dropna(subset=["validation_accuracy"])
    generation, finals = kept.training["generation"], kept.training["finalists"]
    assert len(finals) == 2
    assert set(map(int, finals)) <= set(curve.generation)
    assert finals[str(generation)][1] == min(loss for _, loss in finals.values())
    assert torch.equal(read(tmp_path / f"theta-{generation:05d}.safetensors").theta, kept.theta)
    assert torch.equal(read(tmp_path / "tiny.safetensors").theta, kept.theta)
    assert (tmp_path / "curve.png").exists()


def test_a_run_in_two_parts_is_the_same_run(tmp_path: Path) -> None:
    meta_train(tiny(3, validate_every=3), tmp_path / "straight", progress=False)
    meta_train(tiny(2, validate_every=3), tmp_path / "parts", progress=False)
    with (tmp_path / "parts" / "curve.csv").open("a") as curve:
        curve.write("9,5,1,1,1,1,,,1\n")  # as if it had been killed between a row and the state
    meta_train(tiny(3, validate_every=3), tmp_path / "parts", progress=False)
    a, b = (read(tmp_path / part / "theta-00003.safetensors").theta for part in ("straight", "parts"))
    assert torch.equal(a, b)
    assert pd.read_csv(tmp_path / "parts" / "curve.csv").generation.to_list() == [0, 1, 2, 3]


def test_a_folder_takes_one_config(tmp_path: Path) -> None:
    meta_train(tiny(1), tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="another config: nes differ"):
        meta_train(tiny(1, nes=NESConfig(population=4)), tmp_path, progress=False)


def test_generations_share_tasks_and_differ_from_each_other() -> None:
    config = MetaTrainConfig(meta_batch=3)
    tasks = generation_tasks(config, 5)
    assert tasks == generation_tasks(config, 5) != generation_tasks(config, 6)
    assert len({steps for _, steps in tasks}) == 1
    assert len({seed for seed, _ in tasks}) == 3
    drawn = {generation_tasks(config, g)[0][1] for g in range(2000)}
    assert (min(drawn), max(drawn)) == (10, 100)


def test_a_diverged_candidate_gets_the_penalty() -> None:
    learned = start(tiny(1, schedule=L3RSConfig(embedding=0, lr0=1e30)))
    problem = FineTuning(learned, tiny(1))
    problem.tasks = [(0, 3)]
    assert problem.loss(learned.theta) == (20.0, True)


@pytest.mark.slow
def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    alone = meta_train(tiny(2), tmp_path / "1", progress=False)
    both = meta_train(tiny(2, workers=2), tmp_path / "2", progress=False)
    assert torch.equal(alone.theta, both.theta)
