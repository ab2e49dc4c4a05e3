"""The short tables of README and the findings, and that the pages hold what the rows say."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from l3rs.evaluation.cell_tables import Cell, least_behind
from l3rs.evaluation.cells import EvaluationConfig, identity_of
from l3rs.evaluation.headlines import by_arm, by_cell, headline, needed, pooled
from l3rs.evaluation.pages import FILLED, Table, fill
from l3rs.evaluation.protocol import beside_the_best, protocol, with_leads
from l3rs.evaluation.sources import AWAY, ELSEWHERE, HEAD_ALONE, NETWORKS, Sources
from l3rs.evaluation.tables import HEADLINES, ablations, headlines, seeds, study
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import CELL_FIELDS

ROOT = Path(__file__).parent.parent.parent
NUMBER = re.compile(r"(?<![\w.])(?<!\w-)\d+\.\d+")
OURS = Arm("L3RS", "l3rs", learned="icons-resnet34")
START = Arm("L3RS unlearned", "l3rs", learned="start")
ARMS = (OURS, START, Arm("SGD tuned", "sgd-cosine"), Arm("Adam tuned", "adam-cosine"), Arm("Adam 1e-3", "adam", 1e-3))


def cell(accuracies: dict[str, dict[int, list[float]]]) -> Cell:
    """A cell of these accuracies, by arm and length of a run, a number a task."""
    config = EvaluationConfig("test", ARMS, {10: 3, 25: 3})
    rows = [
        {"cell": "test", "arm": arm.name, "lr": config.rate(arm, h), "learned": identity, "meta_seed": 0, "head": "random", "horizon": h,
         "steps": h, "task_seed": seed, "accuracy": x, "loss": 1.0, "error": None}
        for arm in ARMS for identity in [identity_of(arm.optimizer, arm.learned)]
        for h, values in accuracies.get(arm.name, {}).items() for seed, x in enumerate(values)
    ]  # fmt: skip
    return Cell(config, "test.yaml", pd.DataFrame(rows, columns=list(CELL_FIELDS)), "A test")


KNOWN = {
    "L3RS": {10: [0.8, 0.9, 0.7], 25: [0.9, 0.9, 0.9]},
    "L3RS unlearned": {10: [0.7, 0.8, 0.6]},
    "SGD tuned": {10: [0.7, 0.8, 0.6], 25: [0.8, 0.8, 0.8]},
    "Adam tuned": {10: [0.79, 0.8], 25: [0.9, 0.9, 0.9]},
    "Adam 1e-3": {10: [0.9, 1.0, 0.8]},
}


def test_a_headline_has_the_best_of_each_kind_and_the_lead_over_it() -> None:
    """On the tasks that all of the kind ran: at 10 steps Adam tuned ran but two."""
    frame = headline(cell(KNOWN), ["best tuned", "best without tuning"])
    assert frame.loc["10"].tolist() == [
        "0.800", "0.795, Adam", "+5.5 (-51.7 to 62.7), n=2", "1.4 times (1.1 to 2.5)", "0.900", "-10.0 (-10.0 to -10.0)"
    ]  # fmt: skip
    assert frame.loc["25"].tolist() == ["0.900", "0.900, Adam", "+0.0 (0.0 to 0.0)", "1.0 times (1.0 to 1.0)", "missing", "missing"]


def test_of_two_that_are_level_on_the_common_tasks_all_tasks_decide() -> None:
    ran = {"L3RS": [0.8] * 4, "a": [0.7, 0.7, 0.5, 0.5], "b": [0.7, 0.7, 0.6, 0.6], "few": [0.6, 0.6, math.nan, math.nan]}
    table = pd.DataFrame({(arm, 10): values for arm, values in ran.items()})
    table.columns.names = ["arm", "horizon"]
    found = least_behind(table["L3RS", 10], table, ["a", "b", "few"], 10)
    assert found is not None
    assert (found[0], len(found[1])) == ("b", 4)


def test_steps_beyond_the_longest_runs_are_said_to_be_more() -> None:
    assert needed((math.inf, math.inf, math.inf), 4.0) == "over 4 times"
    assert needed((math.inf, 1.2, math.inf), 4.0) == "over 4 times (1.2 at least)"
    assert needed((math.inf, math.inf, math.inf), 1.0) == "more"
    assert needed((math.inf, 0.9, math.inf), 1.0) == "more (0.9 at least)"
    assert needed((1.6, 1.1, math.inf), 2.0) == "1.6 times (1.1 to over 2)"
    assert needed((1.6, math.nan, math.nan), 2.0) == "1.6 times"


def test_cells_are_pooled_by_task() -> None:
    worse = cell(KNOWN | {"L3RS": {10: [0.6, 0.7, 0.5]}})
    frame = pooled({"one": cell(KNOWN), "two": worse, "none": cell({})}, ["best tuned", "unlearned"])
    assert frame.loc["10", "L3RS minus best tuned"] == "-4.5 (-131.6 to 122.6), n=4"  # of the others there are more
    assert frame.loc["10", "L3RS minus unlearned"] == "+0.0 (-127.1 to 127.1)"  # Student's, of two cells
    assert frame.loc["10", ["networks", "tasks"]].tolist() == ["2", "6"]
    assert list(pooled({"one": cell(KNOWN)}, ["unlearned"]).index) == ["10"]
    second = pooled({"one": cell(KNOWN)}, ["older generalist", "unlearned"])  # of the first kind nothing ran
    assert second.loc["10", ["networks", "tasks"]].tolist() == ["1", "3"]
    lines = by_cell({"one": cell(KNOWN), "none": cell({})}, "unlearned")
    assert lines.to_dict("index") == {"one": {"10 steps": "+10.0 (10.0 to 10.0)"}}
    each = by_arm({"one": cell(KNOWN), "two": worse, "none": cell({})})
    assert each["10 steps"].to_dict() == {
        "L3RS unlearned": "+0.0 (-127.1 to 127.1)",
        "SGD tuned": "+0.0 (-127.1 to 127.1)",
        "Adam tuned": "-4.5 (-131.6 to 122.6), n=4",
        "Adam 1e-3": "-20.0 (-147.1 to 107.1)",
    }
    assert each.loc["Adam tuned", "25 steps"] == "+0.0 (0.0 to 0.0)"
    assert each.loc["Adam 1e-3", "25 steps"] == "missing"
    known = cell(KNOWN)
    short = replace(known.config, arms=tuple(replace(arm, horizons=(10,)) if arm.name == "Adam 1e-3" else arm for arm in ARMS))
    each = by_arm({"one": known._replace(config=short)})
    assert each.loc["Adam 1e-3"].tolist() == ["-10.0 (-10.0 to -10.0)", ""]


def test_accuracies_stand_beside_the_lead_of_the_first_arm() -> None:
    frame = with_leads(cell(KNOWN))
    assert frame.loc["Adam"].to_dict() == {"10 steps": "0.795 (+5.5: -51.7 to 62.7), n=2", "25 steps": "0.900 (+0.0: 0.0 to 0.0)"}
    assert frame.loc["L3RS"].tolist() == ["0.800", "0.900"]
    assert frame.loc["Adam 1e-3"].tolist() == ["0.900 (-10.0: -10.0 to -10.0)", ""]
    assert list(with_leads(cell(KNOWN), [25]).index) == ["L3RS", "SGD", "Adam"]
    assert with_leads(cell({})).empty


def test_each_arm_of_l3rs_stands_beside_the_best_other() -> None:
    """The one that ran other tasks has another best, and says so."""
    frame = beside_the_best({"one": cell(KNOWN), "none": cell({})})
    assert frame.loc["one, 10 steps"].tolist() == ["0.900, Adam 1e-3", "0.800 (-10.0: -10.0 to -10.0)", "0.700 (-20.0: -20.0 to -20.0)"]
    assert frame.loc["one, 25 steps"].tolist() == ["0.900, Adam", "0.900 (+0.0: 0.0 to 0.0)", ""]
    assert list(frame.index) == ["one, 10 steps", "one, 25 steps"]
    assert list(beside_the_best({"one": cell(KNOWN)}, [25]).columns) == ["best other", "L3RS"]
    fewer = {"L3RS": {10: [0.8, 0.9]}, "L3RS unlearned": {10: [0.6]}, "SGD tuned": {10: [0.7, 0.9]}, "Adam tuned": {10: [0.75, 0.7]}}
    lines = beside_the_best({"one": cell(fewer)})
    assert lines.loc["one, 10 steps"].tolist() == ["0.800, SGD", "0.850 (+5.0: -58.5 to 68.5)", "0.600 (-15.0 over Adam)"]


def test_tables_are_written_between_their_comments() -> None:
    frame = pd.DataFrame({"a": ["1"]}, index=pd.Index(["x"], name="n"))
    page = "before\n\n<!-- table: T -->\nold\n<!-- end of table -->\nafter\n"
    filled = fill(page, [Table("T", "", frame)])
    assert filled == "before\n\n<!-- table: T -->\n| n | a |\n| --- | --- |\n| x | 1 |\n<!-- end of table -->\nafter\n"
    assert fill(filled, [Table("T", "", frame)]) == filled
    with pytest.raises(ValueError, match="there is no table 'T'; there are U"):
        fill(page, [Table("U", "", frame)])
    for unclosed in ("<!-- table: T -->\nprose\n" + page, page + "<!-- table: T -->\nprose\n"):
        with pytest.raises(ValueError, match="a table has no `<!-- end of table -->`"):
            fill(unclosed, [Table("T", "", frame)])  # or prose would go with it


@pytest.mark.parametrize("page", ["README.md", "docs/findings.md", "docs/what-matters.md", "docs/paper-protocol.md"])
def test_the_tables_of_a_page_are_those_of_the_rows(page: str, tmp_path: Path) -> None:
    """`python evaluate/tables.py --fill PAGE` would change nothing."""
    text = (ROOT / page).read_text()
    assert fill(text, made(tmp_path.parent / "nowhere")) == text


@pytest.mark.parametrize("page", ["README.md", "docs/findings.md"])
def test_prose_repeats_only_numbers_that_tables_have(page: str) -> None:
    text = (ROOT / page).read_text()
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv [0-9.]+", "", FILLED.sub("", text), flags=re.DOTALL)
    tables = {number for found in FILLED.finditer(text) for number in NUMBER.findall(found[0])}
    assert [number for number in NUMBER.findall(prose) if number not in tables] == []


def test_the_first_lines_of_the_readme_are_those_of_its_first_table() -> None:
    """Its gain after 10 and after 100 steps, of those lines of the table and no other."""
    text = (ROOT / "README.md").read_text()
    said = re.search(r"(\d+\.\d) points of accuracy after 10 steps, (\d+\.\d) after 100", text)
    assert said is not None
    lines = {cells[1]: cells[4] for line in text.splitlines() if len(cells := [c.strip() for c in line.split("|")]) == 9}
    assert [lines[steps].split()[0] for steps in ("10", "100")] == [f"+{number}" for number in said.groups()]


@cache
def made(nowhere: Path) -> list[Table]:
    """The tables of pages, of committed rows."""
    stress = [file.stem for file in (ROOT / "configs" / "evaluate").glob("stress-*.yaml")]
    sources = Sources(ROOT, nowhere, sorted({*HEADLINES, NETWORKS, "A", HEAD_ALONE, *AWAY, "refreshed", "averaged", *ELSEWHERE, *stress}))
    return [table for tables in (headlines, study, protocol, seeds, ablations) for _, table in tables(sources)]
