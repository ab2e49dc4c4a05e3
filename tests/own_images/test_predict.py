"""Prediction with a saved classifier: the table, broken images, and files that lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import write_tree
from PIL import Image
from safetensors.torch import save_file

from l3rs.cli import main
from l3rs.data.transform import Transform
from l3rs.own_images import classifier as classifier_module
from l3rs.own_images.classifier import Classifier, ClassifierError, describe, load, save
from l3rs.own_images.predict import predict
from l3rs.schedules.seal import sealed

TRANSFORM = Transform(16, 18, 3, "bilinear", (0.5,) * 3, (0.25,) * 3)
CLASSES = ("red fox", "狐", "c")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with a network at random."""
    folder = tmp_path_factory.mktemp("run")
    classifier = Classifier("resnet18", 2, CLASSES, TRANSFORM, {"optimizer": "l3rs"})
    torch.manual_seed(0)
    save(classifier, classifier.network().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("images"), {"x": 3, "x/deeper": 1, "y z": 1}, 30, 20)


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        main(["predict", *argv])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_what_was_saved_is_what_is_loaded(model: Path) -> None:
    classifier, network = load(model)
    assert (classifier.classes, classifier.transform, classifier.width) == (CLASSES, TRANSFORM, 2)
    assert classifier.training == {"optimizer": "l3rs"}
    assert not network.training
    assert describe(model / "model.safetensors").classes == CLASSES


def test_the_table_is_what_the_network_says(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run([str(model), str(images), str(images / "x" / "x-000.png"), "--top", "2", "--csv", str(tmp_path / "t.csv")], capsys)
    assert code == 0
    table = pd.read_csv(tmp_path / "t.csv")
    assert len(table) == 12
    assert table.file.drop_duplicates().str.removeprefix(f"{images}/").to_list() == [
        "x/deeper/deeper-000.png", "x/x-000.png", "x/x-001.png", "x/x-002.png", "y z/y z-000.png",
    ]  # fmt: skip
    _, network = load(model)
    for file, rows in table.head(10).groupby("file"):
        shares = network(TRANSFORM.evaluation(file)[None])[0].softmax(0)
        best = shares.topk(2)
        assert rows["class"].to_list() == [CLASSES[i] for i in best.indices]
        assert rows.probability.to_list() == pytest.approx(best.values.tolist(), abs=1e-5)
    assert out.splitlines()[0].split() == ["file", "class", "probability"]
    assert len(out.splitlines()) == 13


def test_more_classes_than_there_are(model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run([str(model), str(images / "y z"), "--top", "9"], capsys)
    assert len(out.splitlines()) == 4


def test_order_is_kept_over_batches(model: Path, tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 35}, 20, 20)
    files = sorted(map(str, (tmp_path / "a").iterdir()))
    (tmp_path / "a" / Path(files[3]).name).write_text("broken")
    found = list(predict(*load(model), files))
    assert [p.file for p in found] == files
    assert [p.file for p in found if p.error] == [files[3]]
    alone = list(predict(*load(model), files[34:]))
    assert found[34].classes[0][0] == alone[0].classes[0][0]
    assert found[34].classes[0][1] == pytest.approx(alone[0].classes[0][1], abs=1e-5)


def test_broken_images_are_named_and_left_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "bomb.ppm").write_bytes(b"P6 20000 20000 255\n")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert run([str(model), str(tmp_path / "empty.jpg")], capsys)[:2] == (1, "")  # nor a header of nothing
    code, out, err = run([str(model), str(tmp_path), str(tmp_path / "loop.png"), "--csv", str(tmp_path / "t.csv")], capsys)
    assert code == 1
    assert "tiny.png" in out
    assert "empty.jpg: it is empty" in err
    assert "decompression bomb" in err
    assert "loop.png" in err
    assert all(line.startswith("l3rs: left out: ") for line in err.splitlines())
    assert pd.read_csv(tmp_path / "t.csv").file.to_list() == [str(tmp_path / "tiny.png")]


def test_what_is_passed_over_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, {"a": 1, "b": 1}, suffix=".gif")
    (tmp_path / "a" / "x.heic").touch()
    code, out, err = run([str(model), str(tmp_path / "a"), str(tmp_path / "b")], capsys)
    assert (code, len(out.splitlines()), err) == (0, 3, f"{tmp_path / 'a'}: passed over 1 .heic\n")
    (tmp_path / "a" / "a-000.gif").unlink()
    assert "has no images (passed over: 1 .heic)" in run([str(model), str(tmp_path / "a")], capsys)[2]


def test_a_named_pipe_among_images_is_left_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, {"a": 1})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    for given in (tmp_path / "a", tmp_path / "a" / "pipe.png"):
        code, _, err = run([str(model), str(given)], capsys)
        assert (code, err) == (1, f"l3rs: left out: {tmp_path}/a/pipe.png: it is no file, but a named pipe, a socket or a device\n")


def test_names_are_safe_on_the_terminal_and_in_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier("resnet18", 2, ("=1+1", "\x1b]0;owned\x07"), TRANSFORM)
    save(classifier, classifier.network().state_dict(), tmp_path / "m.safetensors")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9)).save("+x.png")
    Path("\x1b[2J.png").touch()
    code, out, err = run(["m.safetensors", "+x.png", "\x1b[2J.png", "--top", "2", "--csv", "t.csv"], capsys)
    assert code == 1
    assert "\x1b" not in out + err
    assert r"\x1b[2J.png: it is empty" in err
    rows = sorted(line.split(",")[:2] for line in Path("t.csv").read_text().splitlines()[1:])
    assert rows == [["'+x.png", "'=1+1"], ["'+x.png", r"\x1b]0;owned\x07"]]
    assert run(["m.safetensors", "\x1b[2Jnowhere"], capsys)[2] == "l3rs: error: \\x1b[2Jnowhere is not there\n"


