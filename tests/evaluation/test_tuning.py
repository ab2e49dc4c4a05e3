"""Tuning learning rates, with runs that are made up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from l3rs.evaluation import tuning
from l3rs.evaluation.cells import EvaluationConfig, Rows, made_with, missing, plan
from l3rs.evaluation.sources import read_cells
from l3rs.evaluation.tuning import Tuning, tuned_arms
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import Run
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "evaluate" / "results"
ARMS = (Arm("constant", "adam"), Arm("cosine", "adam-cosine"))
MODEL = Run("tune", ARMS[0], 1, 0, "meta-train")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are asked for. Adam is best at 0.03, and at 0.1 the run on task 0 diverges, whose others are as good."""
    asked: list[Run] = []

    def pretend(runs: Sequence[Run], workers: int, how: object) -> Iterator[tuple[Run, Report]]:
        for run in runs:
            asked.append(run)
            assert len(asked) < 1000, "the search does not end"
            accuracy = {0.01: 0.5, 0.03: 0.7, 0.1: math.nan if run.task_seed == 0 else 0.7}.get(run.lr, 0.3)
            yield run, Report(accuracy=dict.fromkeys(run.evaluate_at, accuracy), loss=dict.fromkeys(run.evaluate_at, 1.0))

    monkeypatch.setattr(tuning, "execute_all", pretend)
    return asked


def test_the_search_goes_past_the_edge_and_on_where_it_was_and_a_diverged_run_counts_as_0(
    made: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rates.yaml"

    def tune() -> str:
        Tuning(tmp_path / "rows.csv", 3, 1, (10, 50), MODEL).tune(ARMS, file, "# how\n")
        return capsys.readouterr().out

    said = tune()
    assert file.read_text().startswith("# how\n")
    assert yaml.safe_load(file.read_text()) == {arm.optimizer: {10: 0.03, 50: 0.03} for arm in ARMS}
    assert "adam-cosine 50: 0.03 (0.7000)" in said
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert sorted(rows[rows.optimizer == "adam"].lr.unique()) == [0.001, 0.003, 0.01, 0.03, 0.1]
    assert {r.steps for r in made if r.optimizer == "adam"} == {50}  # the beginnings of its longest runs are its shorter ones
    assert not rows.duplicated(["optimizer", "lr", "steps", "task_seed"]).any()
    assert set(rows.made_with) == {made_with(MODEL), made_with(replace(MODEL, arm=ARMS[1]))}

    # a killed search: the last rows are gone, and only their runs are made again
    count, lines = len(made), (tmp_path / "rows.csv").read_text().splitlines(keepends=True)
    (tmp_path / "rows.csv").write_text("".join(lines[:-2]))
    assert tune() == said
    assert len(made) == count + 2
    assert tune() == said
    assert len(made) == count + 2


def test_rows_of_other_tasks_settings_or_heads_do_not_count(made: list[Run], tmp_path: Path) -> None:
    def runs_of(model: Run) -> set[int]:
        made.clear()
        Tuning(tmp_path / "rows.csv", 3, 1, (10, 50), model).tune([model.arm], tmp_path / "rates.yaml", "")
        return {run.steps for run in made}

    assert runs_of(MODEL) == {50}
    assert runs_of(MODEL) == set()
    for change in ({"task": TaskConfig(batch_size=8)}, {"arm": replace(ARMS[0], refresh=True)}):
        assert runs_of(replace(MODEL, **change)) == {50}  # type: ignore[arg-type]
    begun = replace(MODEL, arm=replace(ARMS[0], head="start"))
    assert runs_of(begun) == {10, 50}  # a head in closed form depends on the length of the run
    assert runs_of(begun) == set()
    before = pd.read_csv(tmp_path / "rows.csv").drop(columns=["head", "made_with"])
    before.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(ValueError, match=r"rows\.csv was written by an earlier version, and lacks head, made_with; remove it to tune anew"):
        runs_of(MODEL)


def test_fewer_tasks_than_there_are_rows_of_do_not_change_the_choice(made: list[Run], tmp_path: Path) -> None:
    path, file = tmp_path / "rows.csv", tmp_path / "rates.yaml"

    def tune(tasks: int) -> float:
        made.clear()
        Tuning(path, tasks, 1, (50,), MODEL).tune([ARMS[0]], file, "")
        return float(yaml.safe_load(file.read_text())["adam"][50])

    assert tune(3) == 0.03
    rows = pd.read_csv(path)
    rows.loc[(rows.lr == 0.01) & (rows.task_seed == 0), "accuracy"] = 0.9  # the best on the first task alone
    rows[(rows.lr != 0.1) | (rows.task_seed == 0)].to_csv(path, index=False)
    assert tune(1) == 0.03
    assert {(run.lr, run.task_seed) for run in made} == {(0.1, 1), (0.1, 2)}  # each rate is compared on the same tasks


def test_a_rate_that_is_best_without_end_is_told(made: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tuning, "accuracy", lambda self, arm, lr, steps: lr)
    with pytest.raises(RuntimeError, match="adam after 10 steps is best at the edge of what is tried, 1e"):
        Tuning(tmp_path / "rows.csv", 1, 1, (10,), MODEL).best(ARMS[0], 10, 0)


def test_what_cannot_be_tuned_is_told() -> None:
    with pytest.raises(ValueError, match="the cell c has no `rates`"):
        tuned_arms(EvaluationConfig("c", ARMS, {10: 1}))
    with pytest.raises(ValueError, match="the cell c has no arm without `lr`"):
        tuned_arms(EvaluationConfig("c", (Arm("a", "adam", 0.1),), {10: 1}, rates="rates.yaml"))
    for what, other in (("begin with a head start", {"head": "start"}), ("are evaluated with refreshed statistics", {"refresh": True})):
        mixed = (ARMS[0], Arm("b", "sgd-cosine", **other))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"some tuned arms of the cell c {what}, and others do not; give them a cell"):
            tuned_arms(EvaluationConfig("c", mixed, {10: 1}, rates="rates.yaml"))


