"""Folders, disks and processes that fail: what is lost, and what is said."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import fails_at_last, noise, write_tree
from filelock import FileLock

from l3rs.cli import main
from l3rs.data.splits import ClassSplit
from l3rs.data.transform import Transform
from l3rs.data.trees import read_folder
from l3rs.files import TEMPORARY
from l3rs.finetuning import compare
from l3rs.finetuning.compare import Results
from l3rs.finetuning.runs import FIELDS
from l3rs.own_images.classifier import Classifier, save

TINY = ["--model", "resnet18", "--width", "2", "--side", "16", "--from-scratch", "--steps", "2", "--batch-size", "4", "--workers", "0"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file can be longer than this, in bytes: every writer meets a real error of the system, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "photos", {"ant": 5, "狐 $x": 5}, 20, 20)


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_disk_that_is_full_as_a_run_is_written(size: int, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the first file of a run, and for its weights."""
    argv = ["finetune", "--data", str(photos), *TINY, "--out", str(tmp_path / "o")]
    with files_of_at_most(size):
        said = fails_at_last(argv, capsys)
    assert "File too large" in said
    assert str(tmp_path / "o") in said
    assert not list((tmp_path / "o").glob(TEMPORARY))
    main(argv)  # room again
    assert (tmp_path / "o" / "model.safetensors").exists()


def test_a_disk_that_is_full_as_predictions_and_splits_are_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = Classifier("resnet18", 2, ("ant", "bee"), Transform(16, 18, 3, "bilinear", (0.5,) * 3, (0.25,) * 3))
    save(classifier, classifier.network().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "t.csv").write_text("file,class,probability\nbefore")  # earlier predictions; what is something else is refused
    earlier = {"pretrain": (), "meta-train": ("ant",), "meta-validation": ("bee",), "meta-test": ()}
    ClassSplit("folder", 0, earlier).write(tmp_path / "split.json")
    before = (tmp_path / "split.json").read_text()
    size = ["--classes-per-task", "1", "--batch-size", "1", "--evaluation-size", "1"]
    with files_of_at_most(20):
        said = fails_at_last(["predict", str(tmp_path), str(photos), "--csv", str(tmp_path / "t.csv")], capsys)
        assert "t.csv could not be written (File too large)" in said
        said = fails_at_last(
            [
                "split",
                str(photos),
                *size,
                "--meta-train",
                "1",
                "--meta-validation",
                "1",
                "--meta-test",
                "0",
                "--out",
                str(tmp_path / "split.json"),
            ],
            capsys,
        )
        assert "split.json cannot be written (File too large)" in said
    assert (tmp_path / "t.csv").read_text() == "file,class,probability\nbefore"
    assert (tmp_path / "split.json").read_text() == before


def test_a_checkpoint_to_go_on_from_that_is_damaged_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["finetune", "--data", str(photos), *TINY, "--out", str(tmp_path / "o")]
    main(argv)
    (tmp_path / "o" / "result.json").unlink()
    for data in (b"", b"x" * 100, b"PK\x03\x04" + bytes(500)):
        (tmp_path / "o" / "last.ckpt").write_bytes(data)
        assert "last.ckpt cannot be read" in fails_at_last(argv, capsys)
    (tmp_path / "o" / "last.ckpt").unlink()
    (tmp_path / "o" / "config.json").write_text("[")
    assert "config.json cannot be read" in fails_at_last(argv, capsys)


def test_the_second_comparison_in_a_folder_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(tmp_path / "lock"):
        assert "where no other process is at work" in fails_at_last(["finetune", "--out", str(tmp_path)], capsys)


def test_a_comparison_whose_process_was_killed_in_a_row_goes_on(tmp_path: Path) -> None:
    rows = f"{','.join(FIELDS)}\nicons25eval,adam,0.01,10,3,,0.5,1.0,2.0\n"
    for cut in (rows + "icons25eval,ad", rows[:20]):
        (tmp_path / "runs.csv").write_text(cut)
        results = Results(tmp_path, {})
        assert results.runs.task_seed.to_list() == ([3] if cut.startswith(rows) else [])
        del results


@pytest.mark.slow
def test_a_comparison_that_was_killed_between_its_two_files_has_no_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curve of a run is written, and the run is not; or only some of its curve, as the disk is full."""
    argv = ["finetune", "--tasks", "2", "--steps", "2", "--optimizers", "adam", "--workers", "1", "--out", str(tmp_path)]
    add = compare.append_rows

    def killed(file: Path, *rest: object) -> None:
        if file.name == "runs.csv" and file.exists():
            raise KeyboardInterrupt
        add(file, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(compare, "append_rows", killed)
        with pytest.raises(SystemExit):
            main(argv)
    curves = tmp_path / "curves.csv"
    whole = curves.read_bytes()
    assert len(pd.read_csv(curves)) == 6  # of two runs, one of which has a row
    main(argv)
    assert sorted(curves.read_bytes().splitlines()[:4]) == sorted(whole.splitlines()[:4])  # what was kept is what was written
    table = pd.read_csv(curves)
    assert len(table) == 6
    assert not table.duplicated(["task_seed", "steps"]).any()


def test_a_comparison_does_not_touch_the_files_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs.csv").write_text("my,own\n1,2\n")
    assert "runs.csv is no file of l3rs finetune" in fails_at_last(["finetune", "--out", str(tmp_path)], capsys)
    assert (tmp_path / "runs.csv").read_text() == "my,own\n1,2\n"
    (tmp_path / "runs.csv").unlink()
    (tmp_path / "about.json").write_text("[]")
    assert "about.json cannot be read" in fails_at_last(["finetune", "--out", str(tmp_path)], capsys)


@pytest.mark.slow
def test_ten_thousand_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "one.png"
    noise("one", 8, 8).save(picture)
    for number in range(10_000):
        (tmp_path / "many" / f"class {number}").mkdir(parents=True)
        for image in range(2):
            shutil.copy(picture, tmp_path / "many" / f"class {number}" / f"{image}.png")
    started = time.perf_counter()
    tree = read_folder(tmp_path / "many")
    assert (len(tree.classes), len(tree.files)) == (10_000, 20_000)
    assert time.perf_counter() - started < 60
    shares = ["--pretrain", "10000", "--meta-train", "0", "--meta-validation", "0", "--meta-test", "0"]
    main(["split", str(tmp_path / "many"), *shares, "--out", str(tmp_path / "s.json")])
    torch.manual_seed(0)
    main(["finetune", "--data", str(tmp_path / "many"), *TINY, "--out", str(tmp_path / "o")])
    assert pd.read_csv(tmp_path / "o" / "summary.csv").accuracy.between(0, 1).all()
    capsys.readouterr()
    main(["predict", str(tmp_path / "o"), str(picture), "--top", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 4
