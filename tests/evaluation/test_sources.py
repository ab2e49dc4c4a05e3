"""What tables and figures are made of, by the configs of this checkout."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from l3rs.evaluation.cell_tables import unique
from l3rs.evaluation.cells import Rows, plan, rows_of
from l3rs.evaluation.figures import FIGURES
from l3rs.evaluation.sources import Sources, about, collect, read_cells
from l3rs.evaluation.tables import TABLES, costs_of, from_scratch, others, summary
from l3rs.finetuning.unroll import Report

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs" / "evaluate"


def test_a_cell_that_is_not_of_the_paper_has_a_table_of_its_own(tmp_path: Path) -> None:
    sources = Sources(ROOT, tmp_path, ["resnet18-w16"])
    made = {table.name: table for _, table in others(sources)}
    assert list(made) == ["Other cells", "Other cells, resnet18-w16"]
    line = made["Other cells"].frame.loc["resnet18-w16, 10 steps, L3RS generalist"]
    assert line.to_list()[:3] == ["0.794", "0.713", "Adam cosine tuned"]
    assert list(summary(sources)) == []
    files = {file.stem for file in CONFIGS.glob("*.yaml")}
    assert files - set(Sources(ROOT, tmp_path).cells) == {"networks", "scratch"}  # which are a cell a network


def test_every_table_and_picture_has_a_name_of_its_own(tmp_path: Path) -> None:
    sources = Sources(ROOT, tmp_path, ["recipes", "equal", "stress-batch-16", "stress-batch-256", "A-head"])
    sources.of_icons = False  # what has no cell takes its time
    sources.__dict__["cells"] = {name: cell._replace(rows=cell.rows[:0]) for name, cell in sources.cells.items()}
    names = [item.name for _, items in collect(sources, (*TABLES, *FIGURES)) for item in items]
    assert {"Winners", "Winners, in numbers", "Recipes", "Equal, accuracy", "Images seen", "Table 7, steps to match"} <= set(names)
    assert sorted(names) == sorted(set(names))


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


ZOO = """
small-glyphs: {split: glyphs, model: resnet18, width: 4, weights: small.safetensors, held_out: true}
met: {split: icons, model: resnet18, width: 8, weights: met.safetensors, held_out: false}
large: {split: icons, model: densenet121, model_args: {growth_rate: 12}, weights: large.safetensors, held_out: true}
"""
FAMILY = """\
# python evaluate/run.py (networks that no schedule met)
cell: networks-{network}
zoo: {file: ../zoo.yaml, weights: folder, tasks: {glyphs: {classes: 5}}}
horizons: {2: 1}
rates: rates/{network}.yaml
arms: [{name: Adam, optimizer: adam, lr: 0.1}]
"""


def test_a_config_with_a_zoo_has_a_cell_for_each_network_that_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import run

    (tmp_path / "evaluate").mkdir()
    (tmp_path / "zoo.yaml").write_text(ZOO)
    file = tmp_path / "evaluate" / "networks.yaml"
    file.write_text(FAMILY)
    cells = read_cells(file)
    assert {name: (c.cell, c.rates, c.workload.weights, c.task.classes) for name, c in cells.items()} == {
        "small-glyphs": ("networks-small-glyphs", "rates/small-icons.yaml", "folder/small.safetensors", 5),
        "large": ("networks-large", "rates/large.yaml", "folder/large.safetensors", 25),
    }
    assert len({config.workload for config in cells.values()}) == 2  # also with model_args
    random = FAMILY.replace("networks-{", "scratch-{").replace("{file", "{from_scratch: true, file")
    (tmp_path / "evaluate" / "scratch.yaml").write_text(random)
    scratch = read_cells(tmp_path / "evaluate" / "scratch.yaml")["large"].workload
    assert scratch == replace(cells["large"].workload, weights=None, from_scratch=True)
    fewer = tmp_path / "evaluate" / "fewer.yml"
    fewer.write_text(FAMILY.replace("{file", "{without: [large], file"))
    assert list(read_cells(fewer)) == ["small-glyphs"]
    for name in ("met", "none"):
        fewer.write_text(FAMILY.replace("{file", f"{{without: [{name}], file"))
        with pytest.raises(ValueError, match=f"its zoo is without '{name}', which is no network that is held out there"):
            read_cells(fewer)
    out = ["--config", str(file), "--out", str(tmp_path / "rows"), "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["run.py", *out, "--networks", "large", "--plan"])
    run.main()
    assert capsys.readouterr().out == "networks-large: 1 runs are missing, 2 steps\n"
    monkeypatch.setattr("sys.argv", ["run.py", *out, "--networks", "met"])
    with pytest.raises(SystemExit):
        run.main()
    assert "--networks names 'met'; there are small-glyphs, large" in capsys.readouterr().err
    sources = Sources(ROOT, tmp_path / "rows", configs=tmp_path / "evaluate")
    assert list(sources.cells) == ["networks-small-glyphs", "networks-large", "scratch-small-glyphs", "scratch-large"]
    assert [table.name for _, table in from_scratch(sources)] == ["From random weights"]
    assert sources.cells["networks-large"].commands()[0].endswith("networks.yaml --networks large")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: Adam,", "name: Adam, refresh: true,", "A has rows of Adam with other settings, of head_only, refresh"),
        ("classes: 5", "classes: 6", "A has rows of another network, other images or tasks: Adam, 2 steps"),
    ],
)
def test_tables_figures_and_the_report_refuse_rows_of_a_config_that_was_edited(
    old: str, new: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    file = tmp_path / "cells" / "A.yaml"
    file.parent.mkdir()
    text = "cell: A\nhorizons: {2: 1}\ntask: {classes: 5}\narms: [{name: Adam, optimizer: adam, lr: 0.1}]\n"
    file.write_text(text)
    (planned,) = plan(read_cells(file)[""])
    Rows(tmp_path / "rows" / "A").append(list(rows_of(planned, Report(accuracy={2: 0.5}, loss={2: 1.0}))))
    monkeypatch.setattr("l3rs.evaluation.sources.Sources.results", tmp_path / "committed")
    out = {"tables": tmp_path / "tables.md", "figures": tmp_path / "figures", "report": tmp_path / "report"}

    def script(name: str) -> None:
        options = ("--configs", str(file.parent), "--rows", str(tmp_path / "rows"), "--out", str(out[name]))
        monkeypatch.setattr("sys.argv", [f"{name}.py", *options])
        import_module(name).main()

    script("tables")
    assert "0.500" in out["tables"].read_text()
    file.write_text(text.replace(old, new))
    for name in out:
        with pytest.raises(SystemExit, match=said):
            script(name)
    assert not out["figures"].exists()
    assert not out["report"].exists()


def test_another_folder_of_images_is_for_the_networks_of_a_zoo_that_name_one(tmp_path: Path) -> None:
    photos = "photos: {split: cifar10, data: there, model: resnet18, width: 4, weights: small.safetensors, held_out: true}\n"
    (tmp_path / "zoo.yaml").write_text(ZOO + photos)
    (tmp_path / "cells").mkdir()
    file = tmp_path / "cells" / "networks.yaml"
    file.write_text(FAMILY)
    folders = {name: config.workload.data for name, config in read_cells(file).items()}
    assert folders == {"small-glyphs": None, "large": None, "photos": "there"}
    folders = {name: config.workload.data for name, config in read_cells(file, "elsewhere").items()}
    assert folders == {"small-glyphs": None, "large": None, "photos": "elsewhere"}
    file.write_text("cell: one\nhorizons: {2: 1}\narms: [{name: Adam, optimizer: adam, lr: 0.1}]\n")
    with pytest.raises(ValueError, match="data is elsewhere, and the split icons is embedded"):
        read_cells(file, "elsewhere")
    file.write_text(FAMILY)
    (tmp_path / "zoo.yaml").write_text(ZOO)
    with pytest.raises(ValueError, match="data is elsewhere, and the split glyphs is embedded"):  # no network names a folder
        read_cells(file, "elsewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is no cell: it must map fields"),
        ("[1]", "it is no cell: it must map fields"),
        ("zoo: x", "its zoo must have file, a list of networks, and weights, their folder"),
        ("zoo: {file: zoo.yaml}", "its zoo must have file, .* and weights"),
    ],
)
def test_what_is_no_mapping_is_told_in_words(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "cell.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"cell\.yaml: {said}"):
        read_cells(tmp_path / "cell.yaml")


def test_a_cell_without_a_description_is_called_by_its_file(tmp_path: Path) -> None:
    for comment, description in (
        ("", "mine"),
        ("# mine, without brackets\n", "mine"),
        ("# run.py   (a try: one of mine)\n", "One of mine"),
    ):
        (tmp_path / "mine.yaml").write_text(f"{comment}cell: mine\n")
        assert about(tmp_path / "mine.yaml") == description


def test_a_file_that_is_no_cell_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cell.yaml").write_text("cell: x\nhorizons: {10: 1}\narms: []\nhorizon: 10\n")
    with pytest.raises(ValueError, match=r"cell\.yaml: .*horizon") as error:
        read_cells(tmp_path / "cell.yaml")
    assert "\n" not in str(error.value)


def test_what_an_arm_costs_counts_the_rates_that_were_tried_for_its_head(tmp_path: Path) -> None:
    sources = Sources(ROOT, tmp_path, ["equal"])
    cell = sources.cells["equal"]
    tried = pd.read_csv(ROOT / "evaluate" / "results" / "tuning-start.csv").query("steps == 25").groupby("optimizer").lr.nunique()
    costs = dict(zip((arm.name for arm in unique(cell.config.arms)), costs_of(cell, sources), strict=True))
    assert costs["Adam cosine tuned"] == str(tried["adam-cosine"]) != "3"
    assert (costs["L3RS"], costs["Head alone"]) == ("1", "0")
