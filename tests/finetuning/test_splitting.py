"""`l3rs split`: a class split of a folder of images, from the table on the screen to the tasks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import fails, write_tree

from l3rs.cli import main
from l3rs.data.splits import PURPOSES, ClassSplit
from l3rs.finetuning.splitting import SplitConfig, make_split, wanted
from l3rs.finetuning.tasks import TaskConfig

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "red fox")
SMALL = ("--classes-per-task", "2", "--batch-size", "8", "--evaluation-size", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "animals", dict.fromkeys(CLASSES, 5))


def test_the_whole_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "split.json"
    main(["split", str(folder), *SMALL, "--seed", "4", "--out", str(out)])
    table = capsys.readouterr().out
    split = ClassSplit.read(out)
    assert (split.name, split.dataset, split.seed) == ("animals", "folder", 4)
    assert [len(split.classes[p]) for p in PURPOSES] == [0, 5, 2, 3]
    assert sorted(c for ids in split.classes.values() for c in ids) == list(CLASSES)
    lines = table.splitlines()
    assert lines[0].split() == ["class", "train", "validation"]
    assert "meta-train: 5 classes, 20 train and 5 validation images" in lines
    assert "pretrain: 0 classes, 0 train and 0 validation images" in lines
    for purpose in PURPOSES[1:]:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{purpose}:"))
        rows = [line.rsplit(maxsplit=2) for line in lines[at + 1 : at + 1 + len(split.classes[purpose])]]
        assert [row[0] for row in rows] == list(split.classes[purpose])
        assert all(row[1:] == ["4", "1"] for row in rows)
    assert "left out" not in table
    assert lines[-1] == f"Wrote {out}."

    main(["split", str(folder), *SMALL, "--seed", "4", "--out", str(tmp_path / "again.json")])
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()
    main(["split", str(folder), *SMALL, "--seed", "5", "--out", str(tmp_path / "other.json")])
    assert ClassSplit.read(tmp_path / "other.json").classes != split.classes


def test_what_is_no_split_is_not_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.txt").write_text("precious")
    said = fails(["split", str(folder), *SMALL, "--out", str(tmp_path / "note.txt")], capsys)
    assert f"--out must be a new file, or one of an earlier split (got {tmp_path / 'note.txt'}, which would be lost)" in said
    assert (tmp_path / "note.txt").read_text() == "precious"
    for seed in ("1", "2"):
        main(["split", str(folder), *SMALL, "--seed", seed, "--out", str(tmp_path / "split.json")])
        assert ClassSplit.read(tmp_path / "split.json").seed == int(seed)


def test_lists_numbers_and_shares(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("\ufeffhen\n\n  red fox \r\n", encoding="utf-8")  # as Windows writes it
    asked = ["--meta-test", f"@{tmp_path / 'list.txt'}", "--meta-validation", "cat", "bee", "--meta-train", "3", "--pretrain", "0.1"]
    main(["split", str(folder), *SMALL, *asked, "--name", "mine", "--out", str(tmp_path / "split.json")])
    split = ClassSplit.read(tmp_path / "split.json")
    assert split.name == "mine"
    assert split.classes["meta-test"] == ("hen", "red fox")
    assert split.classes["meta-validation"] == ("bee", "cat")
    assert [len(split.classes[p]) for p in PURPOSES] == [1, 3, 2, 2]
    assert "left out: 2 classes" in capsys.readouterr().out


def test_sides_of_their_own_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "x", {f"train/{c}": 4 for c in CLASSES} | {f"val/{c}": 3 for c in CLASSES})
    main(["split", str(root), *SMALL, "--out", str(tmp_path / "split.json")])
    assert "meta-test: 3 classes, 12 train and 9 validation images" in capsys.readouterr().out


def test_what_purposes_may_ask_for(tmp_path: Path) -> None:
    assert wanted("pretrain", ["0.25"]) == 0.25
    assert wanted("pretrain", ["40"]) == 40
    assert wanted("pretrain", ["cat"]) == ("cat",)
    assert wanted("pretrain", ["1", "2"]) == ("1", "2")  # the classes of that name
    (tmp_path / "one.txt").write_text("7\n")
    assert wanted("pretrain", [f"@{tmp_path / 'one.txt'}"]) == ("7",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--classes-per-task", "4"], "meta-validation of animals has 2 classes, and a task has 4"),
        (["--batch-size", "9"], "5 classes of meta-train of animals have fewer than 5 train images"),
        (["--evaluation-size", "4"], "have fewer than 2 validation images, which batches of 4 from 2 classes need: "),
        (["--meta-test", "unicorn", "hen"], "meta-test asks for class 'unicorn', which is not there"),
        (["--meta-test", "hen", "--meta-train", "hen", "cat"], "class 'hen' is asked for twice, by meta-train and by meta-test"),
        (["--meta-train", "0.9"], "9 for meta-train, 2 for meta-validation, 3 for meta-test: that is 14 classes, and there are 10"),
        (["--meta-train", "-0.5"], "meta-train must be a share between 0 and 1, a number of classes, or a list of them (got -0.5)"),
        (["--meta-train", "@nowhere.txt"], "--meta-train must name a file that can be read (got @nowhere.txt: No such file or directory)"),
        (["--batch-size", "0"], "batch_size must be at least 1 (got 0)"),
        (["--seed", "-1"], "--seed must be at least 0 (got -1)"),
        (["--name", "a/b"], "the name of a split must have no slash, since files are called after it (got 'a/b')"),
        (["--name", ".."], "the name of the split must be one that files can be called after (got '..')"),
        (["--name", "x" * 300], "the name of the split must have at most 255 bytes"),
    ],
)
def test_what_cannot_be_split_is_one_line(
    options: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(["split", str(folder), *SMALL, "--out", str(tmp_path / "split.json"), *options], capsys)
    assert not (tmp_path / "split.json").exists()


def test_classes_with_too_few_images_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted((folder / "gnu").iterdir())[1:]:
        file.unlink()
    asked = ["--meta-train", *CLASSES[:4], "gnu", "--meta-validation", "0", "--meta-test", "0"]
    said = fails(["split", str(folder), *SMALL, *asked, "--out", str(tmp_path / "split.json")], capsys)
    assert "1 classes of meta-train of animals have fewer than 4 train images" in said
    assert ": gnu (1); leave these classes out" in said
    (folder / "gnu" / "gnu-000.png").unlink()
    asked = ["--pretrain", "gnu", "--meta-train", *CLASSES[:4], "--meta-validation", "0", "--meta-test", "0"]
    assert "class 'gnu' of pretrain has no train images" in fails(["split", str(folder), *SMALL, *asked], capsys)


def test_lists_that_are_no_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "latin.txt: it is not UTF-8)" in fails(["split", str(folder), "--pretrain", f"@{tmp_path / 'latin.txt'}"], capsys)


@pytest.mark.parametrize(
    ("name", "said"), [("a\0b", "must be a name that a file can have (got 'a\\x00b')"), ("x" * 300, "must have at most 255 bytes")]
)
def test_lists_of_what_is_no_name(name: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text(f"hen\n\n{name}\n")
    assert f"list.txt, line 3: a class {said}" in fails(["split", str(folder), "--pretrain", f"@{tmp_path / 'list.txt'}"], capsys)


def test_names_on_the_terminal_and_what_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "x", dict.fromkeys((*CLASSES[:5], "\x1b[2Jfox"), 5))
    (root / "ant" / "x.heic").touch()
    small = ("--classes-per-task", "1", "--batch-size", "4", "--evaluation-size", "1")
    main(["split", str(root), *small, "--out", str(tmp_path / "split.json")])
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert r"\x1b[2Jfox" in out
    assert err == f"{root}: passed over 1 .heic\n"
    assert "\x1b[2Jfox" in {c for ids in ClassSplit.read(tmp_path / "split.json").classes.values() for c in ids}
    assert r"\x1b]0;x" in fails(["split", str(root), "--meta-train", "\x1b]0;x"], capsys)


def test_folders_that_cannot_be_read_or_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere is not a folder" in fails(["split", str(tmp_path / "nowhere")], capsys)
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "split.json", tmp_path):
        assert f"{out} cannot be written (" in fails(["split", str(folder), *SMALL, "--out", str(out)], capsys)
    (tmp_path / "empty").mkdir()
    assert "empty has no class folders" in fails(["split", str(tmp_path / "empty")], capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in fails(["split", str(folder), *SMALL, "--out", str(tmp_path / "split.json")], capsys)


def test_the_split_is_that_of_the_folder_wherever_one_stands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    split, _ = make_split(SplitConfig(Path("."), tmp_path / "split.json", task=TaskConfig(2, 8, 2)))
    assert split.name == "animals"
    assert json.loads((tmp_path / "split.json").read_text())["name"] == "animals"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["split", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{purpose}" in out for purpose in PURPOSES)
