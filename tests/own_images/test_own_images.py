"""Fine-tuning on one's own images: what is written, that a run goes on after any end, and what is said of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fails, random_schedule, small_network, write_tree
from filelock import FileLock
from matplotlib.image import imread
from PIL import Image
from safetensors.torch import load_file, save_file

from l3rs.cli import main
from l3rs.finetuning.arms import Arm
from l3rs.lightning import L3RSModule
from l3rs.lightning.callbacks import L3RSMonitor
from l3rs.networks.create import create
from l3rs.own_images.classifier import describe
from l3rs.own_images.pictures import confusion, most_confused, plot_confusion
from l3rs.own_images.rivals import COMPARED, rivals
from l3rs.own_images.training import Training
from l3rs.schedules.find import GENERALIST, save

ROOT = Path(__file__).parent.parent.parent
NETWORK = ["--model", "resnet18", "--width", "2", "--side", "16", "--from-scratch", "--batch-size", "4", "--workers", "0"]
TINY = [*NETWORK, "--steps", "7", "--validate-every", "1"]
SEEN: list[torch.Tensor] = []  # what `run` was trained on


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, told apart by their colour."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red fox", "grass", "狐")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 80, (12, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def finetune(photos: Path, out: Path, *options: str) -> None:
    main(["finetune", "--data", str(photos), *TINY, "--out", str(out), *options])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a comparison."""
    out = tmp_path_factory.mktemp("run") / "out"
    step = L3RSModule.training_step

    def watched(self: L3RSModule, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        SEEN.append(batch[0])
        return step(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(L3RSModule, "training_step", watched)
        finetune(photos, out, "--compare", "adam-cosine", "adamw=1e-2")
    return out


# What is written


def test_what_a_run_leaves(run: Path) -> None:
    pictures = {"confusion.png", "curves.png", "l3rs.png"}
    tables = {"summary.csv", "confusion.csv", "curve.csv", "config.json", "result.json", "model.safetensors"}
    tables |= {"per_class.csv", "predictions.csv", "best.ckpt"}
    assert {p.name for p in run.iterdir()} - {"lock"} == pictures | tables | {"adam-cosine", "adamw=0.01"}
    assert all(imread(run / name).shape[1] > 500 for name in pictures)
    classifier = describe(run)
    assert classifier.classes == ("grass", "red fox", "狐")
    assert (classifier.model, classifier.width, classifier.transform.side) == ("resnet18", 2, 16)
    assert classifier.training["optimizer"] == "l3rs"
    assert classifier.training["learned"].startswith(f"{GENERALIST} ")


def test_the_summary_is_of_the_best_weights(run: Path) -> None:
    summary = pd.read_csv(run / "summary.csv")
    assert summary.optimizer.to_list() == ["l3rs", "adam-cosine", "adamw=0.01"]
    for name, folder in zip(summary.optimizer, [run, *(run / n for n in summary.optimizer[1:])], strict=True):
        row = summary[summary.optimizer == name].iloc[0]
        curve = pd.read_csv(folder / "curve.csv")
        assert curve.step.to_list() == [1, 2, 3, 4, 5, 6, 7]
        best = curve.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
        assert (row.best_step, row.accuracy) == (best.step, pytest.approx(best.val_accuracy))
        assert row.loss == pytest.approx(best.val_loss, abs=1e-5)
        table = pd.read_csv(folder / "confusion.csv", index_col=0).to_numpy()
        assert (table.sum(), np.trace(table) / table.sum()) == (6, pytest.approx(row.accuracy))


def test_where_learning_rates_come_from(run: Path) -> None:
    summary = pd.read_csv(run / "summary.csv").set_index("optimizer")
    assert summary.loc["adam-cosine", "from"] == "tuned on Icons25, at 10 steps"
    assert (summary.loc["adamw=0.01", "lr"], summary.loc["adamw=0.01", "from"]) == (0.01, "given")
    assert [arm.source for arm in rivals(["adamw", "adam=1e-3,1e-2"])[1].arms] == ["best of 2", "best of 2"]
    assert rivals(["adamw"])[0].arms[0].source == "published"


def test_arms_see_the_same_batches(run: Path) -> None:
    assert len(SEEN) == 21
    for arm in (SEEN[7:14], SEEN[14:]):
        assert all(torch.equal(a, b) for a, b in zip(SEEN[:7], arm, strict=True))


# Going on


def test_a_finished_run_is_kept_and_baselines_are_added(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    before = (copied / "model.safetensors").read_bytes()
    finetune(photos, copied, "--compare", "adam-cosine", "adamw=1e-2")
    said = capsys.readouterr().out
    assert "Training" not in said
    assert "l3rs is trained already" in said
    finetune(photos, copied, "--compare", "adamw=1e-2", "adam=1e-3")
    said = capsys.readouterr().out
    assert said.count("Training with") == said.count("Training with adam=0.001.") == 1
    assert pd.read_csv(copied / "summary.csv").optimizer.to_list() == ["l3rs", "adamw=0.01", "adam=0.001"]
    assert (copied / "adam=0.001" / "model.safetensors").exists()
    assert (copied / "model.safetensors").read_bytes() == before


def test_other_images_of_the_same_names_are_another_run(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images may have moved; one that was drawn anew is another."""
    copied, moved = shutil.copytree(run, tmp_path / "run"), shutil.copytree(photos, tmp_path / "photos")
    finetune(moved, copied)
    assert "l3rs is trained already" in capsys.readouterr().out
    first = next(moved.rglob("*.png"))
    Image.new("RGB", (20, 20)).save(first)
    said = fails(["finetune", "--data", str(moved), *TINY, "--out", str(copied)], capsys)
    assert "whose run has another images" in said


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 5])
def test_a_run_that_broke_off_goes_on_to_the_same_weights(
    at: int, photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = L3RSModule.training_step

    def until_the_lights_go_out(self: L3RSModule, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        if self.global_step == at:
            raise RuntimeError("the lights went out")
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(L3RSModule, "training_step", until_the_lights_go_out)
        with pytest.raises(RuntimeError, match="lights"):
            finetune(photos, tmp_path / "o")
    finetune(photos, tmp_path / "o")
    assert same(tmp_path / "o", run)
    assert (tmp_path / "o" / "curve.csv").read_text() == (run / "curve.csv").read_text()


def test_a_run_that_was_stopped_after_its_last_checkpoint_has_all_its_pictures(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(L3RSMonitor, "draw", stop)  # which comes after the last checkpoint
        with pytest.raises(SystemExit) as ended:
            finetune(photos, out)
    assert ended.value.code == 130
    assert f"{out} holds the run; the same command resumes it" in capsys.readouterr().out
    (out / "l3rs.png").write_bytes(b"half of a picture")
    finetune(photos, out)
    assert imread(out / "l3rs.png").shape[1] > 500


def test_sigterm_stops_between_two_steps_and_the_run_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*NETWORK, "--steps", "21", "--validate-every", "3"]
    command = ["finetune", "--data", str(photos), *long, "--out"]
    step = L3RSModule.training_step

    def killed(self: L3RSModule, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        if self.global_step == 10:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(L3RSModule, "training_step", killed)
        with pytest.raises(SystemExit) as stop:
            main([*command, str(tmp_path / "o")])
    assert stop.value.code == 143
    assert "Stopped at step 11." in capsys.readouterr().out
    taken: list[int] = []

    def counted(self: L3RSModule, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        taken.append(self.global_step)
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(L3RSModule, "training_step", counted)
        main([*command, str(tmp_path / "o")])
    assert taken == list(range(11, 21))
    main([*command, str(tmp_path / "whole")])
    assert same(tmp_path / "o", tmp_path / "whole")
    assert (tmp_path / "o" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()
    assert pd.read_csv(tmp_path / "o" / "curve.csv").step.to_list() == [3, 6, 9, 12, 15, 18, 21]


def test_a_run_that_is_out_of_patience_and_stopped_before_its_result_is_not_trained_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["finetune", "--data", str(photos), *NETWORK, "--steps", "21", "--validate-every", "1", "--patience", "1", "--out"]
    main([*command, str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_judge", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit):
            main([*command, str(tmp_path / "o")])
    main([*command, str(tmp_path / "o")])
    assert len(pd.read_csv(tmp_path / "o" / "curve.csv")) < 21
    assert (tmp_path / "o" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()


@pytest.mark.slow
def test_a_killed_process_goes_on(photos: Path, run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "l3rs.cli", "finetune", "--data", str(photos), *TINY, "--out", str(tmp_path / "o")]
    quietly: dict[str, Any] = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}  # as `run`: bits depend on it
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **quietly)
    while not (tmp_path / "o" / "last.ckpt").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    subprocess.run(command, check=True, **quietly)
    assert same(tmp_path / "o", run)


def test_another_config_is_refused_by_name(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    argv = ["finetune", "--data", str(photos), *TINY, "--out", str(run)]
    assert "whose run has another batch_size, seed, images, network" in fails([*argv, "--batch-size", "3", "--seed", "1"], capsys)
    assert "whose run has another schedule" in fails([*argv, "--learned", "icons-resnet34"], capsys).replace("learned, ", "")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_the_second_process_in_a_folder_refuses(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(run / "lock"):
        assert "where no other process is at work" in fails(["finetune", "--data", str(photos), *TINY, "--out", str(run)], capsys)


def test_a_folder_with_other_things_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    said = fails(["finetune", "--data", str(photos), *TINY, "--out", str(tmp_path)], capsys)
    assert "which holds other things, such as thesis.txt" in said
    assert "must be outside of the images' folder" in fails(
        ["finetune", "--data", str(photos), *TINY, "--out", str(photos / "out")], capsys
    )


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "0"], "--steps must be a whole number of at least 1 (got 0)"),
        (["--batch-size", "0"], "--batch-size must be a whole number of at least 1 (got 0)"),
        (["--seed", "-1"], "--seed must be a whole number of at least 0 (got -1)"),
        (["--workers", "-1"], "--workers must be a whole number of at least 0 (got -1)"),
        (["--precision", "8"], "--precision must be one of 32-true, bf16-mixed, 16-mixed (got '8')"),
        (["--compare", "adamx"], "as in adam=3e-4 (got 'adamx')"),
        (["--compare", "adam=fast"], "a learning rate of --compare must be a number above 0, as in adam=3e-4 (got 'adam=fast')"),
        (["--compare", "adam=-1"], "a number above 0, as in adam=3e-4 (got 'adam=-1')"),
        (["--model", "resnet43"], "similar ones are resnet34"),
        (["--model", "vit_tiny_patch16_224"], "only resnet18 and resnet34 come in any width"),
        (["--weights", "icons"], "choose one"),
        (["--side", "0"], "side"),
        (["--learned", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_values_are_named(options: list[str], said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(["finetune", "--data", str(photos), *TINY, "--out", str(tmp_path / "o"), *options], capsys)
    assert not (tmp_path / "o").exists()


def test_bad_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "o")]
    assert "nowhere is not a folder" in fails(["finetune", "--data", str(tmp_path / "nowhere"), *TINY, *out], capsys)
    write_tree(tmp_path / "one", {"ant": 4})
    assert "has one class, 'ant'" in fails(["finetune", "--data", str(tmp_path / "one"), *TINY, *out], capsys)


def test_an_out_that_cannot_be_written(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    said = fails(["finetune", "--data", str(photos), *TINY, "--out", str(tmp_path / "file" / "out")], capsys)
    assert "must be a folder that can be written" in said
    assert (tmp_path / "file").read_text() == "x"


def test_a_schedule_that_does_not_fit_names_one_that_does(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(random_schedule(small_network()), tmp_path / "other.safetensors")
    argv = ["finetune", "--data", str(photos), *TINY, "--out", str(tmp_path / "o"), "--learned", str(tmp_path / "other.safetensors")]
    said = fails(argv, capsys)
    assert "--learned must fit resnet18 (got " in said
    assert said.endswith(f"{GENERALIST} fits any, and auto takes one that fits")


def test_weights_that_do_not_fit_name_a_tensor(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = create("resnet18", 3, 3, 5).state_dict()
    save_file(tensors, tmp_path / "w.safetensors")
    argv = ["finetune", "--data", str(photos), *(t for t in TINY if t != "--from-scratch"), "--out", str(tmp_path / "o"), "--weights"]
    assert "for conv1.weight they have (3, 3, 7, 7), and the network (2, 3, 7, 7)" in fails(
        [*argv, str(tmp_path / "w.safetensors")], capsys
    )
    assert "not a file" in fails([*argv, str(tmp_path / "none.safetensors")], capsys)


def test_a_size_that_the_model_cannot_take(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["finetune", "--data", str(photos), "--model", "test_vit", "--from-scratch", "--side", "50", "--out", str(tmp_path / "o")]
    assert "test_vit cannot take images of 50 px" in fails(argv, capsys)


def test_a_model_with_other_layers_and_broken_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A vision transformer, which the generalist steps; dropout and all that."""
    tree = write_tree(tmp_path / "t", {"ant": 4, "bee": 4}, 20, 20)
    (tree / "ant" / "empty.png").touch()
    options = ["--model", "test_vit", "--from-scratch", "--steps", "2", "--out", str(tmp_path / "o"), "--precision", "bf16-mixed"]
    main(["finetune", "--data", str(tree), *options])
    said = capsys.readouterr().out
    assert "2 classes of 4 (ant) to 4 (ant) images; 6 train, 2 validate." in said
    assert "1 broken file is left out:" in said
    assert "empty.png: it is empty" in said
    assert f"the schedule {GENERALIST}" in said
    assert said.index(f"{GENERALIST} was meta-trained to fine-tune pretrained networks: from random weights it is the wrong tool") > 0
    assert said.index("it is the wrong tool") < said.index("Training with l3rs.")
    assert re.search(r"^l3rs +learned +[01]\.\d{3} ", said, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMPARED if not Arm(name, name).lacking])
def test_what_can_be_compared_goes_on_to_the_same_weights(name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those with a scheduler, or that are evaluated where they do not train."""
    step = L3RSModule.training_step

    def until_the_lights_go_out(self: L3RSModule, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        if self.global_step == 5 and self.make_optimizer is not None:
            raise RuntimeError("the lights went out")
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(L3RSModule, "training_step", until_the_lights_go_out)
        with pytest.raises(RuntimeError, match="lights"):
            finetune(photos, tmp_path / "o", "--compare", name, "--validate-every", "4")
    finetune(photos, tmp_path / "o", "--compare", name, "--validate-every", "4")
    finetune(photos, tmp_path / "whole", "--compare", name, "--validate-every", "4")
    assert same(tmp_path / "o" / name, tmp_path / "whole" / name)


# Pictures


def test_confusion_counts() -> None:
    table = confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), ["a", "b", "c"])
    assert table.to_numpy().tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert most_confused(table, 2) == [0, 1]


@pytest.mark.parametrize("classes", [2, 40, pytest.param(100, marks=pytest.mark.slow)])
def test_any_number_of_classes_is_drawn(classes: int, tmp_path: Path) -> None:
    labels = np.arange(classes).repeat(3)
    table = confusion(labels, np.where(np.arange(len(labels)) % 7 == 0, 0, labels), [f"$class 狐 {i}" for i in range(classes)])
    plot_confusion(table, tmp_path / "x.png", "title")
    height, width, _ = imread(tmp_path / "x.png").shape
    assert 500 < width < 3200
    assert 400 < height < 3200


def test_the_config_says_which_run_is_there(run: Path) -> None:
    about = json.loads((run / "config.json").read_text())
    assert (about["model"], about["steps"], about["schedule"].split()[0]) == ("resnet18", 7, GENERALIST)
    assert "compare" not in about


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    """In order, in an empty folder, offline."""
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", (ROOT / "docs" / "own-images.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["sh", "sh", "python", "python"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    said = []
    for language, block in blocks:
        command = ["bash", "-euo", "pipefail", "-c", block] if language == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"
        said.append(done.stdout)
    accuracy = float(re.search(r"^l3rs +learned +([\d.]+)", said[0], flags=re.MULTILINE)[1])  # type: ignore[index]
    assert accuracy > 0.85  # chance is a twelfth
    assert (tmp_path / "run" / "adamw=0.001" / "model.safetensors").exists()
    table = pd.read_csv(tmp_path / "classes.csv")
    first = table.drop_duplicates("file")
    assert (first["class"] == first.file.str.split("/").str[2]).mean() > 0.8
