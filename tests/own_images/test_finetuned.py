"""A fine-tuned model elsewhere: in Python, in timm, as ONNX and torch.export, on the Hub; and how it is judged."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import fails, write_tree

import l3rs
from l3rs.cli import main
from l3rs.data.transform import Transform
from l3rs.networks.create import create
from l3rs.own_images.classifier import Classifier, save
from l3rs.own_images.evaluation import Evaluation

sys.path.insert(0, str(Path(__file__).parent.parent / "schedules"))
from fake_hub import TOKEN, FakeHub, alone

TRANSFORM = Transform(32, 36, 3, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("images"), {"ant": 4, "bee": 3}, 40, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of timm with weights at random."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(3)
    classifier = Classifier("test_resnet", None, ("ant", "bee", "=1+1"), TRANSFORM, {"optimizer": "l3rs", "val_accuracy": 0.9})
    save(classifier, classifier.network().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with alone(tmp_path, monkeypatch) as server:
        yield server


def test_in_python_it_says_what_predict_says(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = l3rs.load_classifier(run)
    files = sorted(map(str, images.rglob("*.png")))
    main(["predict", str(run), str(images)])
    said = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [[p.classes[0][0], f"{p.classes[0][1]:.3f}"] for p in model(files)] == said
    assert model(files[0]) == model(Path(files[0])) == model(files[:1])
    broken = model([images / "none.png"])[0]
    assert (broken.classes, broken.error) == ((), f"{images}/none.png: No such file or directory")


def test_timm_loads_the_weights_by_their_path(run: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(run / "model.safetensors")).eval()
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(inputs), l3rs.load_classifier(run).network(inputs))


def test_the_hub_gives_it_to_timm_with_its_classes_and_inputs(hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = l3rs.load_classifier(run)
    address = model.push_to_hub("me/insects", token=TOKEN)
    assert address.startswith(f"{hub.endpoint}/me/insects/commit/")
    files = hub.repositories["me/insects"].branches["main"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    card = files["README.md"].decode()
    assert 'timm.create_model("hf-hub:me/insects", pretrained=True)' in card
    assert "| val accuracy | 0.9 |" in card
    assert json.loads(files["config.json"])["label_names"] == ["ant", "bee", "=1+1"]
    network = timm.create_model("hf-hub:me/insects", pretrained=True).eval()
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(inputs), model.network(inputs))
    data = timm.data.resolve_model_data_config(network)
    assert (data["input_size"], tuple(data["mean"]), tuple(data["std"])) == ((3, 32, 32), TRANSFORM.mean, TRANSFORM.std)
    assert data["crop_pct"] == pytest.approx(32 / 36)


def test_a_network_that_timm_cannot_make_is_not_pushed(tmp_path: Path) -> None:
    classifier = Classifier("resnet18", 2, ("a", "b"), TRANSFORM)
    save(classifier, classifier.network().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"resnet18 at width 2 is no model of timm, which cannot load it: l3rs\.load_classifier reads"):
        l3rs.load_classifier(tmp_path / "m.safetensors").save_for_timm(tmp_path, "x")


@pytest.mark.slow
def test_a_program_of_torch_export_takes_any_number_of_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "m.pt2")])
    assert f"Wrote {tmp_path}/m.pt2; its logits are torch's, to " in capsys.readouterr().out
    program = torch.export.load(tmp_path / "m.pt2").module()
    model = l3rs.load_classifier(run)
    for number in (1, 5):
        inputs = torch.randn(number, 3, 32, 32)
        assert (program(inputs) - model.logits(inputs)).abs().max() < 1e-5


@pytest.mark.slow
def test_an_onnx_file_takes_any_number_of_images_and_knows_its_classes(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "m.onnx")])
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["l3rs"])
    assert (about["classes"], about["transform"]["side"]) == (["ant", "bee", "=1+1"], 32)
    model = l3rs.load_classifier(run)
    for number in (1, 5):
        inputs = torch.randn(number, 3, 32, 32)
        (found,) = session.run(["logits"], {"images": inputs.numpy()})
        assert np.abs(found - model.logits(inputs).numpy()).max() < 1e-4


def test_an_export_that_says_something_else_is_refused(run: Path) -> None:
    model = l3rs.load_classifier(run)
    inputs = torch.randn(2, 3, 32, 32)
    assert model._away(inputs, model.logits(inputs)) == 0
    with pytest.raises(ValueError, match="test_resnet gives other logits there: by "):
        model._away(inputs, model.logits(inputs) + 0.001)


def test_without_the_libraries_of_onnx_the_extra_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("l3rs.extras.find_spec", lambda name: None)
    assert fails(["export", str(run)], capsys) == "l3rs: error: l3rs export needs onnx: pip install 'l3rs[export]'"


# How it is judged


def of(logits: list[list[float]], labels: object, several: bool = False) -> Evaluation:
    classifier = Classifier("resnet18", 2, ("a", "b", "c"), TRANSFORM, multilabel=several)
    return Evaluation(classifier, tuple(f"{i}.png" for i in range(len(logits))), torch.tensor(labels), torch.tensor(logits))


def test_precision_recall_and_f1_by_hand() -> None:
    """a, a, b, and one b that is taken for a; nothing is c."""
    found = of([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 0, 0]], [0, 0, 1, 1])
    report = found.per_class().set_index("class")
    assert report.loc["a"].to_list() == pytest.approx([2, 2 / 3, 1, 0.8])
    assert report.loc["b"].to_list() == pytest.approx([2, 1, 0.5, 2 / 3])
    assert report.loc["c", ["precision", "recall", "f1"]].isna().all()
    assert (found.right, found.accuracy, found.second) == (3, 0.75, 0.75)
    assert found.interval == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson's for 3 of 4


def test_several_classes_an_image() -> None:
    found = of([[1.0, -1, 2], [-1, -1, 3]], [[1.0, 0, 1], [0, 1, 1]], several=True)
    assert (found.right, found.accuracy) == (1, 0.5)
    report = found.per_class()
    assert report.recall.to_list() == [1, 0, 1]
    assert found.second == pytest.approx((1 + 0.5 + 1) / 3)  # b's two logits are equal: one of two is right
    right, wrong = (math.log1p(math.exp(sign * x)) for sign, x in ((-1, 1.0), (1, 1.0)))
    assert found.loss == pytest.approx((3 * right + wrong + math.log1p(math.exp(-2)) + math.log1p(math.exp(-3))) / 6)
    assert found.predictions().predicted.to_list() == ["a;c", "c"]


def test_evaluate_prints_and_writes_what_python_says(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "ant" / "empty.png").touch()
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), str(images), "--out", str(tmp_path / "o")])
    (images / "ant" / "empty.png").unlink()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert f"{images}/ant/empty.png: it is empty" in said.err
    table = pd.read_csv(tmp_path / "o" / "predictions.csv")
    assert len(table) == 7
    assert f"accuracy {table.right.mean():.3f} (95% interval " in said.out
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"predictions.csv", "per_class.csv", "confusion.csv", "confusion.png"}
    assert "'=1+1" in (tmp_path / "o" / "per_class.csv").read_text()
    assert "has class 'wasp', which is none of the 3 classes" in fails(
        ["evaluate", str(run), str(write_tree(tmp_path / "other", {"wasp": 1}))], capsys
    )


def test_images_that_may_have_trained_the_run_are_told(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    files = sorted(str(file.relative_to(images)) for file in images.glob("*/*.png"))
    for validated, count in ((files[:2], len(files) - 2), (files, 0), ([*files[:2], "ant/gone.png"], 0)):
        pd.DataFrame({"file": validated}).to_csv(copied / "predictions.csv", index=False)
        main(["evaluate", str(copied), str(images)])
        said = capsys.readouterr().out
        told = f"{count} of these images lie beside those that validated the run, which was likely trained on them"
        assert (told in said) == ("lie beside those" in said) == (count > 0)


def test_an_evaluation_overwrites_no_run_and_lies_outside_of_the_images(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    before = {file.name: file.stat().st_mtime_ns for file in copied.iterdir()}
    for given in (copied, copied / "model.safetensors"):
        said = fails(["evaluate", str(given), str(images), "--out", str(copied)], capsys)
        assert f"--out must not be the folder of a run, which has results of its own (got {copied}); give another folder" in said
    assert {file.name: file.stat().st_mtime_ns for file in copied.iterdir()} == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "predictions.csv").write_text("mine")
    said = fails(["evaluate", str(run), str(images), "--out", str(tmp_path / "thesis")], capsys)
    assert (
        f"--out must be a new folder, or one of an earlier evaluation (got {tmp_path / 'thesis'}, whose predictions.csv would be lost)"
        in said
    )
    assert (tmp_path / "thesis" / "predictions.csv").read_text() == "mine"
    for _ in range(2):
        main(["evaluate", str(run), str(images), "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "per_class.csv").exists()
    for inside in (images, images / "results"):
        said = fails(["evaluate", str(run), str(images), "--out", str(inside)], capsys)
        assert f"--out must be outside of the images' folder {images} (got {inside}); give another folder" in said


def test_a_transformer_of_another_size_is_read_as_it_was_made(tmp_path: Path) -> None:
    classifier = Classifier("test_vit", None, ("a", "b"), Transform(64, 64, 3, "bilinear", (0.5,) * 3, (0.5,) * 3), img_size=64)
    save(classifier, create("test_vit", None, 3, 2, {"img_size": 64}).state_dict(), tmp_path / "m.safetensors")
    assert l3rs.load_classifier(tmp_path / "m.safetensors").logits(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
