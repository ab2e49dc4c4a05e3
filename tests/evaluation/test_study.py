"""A study, run: settings meta-trained and measured once, and what they trust."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from l3rs.evaluation.study import COLUMNS, Study, measure, mix, with_overrides
from l3rs.finetuning.unroll import Report
from l3rs.meta.config import MetaTrainConfig

ROOT = Path(__file__).parent.parent.parent
TINY = """
rows: rows.csv
purpose: meta-test
tasks: 2
seeds: [3]
workers: 1
base: {workload.model: resnet18, workload.width: 4, workload.from_scratch: true,
  task.classes: 5, task.batch_size: 8, task.evaluation_size: 20,
  steps: [2, 3], validation_steps: [2], generations: 1, nes.population: 2, validation_tasks: 1, finalists: 1, final_tasks: 1}
settings:
  plain: {schedule.embedding: 0, specialist: false}
  SGD, Celo2-base: {schedule.embedding: 0, specialist: false, schedule.directions: [sgd, celo2-base]}
mixes: mixes.csv
"""


def test_a_study_is_run_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import study

    (tmp_path / "tiny.yaml").write_text(TINY)

    def script(*arguments: str) -> None:
        options = ("--config", str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "rows.csv"))
        monkeypatch.setattr(sys, "argv", ["study.py", *options, *arguments])
        study.main()

    script("--only", "plain", "--tasks", "1")
    first = pd.read_csv(tmp_path / "rows.csv")
    assert tuple(first.columns) == COLUMNS
    assert first[["setting", "meta_seed", "generation", "steps", "task"]].to_numpy().tolist() == [
        ["plain", 3, 0, 2, 0],
        ["plain", 3, 1, 2, 0],
    ]
    assert first.meta_seconds.iloc[0] == 0 < first.meta_seconds.iloc[1]
    script()
    made = (tmp_path / "rows.csv").read_text(), (tmp_path / "mixes.csv").read_text()
    whole, mixes = pd.read_csv(tmp_path / "rows.csv"), pd.read_csv(tmp_path / "mixes.csv")
    assert whole.groupby("setting").size().to_dict() == {"SGD, Celo2-base": 4, "plain": 4}
    assert whole.iloc[:2].equals(first)
    assert mixes.groupby("setting").step.max().to_dict() == {"SGD, Celo2-base": 3, "plain": 3}
    assert (mixes.filter(like="mu_").sum(axis=1) - 1).abs().max() < 1e-3
    script()
    assert made == ((tmp_path / "rows.csv").read_text(), (tmp_path / "mixes.csv").read_text())
    with pytest.raises(SystemExit):
        script("--only", "none")
    assert "--only must be one or more of 'plain', 'SGD, Celo2-base' (got 'none')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("generations: 1", "generations: 2"),
        ("purpose: meta-test", "purpose: meta-train"),
        ("plain: {schedule.embedding: 0", "plain: {schedule.lr0: 0.01, schedule.embedding: 0"),
    ],
)
def test_rows_of_a_setting_that_was_edited_are_refused(tmp_path: Path, before: str, after: str) -> None:
    file, rows = tmp_path / "tiny.yaml", tmp_path / "rows.csv"
    file.write_text(TINY)
    mark = Study.read(file).made_with("plain")["plain"]
    rows.write_text(",".join(COLUMNS) + f"\nplain,3,0,2,0,0.5,0.5,0.0,{mark}\nplain,3,1,2,0,0.5,0.5,1.0,{mark}\n")
    measure(Study.read(file), "plain", 3, tmp_path, 1, rows)  # nothing is missing
    file.write_text(TINY.replace(before, after))
    with pytest.raises(ValueError, match=r"rows\.csv has rows of 'plain' that were made with other settings than it has now"):
        measure(Study.read(file), "plain", 3, tmp_path, 1, rows)
    measure(Study.read(file), "plain", 3, tmp_path, 0, tmp_path / "others.csv")  # these are none


def test_a_table_without_the_columns_of_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "rows.csv").write_text("setting,accuracy\nplain,0.5\n")
    with pytest.raises(ValueError, match=r"must be a table of setting, .*made_with \(got setting, accuracy\)"):
        measure(Study.read(tmp_path / "tiny.yaml"), "plain", 3, tmp_path, 1, tmp_path / "rows.csv")


def test_a_schedule_is_judged_in_the_uses_of_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uses = """starts: [plain]
uses:
  "": {head: start, refresh: true}
  ", at random": {head: random, settings: [plain]}
