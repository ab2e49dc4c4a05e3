"""The evaluation on ImageNet and Places: every cell's config with full ResNet-34 at 224 px, dry, on small trees of real JPEG files."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import noise, random_schedule
from safetensors.torch import save_file

from l3rs.data.splits import ClassSplit
from l3rs.evaluation.cell_tables import Cell
from l3rs.evaluation.cells import EvaluationConfig
from l3rs.evaluation.figures import comparisons
from l3rs.evaluation.sources import Sources, read_cells
from l3rs.finetuning.arms import Arm
from l3rs.networks.create import create
from l3rs.schedules.find import save

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs" / "evaluate" / "imagenet"
sys.path.insert(0, str(ROOT / "evaluate"))
import run  # noqa: E402
import tables  # noqa: E402
import tune  # noqa: E402

SMALL = {"task": {"classes": 4, "batch_size": 2, "evaluation_size": 4}, "horizons": {1: 1}, "curve": []}


def write_imagenet(root: Path) -> None:
    """One image a side of every class that tasks are of, in ImageNet's layout."""
    split = ClassSplit.find("imagenet25-0").classes
    for side in ("train", "val"):
        for c in (*split["meta-train"], *split["meta-test"]):
            (root / side / c).mkdir(parents=True)
            noise(f"{side} {c}", 60, 40).save(root / side / c / f"{side}_{c}.JPEG")


def write_places(root: Path) -> None:
    """One image a side of every class, with the lists of Places365-standard."""
    classes = ClassSplit.find("places25").classes["meta-test"]
    train = [f"{c}/00000001.jpg" for c in classes]
    held = [f"Places365_val_{i:08d}.jpg" for i in range(len(classes))]
    for folder, files in (("data_256_standard", train), ("val_256", held)):
        for file in files:
            path = root / folder / file.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(file, 60, 40).save(path)
    for name, lines in (("categories_places365", classes), ("places365_train_standard", train), ("places365_val", held)):
        (root / f"{name}.txt").write_text("".join(f"{line} {i}\n" for i, line in enumerate(lines)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the configs find what they name: images, both backbones, and a schedule."""
    root = tmp_path_factory.mktemp("paper")
    write_imagenet(root / "IMAGENET")
    write_places(root / "PLACES365")
    torch.manual_seed(0)
    network = create("resnet34", None, 3, 25)
    (root / "runs" / "backbones").mkdir(parents=True)
    for name in ("imagenet25-0", "places25"):
        weights = {k: v.contiguous() for k, v in network.state_dict().items()}
        save_file(weights, root / "runs" / "backbones" / f"resnet34-{name}.safetensors")
    (root / "runs" / "imagenet25").mkdir()
    save(random_schedule(network, scale=0.1), root / "runs" / "imagenet25" / "imagenet25-0-resnet34.safetensors")
    return root


def small(name: str, folder: Path) -> Path:
    """The config of a cell, all as it is but for the size of tasks and the length of runs."""
    file = folder / f"{name}.yaml"
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | SMALL
    config["workload"]["cache"] = str(folder / "cache")
    file.write_text(yaml.safe_dump(config))
    return file


def call(script: object, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    script.main()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "A-head", "B", "C", "D", "E"])
def test_every_cell_makes_its_rows(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arms = [a["name"] for a in yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["arms"]]
    learned = next(a for a in arms if a.startswith("L3RS"))
    constant = next(a for a in arms if a.startswith("Adam constant 1e-4"))
    out = folder / "rows"
    call(run, "--config", small(name, folder), "--arms", learned, constant, "--workers", 1, "--out", out, monkeypatch=monkeypatch)
    rows = pd.concat(map(pd.read_csv, (out / f"imagenet-{name}").glob("*.csv")))
    assert set(rows.arm) == {learned, constant}
    assert rows.error.isna().all()
    assert rows.loss.notna().all()
    assert rows.accuracy.isin([0, 0.25, 0.5, 0.75, 1]).all()


@pytest.mark.slow
def test_learning_rates_are_tuned_for_the_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    file = small("A", folder)
    call(tune, "--config", file, "--names", "sgd-cosine", "--tasks", 1, "--workers", 1, monkeypatch=monkeypatch)
    chosen = yaml.safe_load((folder / "runs" / "imagenet-rates" / "A.yaml").read_text())
    tried = pd.read_csv(folder / "runs" / "imagenet-rates" / "A.csv")
    assert chosen["sgd-cosine"][1] in set(tried.lr)
    config = read_cells(file)[""]
    (arm,) = (arm for arm in config.arms if arm.optimizer == "sgd-cosine")
    assert config.rate(arm, 1) == chosen["sgd-cosine"][1]


def test_places_has_no_classes_to_tune_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(tune, "--config", CONFIGS / "D.yaml", monkeypatch=monkeypatch)
    assert "places25 has no meta-train classes to tune on" in capsys.readouterr().err


def test_a_folder_that_is_none_is_named_before_anything_is_tuned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(tune, "--config", CONFIGS / "A.yaml", "--data", "nowhere", monkeypatch=monkeypatch)
    assert "error: nowhere is not a folder" in capsys.readouterr().err


def test_a_part_of_a_cell_has_no_arm_without_lengths() -> None:
    """Of an arm no lengths would mean all."""
    arms = (Arm("short", "adam", 0.1, horizons=(1,)), Arm("both", "adam", 0.2))
    cell = Cell(EvaluationConfig("cell", arms, {1: 2, 9: 3}), "cell.yaml", pd.DataFrame(), "")
    assert [(arm.name, arm.horizons) for arm in cell.part(arms, (9,)).config.arms] == [("both", (9,))]
    assert [(arm.name, arm.horizons) for arm in cell.part(arms).config.arms] == [("short", (1,)), ("both", (1, 9))]


def test_the_papers_tables_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every cell, with all lengths of the paper; what tunes learning rates is named before what needs them."""
    call(tables, "--configs", CONFIGS, "--out", tmp_path / "tables.md", "--rows", tmp_path, monkeypatch=monkeypatch)
    text = (tmp_path / "tables.md").read_text()
    assert all(f"Table {n}." in text for n in range(5, 17))
    assert "2500 steps" in text
    assert "Ablation" not in text  # these are of Icons
    refreshed = {n: "Refreshed arms are evaluated" in text.split(f"Table {n}.")[1].split("Table")[0] for n in (5, 7, 9)}
    assert refreshed == {5: True, 7: False, 9: True}  # the head alone has no such arm
    drawn = {picture.name: picture.caption for _, picture in comparisons(Sources(ROOT, tmp_path, configs=CONFIGS))}
    assert {n: "Refreshed arms are evaluated" in drawn[f"Figure 3{n}"] for n in ("A", "A-head", "B")} == {
        "A": True,
        "A-head": False,
        "B": True,
    }
    first = text.index("python evaluate/tune.py --config configs/evaluate/imagenet/A.yaml")
    assert first < text.index("python evaluate/run.py --config configs/evaluate/imagenet/A.yaml")
    assert "tune.py --config configs/evaluate/imagenet/D.yaml" not in text