def test_with_head_starts_rates_go_to_files_of_their_own(
    made: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import tune

    monkeypatch.setattr(tune, "ROOT", tmp_path)
    monkeypatch.setattr(tune, "RESULTS", tmp_path)
    (tmp_path / "l3rs" / "finetuning").mkdir(parents=True)
    asked = ["--head", "start", "--names", "adam-cosine", "--steps", "10", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["tune.py", *asked])
    tune.main()
    assert {(run.arm.head, run.arm.refresh) for run in made} == {("start", True)}
    written = (tmp_path / "l3rs" / "finetuning" / "baselines-start.yaml").read_text()
    assert yaml.safe_load(written) == {"adam-cosine": {10: 0.03}}
    assert written.startswith(f"# python evaluate/tune.py {' '.join(asked)}\n")
    assert set(pd.read_csv(tmp_path / "tuning-start.csv").lr) >= {0.01, 0.03, 0.1}
    edited = tmp_path / "l3rs" / "finetuning" / "baselines-start.yaml"
    tune.main()  # it is the same again
    edited.write_text(re.sub(r"(?<=# Tuned with: )\w{8}(?=, head start\n)", "0" * 8, edited.read_text()))
    with pytest.raises(SystemExit):
        tune.main()
    assert "was tuned with other images, tasks or heads; remove it and" in capsys.readouterr().err
    edited.write_text(written)
    longer = [*asked[:-3], "25", "--workers", "1"]
    for words in (longer, longer):
        monkeypatch.setattr("sys.argv", ["tune.py", *words])
        tune.main()
    both = [f"# python evaluate/tune.py {' '.join(words)}" for words in (asked, longer)]
    assert [line for line in edited.read_text().splitlines() if line.startswith("# python")] == both  # that made it, each once
    assert yaml.safe_load(edited.read_text()) == {"adam-cosine": {10: 0.03, 25: 0.03}}
    monkeypatch.setattr("sys.argv", ["tune.py", "--tasks", "0"])
    with pytest.raises(SystemExit):
        tune.main()
    assert "--tasks: must be a whole number of at least 1 (got 0)" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["tune.py", *asked, "--config", str(ROOT / "configs" / "evaluate" / "networks.yaml")])
    with pytest.raises(SystemExit):
        tune.main()
    assert "--head is for the shipped rates; the arms of" in capsys.readouterr().err


def test_rates_of_a_network_are_tuned_with_the_head_start_and_refreshed_statistics(made: list[Run], tmp_path: Path) -> None:
    arms = tuned_arms(read_cells(ROOT / "configs" / "evaluate" / "networks.yaml")["densenet-icons"])
    Tuning(tmp_path / "rows.csv", 1, 1, (10,), MODEL).tune(arms[:2], tmp_path / "rates.yaml", "")
    assert {(run.arm.head, run.arm.refresh) for run in made} == {("start", True)}
    assert {arm.optimizer for arm in arms}.isdisjoint({"l3rs", "none"})


@pytest.mark.parametrize(("name", "tasks"), [("resnet18-w16", 8), ("resnet34-w64", 3)])
def test_other_networks_are_tuned_for_and_have_all_their_rows(
    name: str, tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their networks are not shipped: a row that is missing, or a best rate at the edge, would need them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tuning, "execute_all", lambda runs, workers, how: (1 / 0 for _ in runs))
    cell = read_cells(ROOT / "configs" / "evaluate" / f"{name}.yaml")[""]
    model = replace(MODEL, workload=cell.workload, task=cell.task)
    Tuning(RESULTS / "rates" / f"{name}.csv", tasks, 1, sorted(cell.horizons), model).tune(tuned_arms(cell), tmp_path / "rates.yaml", "")
    assert yaml.safe_load((tmp_path / "rates.yaml").read_text()) == yaml.safe_load((ROOT / str(cell.rates)).read_text())
    assert missing(plan(cell), Rows(tmp_path, RESULTS / name).read()) == []