"""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("mixes: mixes.csv", uses))
    study, met = Study.read(tmp_path / "tiny.yaml"), []
    monkeypatch.setattr("l3rs.meta.problem.fine_tune", lambda *_, **use: met.append(use) or Report([], {2: 0.5}, {2: 0.5}))
    monkeypatch.setattr("l3rs.evaluation.study.trained", lambda *_: tmp_path)
    (tmp_path / "curve.csv").write_text("seconds\n3.0\n")
    monkeypatch.setattr("l3rs.evaluation.study.LEARNERS", {"l3rs": SimpleNamespace(read=lambda _: SimpleNamespace(theta=None))})
    for setting in study.names:
        measure(study, setting, 3, tmp_path, 1, tmp_path / "rows.csv")
    there = (tmp_path / "rows.csv").read_text().splitlines()[1:]
    random = '"plain, at random"'
    assert [line.rpartition(",3,")[0] for line in there] == ["plain", "plain", random, random, '"SGD, Celo2-base"']
    assert [use["head"] for use in met] == ["start", "start", "random", "random", "start"]
    assert study.judged == ("plain", "plain, at random", "SGD, Celo2-base")
    assert study.command(["plain, at random"]).endswith("--only plain")
    assert study.command(study.judged).endswith("tiny.yaml")


def test_trust_is_recorded_on_the_tasks_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.replace("purpose: meta-test", "purpose: meta-validation"))
    study, met = Study.read(tmp_path / "tiny.yaml"), []

    def recorded(
        _: object, steps: int, task: int, purpose: str = "meta-test", workload: object = None, size: object = None
    ) -> pd.DataFrame:
        met.append((steps, task, purpose, workload, size))
        return pd.DataFrame({"kind": ["head"], "step": [1], "mu_sgd": [0.25], "mu_adam": [0.75]})

    monkeypatch.setattr("l3rs.evaluation.study.record", recorded)
    monkeypatch.setattr("l3rs.evaluation.study.trained", lambda *_: tmp_path)
    read = SimpleNamespace(read=lambda _: SimpleNamespace(config=SimpleNamespace(directions=("sgd", "adam"))))
    monkeypatch.setattr("l3rs.evaluation.study.LearnedSchedule", read)
    mix(study, "plain", 3, tmp_path, tmp_path / "mixes.csv")
    config = study.config("plain", 3)
    assert met == [(3, task, "meta-validation", config.workload, config.task) for task in (0, 1)]
    assert (config.workload.width, config.task.classes) == (4, 5)


def test_a_setting_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="no setting is called 'stpes'; there are workload, name, "):
        with_overrides(MetaTrainConfig(), {"stpes": 3})


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("", [], "study.yaml: "),
        ("[1]", [], "study.yaml: "),
        ("NEEDED settings: {a: {stpes: 1}}", [], "no setting is called 'stpes'"),
        ("NEEDED settings: {a: {generations: 0}}", [], "generations must be at least 1"),
        (
            "NEEDED settings: {a: {}, b: {zoo.file: ZOO, zoo.weights: x, specialist: false, schedule.embedding: 0}}",
            [],
            "on one network, and the setting 'b' has zoo.file ",
        ),
        ("NEEDED settings: {a: {}}\nstarts: [a, c]", [], r"starts must be of 'a' \(got 'c'\)"),
        ("NEEDED settings: {a: {}}\nuses: {', so': {settings: [b, a]}}", [], r"settings of the use ', so' must be of 'a' \(got 'b'\)"),
        ("NEEDED settings: {a: {}}\nuses: {', so': {haed: start}}", [], r"', so' must be of 'head', 'refresh', .*\(got 'haed'\)"),
        ("NEEDED settings: {a: {}}", ["--only", "b"], r"--only must be one or more of 'a' \(got 'b'\)"),
        ("NEEDED settings: {a: {}}", ["--tasks", "0"], r"--tasks: must be a whole number of at least 1 \(got 0\)"),
    ],
)
def test_wrong_studies_end_in_a_line_before_anything_is_made(
    text: str, more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    needed = "rows: x.csv\npurpose: meta-validation\ntasks: 1\nseeds: [0]\nbase: {}\n"
    (tmp_path / "study.yaml").write_text(text.replace("NEEDED ", needed).replace("ZOO", str(ROOT / "configs" / "zoo.yaml")))
    argv = ["study.py", "--config", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "rows.csv")]
    monkeypatch.setattr("sys.argv", [*argv, *more])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "evaluate" / "study.py"))["main"]()
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "rows.csv").exists()
    assert not (tmp_path / "runs").exists()
