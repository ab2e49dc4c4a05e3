"""Two schedules on the same meta-validation tasks."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest

from l3rs.meta.problem import FineTuning

VALIDATE = Path(__file__).parents[2] / "evaluate" / "validate.py"
TINY = """
model: resnet18
width: 4
from_scratch: true
specialist: false
head: start
task: {classes: 5, batch_size: 8, evaluation_size: 20}
schedule: {embedding: 0}
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a script, as where it is run."""
    monkeypatch.syspath_prepend(str(VALIDATE.parent))


@pytest.fixture
def validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Its arguments, with a tiny network."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    config, rows = str(tmp_path / "tiny.yaml"), str(tmp_path / "rows.csv")
    argv = ["validate.py", "--config", config, "--rows", rows, "--tasks", "2", "--steps", "1", "2"]
    argv += ["--schedules", "start", "icons-generalist"]
    monkeypatch.setattr("sys.argv", argv)
    return argv


def main() -> None:
    runpy.run_path(str(VALIDATE))["main"]()


def test_rows_are_made_once_and_the_lead_is_paired_by_task(
    validate: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main()
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert sorted(rows.task.unique()) == [60, 61]
    assert len(rows) == 8
    assert rows.accuracy.between(0, 1).all()
    wide = rows[rows.steps == 2].pivot_table(index="task", columns="schedule", values=["accuracy", "loss"])
    of_start, of_other = wide["accuracy"].mean()[::-1]  # `icons-generalist` comes before `start`
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("2 steps, start ")
    assert lines[2].endswith(f"accuracy {of_start:.3f}, loss {wide['loss'].iloc[:, 1].mean():.3f}, 2 tasks")
    assert f"; {100 * (of_other - of_start):+.1f} (" in lines[3]
    assert " points ahead, and " in lines[3]
    monkeypatch.setattr(FineTuning, "runs", lambda *_: 1 / 0)
    main()
    assert capsys.readouterr().out.splitlines() == lines


def test_a_config_that_was_edited_has_rows_of_its_own(validate: list[str], tmp_path: Path) -> None:
    main()
    (tmp_path / "tiny.yaml").write_text(TINY.replace("classes: 5", "classes: 6"))
    main()
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert len(rows) == 16
    assert [name.split()[0] for name in rows.config.unique()] == ["tiny", "tiny"]


def test_a_run_that_diverged_counts_as_the_worst(capsys: pytest.CaptureFixture[str]) -> None:
    """Rather than not at all."""
    made = [("a", 60, 0.8, 0.5), ("a", 61, 0.6, 0.7), ("b", 60, 0.9, 0.4), ("b", 61, float("nan"), float("nan"))]
    rows = pd.DataFrame([{"schedule": s, "steps": 10, "task": n, "accuracy": a, "loss": x} for s, n, a, x in made])
    runpy.run_path(str(VALIDATE))["report"](rows, ["a", "b"], [10])
    assert "10 steps, b: accuracy 0.450, loss inf; -25.0 (-469.7 to 419.7) points ahead" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (["--tasks", "0"], r"--tasks: must be a whole number of at least 1 \(got 0\)"),
        (["--schedules", "nowhere"], "nowhere is not a file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", __file__], f"{re.escape(__file__)} is no config of meta-training: Problems parsing config"),
    ],
)
def test_wrong_arguments_end_in_a_line(
    said: list[str], error: str, validate: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [*validate, *said])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err
    assert "Traceback" not in lines
    assert re.search(error, lines)
