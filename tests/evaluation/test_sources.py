"""What tables and figures are made of, by the configs of this checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from l3rs.evaluation.figures import FIGURES
from l3rs.evaluation.sources import PAPER, Sources, collect, read_cell
from l3rs.evaluation.tables import TABLES, others, summary

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs" / "evaluate"


def test_a_cell_that_is_not_of_the_paper_is_shown_when_it_is_asked_for(tmp_path: Path) -> None:
    sources = Sources(ROOT, tmp_path, ["resnet18-w16"])
    made = {table.name: table for _, table in others(sources)}
    assert list(made) == ["Other cells", "Other cells, resnet18-w16"]
    line = made["Other cells"].frame.loc["resnet18-w16, 10 steps, L3RS generalist"]
    assert line.to_list()[:3] == ["0.794", "0.713", "Adam cosine tuned"]
    assert list(summary(sources)) == []
    assert "resnet18-w16" not in Sources(ROOT, tmp_path).cells
    assert {*PAPER, "averaged", "refreshed", "stress-horizon"} <= set(Sources(ROOT, tmp_path).cells)


def test_another_folder_has_nothing_that_is_of_icons_alone(tmp_path: Path) -> None:
    """All tables and figures are planned for it; without rows there is no picture."""
    sources = Sources(ROOT, tmp_path, ["E"], CONFIGS / "imagenet")
    assert not sources.of_icons
    assert [heading for heading, _ in collect(sources, (*TABLES, *FIGURES))] == ["In short", f"E: {sources.cells['E'].about}"]
    assert Sources(ROOT, tmp_path, configs=CONFIGS).of_icons


def test_a_cell_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"imagenet has A, A-head, B, C, D, E, and --cells names F"):
        Sources(ROOT, tmp_path, ["F"], CONFIGS / "imagenet")
    with pytest.raises(ValueError, match=r"has no cells$"):
        Sources(ROOT, tmp_path, configs=tmp_path)


def test_a_file_that_is_no_cell_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cell.yaml").write_text("cell: x\nhorizons: {10: 1}\narms: []\nhorizon: 10\n")
    with pytest.raises(ValueError, match=r"cell\.yaml: .*horizon") as error:
        read_cell(tmp_path / "cell.yaml")
    assert "\n" not in str(error.value)
