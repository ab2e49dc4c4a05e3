"""Meta-training along meta-gradients: the update is Adam's, a run resumes to the same bits, and processes change nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import bits, quick, same

from l3rs.finetuning.tasks import TaskConfig
from l3rs.meta.config import LOG_FLOOR, GradientConfig, MetaTrainConfig
from l3rs.meta.descent import Descent, clipped
from l3rs.meta.problem import FineTuning, MetaTrainingError, TaskGradient, shares
from l3rs.meta.train import generation_tasks, lost_before, meta_train, one_generation, start
from l3rs.run_folder import FolderError


class Slopes:
    """|theta|^2 from two tasks, of which the second may fail."""

    def __init__(self) -> None:
        self.scale, self.failing = torch.tensor([0.25, 1.0, 1.0]), False

    def gradients(self, theta: torch.Tensor) -> list[TaskGradient]:
        loss = float(theta.square().sum())
        second = TaskGradient(torch.full((3,), 7.0), 20.0, self.failing)
        return [TaskGradient(2 * theta, loss, False), second if self.failing else TaskGradient(2 * theta, loss, False)]


def test_a_gradient_whose_norm_is_beyond_float32_keeps_its_direction() -> None:
    g = torch.tensor([3e19, -4e19])
    assert math.isinf(float(g.norm()))
    torch.testing.assert_close(clipped(g, 0.5), torch.tensor([0.3, -0.4]))
    assert torch.equal(clipped(1e-21 * g, 0.5), 1e-21 * g)


class Lost:
    """A search whose generations have these numbers of diverged and failed tasks, of two."""

    generation, sigma, lr = 0, 0.0, 0.1

    def __init__(self, *lost: tuple[int, int]) -> None:
        self.lost, self.status = list(lost), {"mean_loss": 1.0, "best_loss": 1.0, "spread": 0.0}

    def step(self) -> None:
        diverged, failed = self.lost[self.generation]
        self.evaluations = torch.tensor([[1.0, float(i < diverged), float(i >= 2 - failed)] for i in range(2)])
        self.generation += 1


def test_a_descent_passes_over_two_generations_whose_tasks_diverge_in_a_row_and_ends_at_the_third() -> None:
    config = quick(search="gradient", meta_batch=2, objective="log")
    problem = FineTuning(start(config), config)

    def generations(*lost: tuple[int, int]) -> list[dict[str, Any]]:
        search: Any = Lost(*lost)
        rows: list[dict[str, Any]] = []
        for _ in lost:
            before = lost_before([{name: str(value) for name, value in row.items()} for row in rows], config.meta_batch)
            rows.append(one_generation(problem, search, config, before))
        return rows

    assert [row["diverged"] for row in generations((2, 0), (2, 0), (1, 0), (2, 0), (2, 0))] == [2, 2, 1, 2, 2]
    assert generations((0, 0))[0]["mean_loss"] == pytest.approx(math.e - LOG_FLOOR)  # in nats
    with pytest.raises(MetaTrainingError, match="in generation 2, 2 of 2 tasks diverged"):
        generations((2, 0), (2, 0), (2, 0))
    with pytest.raises(MetaTrainingError, match="in generation 0, 0 of 2 tasks diverged and 2 met an error"):
        generations((0, 2))


def test_a_process_forgets_what_it_met_in_an_earlier_generation() -> None:
    config = quick(search="gradient", meta_batch=1)
    problem = FineTuning(start(config), config)
    problem.met = "RuntimeError: before"
    problem._share_of_gradients(problem.learned.theta, [(0, 2)], 1)
    assert problem.error() == ""


def test_it_is_adam_with_clipping_and_a_cosine() -> None:
    problem: Any = Slopes()
    config = quick(search="gradient", gradient=GradientConfig(lr=0.1, clip=0.5))
    search = Descent(problem, torch.tensor([4.0, -1.0, 0.5]), config, 20)
    p = torch.nn.Parameter(search.center * problem.scale)
    adam = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 20)
    for step in range(20):
        problem.failing = step % 3 == 1  # one of two tasks teaches nothing
        p.grad = 2 * p.detach()
        torch.nn.utils.clip_grad_norm_([p], 0.5)
        assert search.lr == pytest.approx(adam.param_groups[0]["lr"])
        adam.step()
        cosine.step()
        search.step()
        torch.testing.assert_close(search.theta, p.detach())
        torch.testing.assert_close(search.center * problem.scale, search.theta)
        assert search.evaluations[:, 1].tolist() == [0.0, float(problem.failing)]
    assert search.theta.norm() < 0.5


def test_a_step_in_which_all_fail_moves_nothing_and_its_state_goes_on() -> None:
    problem: Any = Slopes()
    config = quick(search="gradient", gradient=GradientConfig(lr=0.1))
    first = Descent(problem, torch.ones(3), config, 4)
    problem.gradients = lambda theta: [TaskGradient(torch.full((3,), 7.0), 20.0, True)]
    first.step()
    assert torch.equal(first.center, torch.ones(3))
    del problem.gradients
    again = Descent(problem, torch.zeros(3), config, 4)
    again.load_state_dict(first.state_dict())  # of Adam there is nothing yet
    for search in (first, again):
        search.step()
    second = Descent(problem, torch.zeros(3), config, 4)
    second.load_state_dict(again.state_dict())
    for search in (first, second):
        search.step()
    assert torch.equal(first.theta, second.theta)
    before = second.theta
    with pytest.raises(ValueError, match=r"exp_avg must have the shape \(3,\) \(got \(2,\)\)"):
        second.load_state_dict({**second.state_dict(), "exp_avg": torch.zeros(2)})
    with pytest.raises(KeyError):
        second.load_state_dict({"generation": 1})
    assert torch.equal(second.theta, before)


def test_long_tasks_are_dealt_out_first() -> None:
    tasks = [(0, 10), (1, 20), (2, 40), (3, 90)]
    assert shares(tasks, 2) == [[3], [2, 1, 0]]
    assert shares(tasks, 1) == [[3, 2, 1, 0]]
    assert sorted(i for part in shares(tasks, 3) for i in part) == [0, 1, 2, 3]


BOTH = pytest.param("both", (2, 3), marks=pytest.mark.slow)  # goes over to evolution after 2


@pytest.mark.parametrize(("search", "stops"), [("gradient", (2,)), BOTH])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    search: str, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(4, search=search, meta_batch=2)
    meta_train(config, tmp_path / "straight", progress=False)
    for stop in stops:
        folder = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            patch.setattr("l3rs.meta.train.generation_tasks", lambda c, g, stop=stop: generation_tasks(c, g) if g < stop else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                meta_train(config, folder, progress=False)
        kept = meta_train(config, folder, progress=False)
        assert same(bits(folder, 4), bits(tmp_path / "straight", 4))
        assert kept.training["config"]["search"] == search


@pytest.mark.slow
def test_two_processes_give_what_one_does(tmp_path: Path) -> None:
    config = quick(2, search="gradient", meta_batch=3)
    meta_train(config, tmp_path / "one", progress=False)
    meta_train(replace(config, workers=2), tmp_path / "two", progress=False)
    assert same(bits(tmp_path / "one", 2), bits(tmp_path / "two", 2))


@pytest.mark.parametrize("refresh", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_step_along_the_gradient_lowers_the_loss_of_its_tasks(refresh: bool) -> None:
    shipped = {"model": "resnet34", "width": 16, "from_scratch": False, "task": TaskConfig(10, 64, 100)}
    config = quick(search="gradient", meta_batch=2, steps=(5, 8), refresh=refresh, **shipped)
    learned = start(config)
    problem = FineTuning(learned, config)
    problem.tasks = generation_tasks(config, 0)
    found = problem.gradients(learned.theta)
    g = (found[0].theta + found[1].theta) / 2
    before, diverged = problem.loss(learned.theta)
    assert not diverged
    assert sum(task.loss for task in found) / 2 == pytest.approx(before, rel=1e-3)  # of the same runs, by the optimizer itself
    after, _ = problem.loss(learned.theta - 0.03 * g / g.norm())
    assert before - after == pytest.approx(0.03 * g.norm().item(), rel=0.3)


def test_runs_may_begin_with_a_head_in_closed_form_for_candidates_and_gradients_alike() -> None:
    losses = {}
    for head in ("random", "start"):
        config = quick(search="gradient", meta_batch=2, head=head)
        problem = FineTuning(learned := start(config), config)
        problem.tasks = generation_tasks(config, 0)
        losses[head], _ = problem.loss(learned.theta)
        assert sum(task.loss for task in problem.gradients(learned.theta)) / 2 == pytest.approx(losses[head], rel=1e-3)
    assert losses["start"] != pytest.approx(losses["random"], rel=0.01)


def test_the_number_of_generations_belongs_to_the_run(tmp_path: Path) -> None:
    """The learning rate follows from it."""
    meta_train(quick(1, search="gradient"), tmp_path, progress=False)
    assert json.loads((tmp_path / "config.json").read_text())["gradient"]["lr"] == 3e-3
    with pytest.raises(FolderError, match="another generations"):
        meta_train(quick(2, search="gradient"), tmp_path, progress=False)


@pytest.mark.parametrize(("search", "generations"), [("gradient", 1), ("both", 2)])  # of both, the first generation ends the descent
def test_errors_of_most_tasks_end_it(search: str, generations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr("l3rs.meta.problem.meta_gradient", broken)
    with pytest.raises(MetaTrainingError, match="0 of 1 tasks diverged and 1 met an error, such as RuntimeError: no memory left"):
        meta_train(quick(generations, search=search), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": "descent"}, "search must be one of nes, gradient, both"),
        ({"optimizer": "velo"}, r"optimizer must be l3rs with search gradient \(got velo\)"),
        ({"objective": "error"}, r"objective must be final or log with search gradient \(got error\)"),
        ({"precision": "bfloat16"}, r"precision must be float32 with search gradient \(got bfloat16\)"),
        ({"schedule": "torch.optim.NAdam"}, r"schedule.directions must be built in with search gradient \(got 'torch.optim.NAdam'\)"),
    ],
)
def test_what_has_no_gradient_is_refused(changes: dict[str, Any], said: str) -> None:
    given = {"search": "gradient", **changes}
    if "schedule" in given:
        given["schedule"] = replace(MetaTrainConfig().schedule, directions=("sgd", given["schedule"]))
    with pytest.raises(ValueError, match=said):
        MetaTrainConfig(**given)


@pytest.mark.parametrize(("changes", "said"), [({"lr": 0.0}, "lr must be positive"), ({"share": 1.0}, "share must be above 0 and below 1")])
def test_a_descent_that_makes_no_sense_is_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GradientConfig(**changes)