@pytest.mark.parametrize(("side", "sizes"), [(16, [32, 3]), (512, [32, 3]), (1024, [8] * 4 + [3]), (4096, [1] * 35)])
def test_batches_of_large_images_are_small(side: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may say that its network sees 4,096 px, and 32 such images take gigabytes."""
    monkeypatch.setattr(Transform, "evaluation", lambda self, path: torch.zeros(3, 4, 4))
    seen: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(len(inputs))
            return torch.zeros(len(inputs), 2)

    classifier = Classifier("resnet18", 2, ("a", "b"), Transform(side, side, 3, "bilinear", (0.5,) * 3, (0.25,) * 3))
    assert len(list(predict(classifier, Counting(), ["x"] * 35))) == 35
    assert seen == sizes


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["MODEL", "nowhere.png"], "nowhere.png is not there"),
        (["nowhere", "IMAGES"], "nowhere is not there; give the folder of a run"),
        (["IMAGES", "IMAGES"], "has no model.safetensors"),
        (["MODEL", "MODEL"], "has no images"),
        (["MODEL", "IMAGES", "--top", "0"], "--top must be at least 1 (got 0)"),
        (["MODEL", "IMAGES", "--csv", "no/such/folder/x.csv"], "--csv must be a file that can be written"),
        (["MODEL"], "images"),
        (["MODEL", "x" * 300], "xxx is not there"),
        (["x" * 300, "IMAGES"], "xxx is not there; give the folder of a run"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], said: str, model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run([{"MODEL": str(model), "IMAGES": str(images)}.get(a, a) for a in argv], capsys)
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert said in err


# Files that lie


def about(model: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        return json.loads(file.metadata()["l3rs"])


def lie(run: Path, path: Path, /, **changes: object) -> Path:
    from safetensors.torch import load_file

    save_file(load_file(run / "model.safetensors"), path, metadata={"l3rs": json.dumps({**about(run), **changes})})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "else"}, "holds else, and not an image classifier"),
        ({"schema": 2}, "has schema version 2"),
        ({"model": "resnet43"}, "which timm .* does not have"),
        ({"model": "hf-hub:someone/something"}, "which timm .* does not have"),
        ({"model": 5}, "model, width and classes must be"),
        ({"model": "resnet34"}, "for layer1.2"),
        ({"width": 3}, "conv1.weight is not of width 3"),
        ({"width": 10**9}, "conv1.weight is not of width 1000000000"),
        ({"width": "2"}, "model, width and classes must be"),
        ({"classes": ["a", "b"]}, "for fc.bias it has"),
        ({"classes": ["a", "b", "c", "d", "e"]}, "no tensor is of 5 classes"),
        ({"classes": ["a", "a", "b"]}, "classes must be two or more different names \\(got \\['a', 'a'\\]\\)"),
        ({"classes": ["a", "b", 3]}, "classes must be two or more different names \\(got \\[3\\]\\)"),
        ({"classes": "abc"}, "model, width and classes must be"),
        ({"classes": ["a", "b", "c" * 300]}, "a class must have at most 255 bytes"),
        ({"classes": ["a", "b", "\ud83d"]}, "a class must be a name that a file can have"),
        ({"classes": ["a", "b", "c\0"]}, "a class must be a name that a file can have"),
        ({"transform": {"side": 16}}, "cannot use"),
        ({"transform": None}, "cannot use"),
        (
            {"transform": {"side": 10**9, "resize": 10**9, "channels": 3, "interpolation": "bilinear", "mean": [0] * 3, "std": [1] * 3}},
            "4096",
        ),
    ],
)
def test_everything_in_the_file_is_checked(changes: dict[str, object], said: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=said):
        load(lie(model, tmp_path / "x.safetensors", **changes))


def test_a_network_that_the_file_does_not_hold_is_never_made(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred bytes may name a network of gigabytes: its shapes are looked at on the meta device."""
    claims = json.dumps(about(model) | {"model": "vit_giant_patch14_224", "width": None})
    save_file({"x": torch.zeros(3, 1)}, giant := tmp_path / "giant.safetensors", metadata={"l3rs": claims})
    devices: list[str] = []
    make = classifier_module.create

    def noted(*arguments: Any) -> torch.nn.Module:
        network = make(*arguments)
        devices.append(next(network.parameters()).device.type)
        return network

    monkeypatch.setattr(classifier_module, "create", noted)
    with pytest.raises(
        ClassifierError, match=r"giant\.safetensors does not hold the classifier that its metadata describe: for .* it has no such"
    ):
        load(giant)
    assert devices == ["meta"]
    load(model)
    assert devices == ["meta", "meta", "cpu"]


def test_other_files_are_told_apart(model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((model / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ClassifierError, match="may be truncated"):
        load(cut)
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ClassifierError, match="no l3rs metadata"):
        load(tmp_path / "plain.safetensors")
    from importlib import resources

    with (
        resources.as_file(resources.files("l3rs.schedules") / "checkpoints" / "icons-resnet34.safetensors") as path,
        pytest.raises(ClassifierError, match="a learned schedule"),
    ):
        load(path)
    tensors = {k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in load(model)[1].state_dict().items()}
    save_file(tensors, tmp_path / "nan.safetensors", metadata=sealed(about(model), tensors))
    with pytest.raises(ClassifierError, match="not finite"):
        load(tmp_path / "nan.safetensors")


def test_a_file_that_memory_has_no_room_to_map_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr("l3rs.own_images.classifier.safe_open", full)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ClassifierError, match=r"cannot be read as safetensors \(Cannot allocate memory"):
        describe(tmp_path)
