"""Schedules without a controller: their gradient, that they begin as the start does, and the scripts that judge them and averages."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import batch, random_schedule, small_network

from l3rs.evaluation.ceiling import UNUSED, FromTable, Tables, as_table, with_directions
from l3rs.finetuning.tasks import task_seed
from l3rs.meta.config import MetaTrainConfig, read_config
from l3rs.meta.gradients import meta_gradient
from l3rs.meta.problem import FineTuning
from l3rs.meta.train import start

ROOT = Path(__file__).parent.parent.parent
TINY = """
model: resnet18
width: 4
from_scratch: true
search: gradient
specialist: false
task: {classes: 5, batch_size: 8, evaluation_size: 20}
head: start
refresh: true
schedule: {embedding: 0, descriptors: true, unit: size, lr0: 0.02, head_logits: 0.3, initial_mix: 0.5}
"""
STEPS = 3


@pytest.fixture
def config(tmp_path: Path) -> MetaTrainConfig:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return read_config(tmp_path / "tiny.yaml", workers=1, meta_batch=1, steps=(STEPS, STEPS))


def test_the_gradient_of_a_table_against_finite_differences() -> None:
    network = small_network(torch.float64)
    generator = torch.Generator().manual_seed(0)
    table = 0.3 * torch.randn(STEPS * 7 * 3 + 3, generator=generator, dtype=torch.float64)  # Adam's hyperparameters are the last
    learned = replace(random_schedule(network, lr0=2e-2), theta=table)
    held_out = batch(9, torch.float64)

    def at(theta: torch.Tensor, back: bool = False) -> tuple[float, torch.Tensor]:
        found = meta_gradient(
            replace(learned, theta=theta), network, lambda k: batch(k, torch.float64), STEPS, held_out, form=FromTable, back=back
        )
        return found.loss, found.theta

    loss, gradient = at(table, back=True)
    assert at(table) == (loss, pytest.approx(torch.zeros_like(table)))
    for part in (slice(None, -3), slice(-3, None)):
        along = torch.zeros_like(table)
        along[part] = torch.randn(len(table[part]), generator=generator, dtype=torch.float64)
        along, h = along / along.norm(), 1e-5
        far, near = (at(table + step * along)[0] - at(table - step * along)[0] for step in (2 * h, h))
        slope = (8 * near - far) / (12 * h)
        assert float(gradient @ along) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_the_table_of_a_schedule_without_eyes_makes_its_runs(config: MetaTrainConfig) -> None:
    begun, task = start(config), [(task_seed(0), STEPS)]
    theta = as_table(begun, config, STEPS, (0,), begun.config.directions)
    table = replace(begun, theta=theta)
    (mine,) = Tables(table, config).runs(theta, "meta-validation", task)
    (its,) = FineTuning(begun, config).runs(begun.theta, "meta-validation", task)
    assert mine == pytest.approx(its, rel=1e-4)
    problem = Tables(table, config)
    problem.tasks = task
    assert problem.gradients(theta)[0].theta.any()
    three = (*begun.config.directions, "lion")
    wider = with_directions(begun, three)
    logits = FromTable(wider, dict(small_network().named_parameters()), STEPS).meta_shapes
    assert list(logits) == ["table", "adam/beta1", "adam/beta2", "adam/eps", "lion/beta1", "lion/beta2"]
    begins = as_table(begun, config, STEPS, (0, 1), three)
    layers = (len(begins) - 5) // (4 * STEPS)
    shares = begins[:-5].view(STEPS, layers, 4)[..., 1:].exp()
    assert shares[..., 2].allclose(shares[..., :2].sum(dim=-1) / 2 * torch.tensor(UNUSED).exp())
    with pytest.raises(ValueError, match=r"directions must begin with those of the schedule, sgd, adam \(got adam, sgd\)"):
        as_table(begun, config, STEPS, (0,), ("adam", "sgd"))


def test_the_scripts_judge_and_go_on_where_they_were(
    tmp_path: Path, config: MetaTrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import ceiling
    import weight_average

    other = replace(start(config), name="other")
    other.write(tmp_path / "other.safetensors")
    common = ("--config", str(tmp_path / "tiny.yaml"), "--learned", str(tmp_path / "other.safetensors"), "--steps", "3")

    def script(module: object, rows: str, *arguments: str) -> pd.DataFrame:
        monkeypatch.setattr(sys, "argv", ["script", *common, *arguments, "--rows", str(tmp_path / rows)])
        module.main()  # type: ignore[attr-defined]
        return pd.read_csv(tmp_path / rows)

    learning = ("--first", "0", "--recorded", "1", "--out", str(tmp_path / "runs"))
    first = script(ceiling, "a.csv", "--iterations", "2", "--tasks", "1", *learning)
    arms = ["unlearned start", "other", "other, averaged", "table of 2 directions"]
    assert first.arm.tolist() == arms
    assert first.accuracy[0] == first.accuracy[1]
    assert first.seconds[3] > 0
    again = script(ceiling, "a.csv", "--iterations", "2", "--tasks", "2", *learning)
    assert again.groupby("arm").task.apply(list).to_dict() == {arm: [0, 1] for arm in arms}
    assert again.iloc[:4].equals(first)
    assert again[again.arm == arms[3]].seconds.nunique() == 1  # nothing was learned anew
    assert "3 steps, loss     table of 2 directions" in capsys.readouterr().out
    other_rate = script(
        ceiling, "a.csv", "--iterations", "2", "--tasks", "1", "--lr", "0.1", "--recorded", "1", "--out", str(tmp_path / "faster")
    )
    assert other_rate[len(again) :].arm.tolist() == arms  # rows of other settings are others
    assert set(other_rate[len(again) :].task) == {60}  # those before choose schedules
    for wrong in (("--iterations", "2", "2"), ("--iterations", "2", "--first", "-1")):
        with pytest.raises(SystemExit):
            script(ceiling, "a.csv", *wrong)
    assert "--first must be at least 0 (got -1)" in capsys.readouterr().err
    averaged = script(weight_average, "b.csv", "--tasks", "1", "--others", "1")
    assert averaged.groupby("task").size().tolist() == [2 * (1 + 2 * 4), 2 * 2]  # all mixtures of two spans of more than a step; the best
    assert script(weight_average, "b.csv", "--tasks", "1", "--others", "1").equals(averaged)
    more = script(weight_average, "b.csv", "--tasks", "2", "--others", "1")  # a task that judged now helps to choose, by all mixtures
    assert more.groupby("task").size().tolist()[:2] == [2 * (1 + 2 * 4)] * 2
    assert not more.duplicated(["schedule", "task", "span", "share"]).any()
    assert "gains" in capsys.readouterr().out


def test_tables_are_judged_on_the_tasks_that_are_asked_for(
    tmp_path: Path, config: MetaTrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import ceiling

    class Runs:
        def __init__(self, *_: object) -> None:
            pass

        def runs(self, _: object, purpose: str, tasks: list[tuple[int, int]]) -> list[tuple[float, float]]:
            return [(0.5, 1.0)] * len(tasks)

    def judged(*tasks: int) -> list[int]:
        rows = ceiling.judge(tmp_path / "rows.csv", range(*tasks), config, "start", Runs, lambda: (start(config), 0.0))
        return list(rows.task)

    assert judged(4) == [0, 1, 2, 3]
    assert judged(2) == [0, 1]
    assert judged(3, 6) == [3, 4, 5]
    assert pd.read_csv(tmp_path / "rows.csv").task.tolist() == list(range(6))


def test_mixtures_are_compared_on_common_tasks_and_spans_of_earlier_runs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import weight_average

    found = {(0.0, 0.0): (0.5, 0.5, 0.5), (0.5, 1.0): (0.51, 0.51, 0.51), (1.0, 1.0): (0.6, 0.4), (0.3, 1.0): (0.9,)}
    rows = [(task, *mixture, a, 1.0) for mixture, values in found.items() for task, a in enumerate(values)]
    table = weight_average.compared(pd.DataFrame(rows, columns=["task", "span", "share", "accuracy", "loss"]), (0.5, 1.0))
    assert table.index.tolist() == [0, 1]
    assert table.mean().to_dict() == {(0.5, 1.0): pytest.approx(1.0), (1.0, 1.0): pytest.approx(0.0)}


def test_an_average_of_the_weights_is_of_one_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import weight_average

    config = str(ROOT / "configs" / "meta_train" / "generalist.yaml")
    monkeypatch.setattr(sys, "argv", ["weight_average.py", "--config", config, "--rows", str(tmp_path / "rows.csv")])
    with pytest.raises(SystemExit):
        weight_average.main()
    assert re.search(r"--config must have one network \(got .*generalist\.yaml, which has zoo\.file .*\)", capsys.readouterr().err)
    assert not (tmp_path / "rows.csv").exists()


def test_an_average_forgets_at_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import weight_average

    p = torch.tensor([1.0])
    average = weight_average.Average([p], 2.0)
    for value in (1.0, 2.0, 4.0):
        p.fill_(value)
        average.update()
    assert average.values()[0].item() == pytest.approx((1 * 0.25 + 2 * 0.5 + 4) / 1.75)
