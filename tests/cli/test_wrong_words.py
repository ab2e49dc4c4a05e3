"""Words that cannot be: one line that says what was meant, what goes with what, or which file is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import fails

import l3rs.cli.finetune
from l3rs.cli import main
from l3rs.cli.config_file import DEEPEST, deepest
from l3rs.data.splits import PURPOSES
from l3rs.finetuning.baselines import tuned_learning_rates
from l3rs.finetuning.compare import FinetuneConfig

LONG = "n" * 300


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetun"], "no command is called 'finetun'; did you mean finetune? (there are finetune, predict, "),
        (["metatrain"], "did you mean meta-train?"),
        (["zzz"], "no command is called 'zzz' (there are"),
        (["finetune", "--taks", "3"], "no option is called --taks; did you mean --tasks?"),
        (["meta-train", "--out", "o", "--nes.sgima", "3"], "no option is called --nes.sgima; did you mean --nes.sigma?"),
        (["finetune", "--task", "3"], "no option is called --task; did you mean --tasks?"),
        (["finetune", "--tasks"], "--tasks must be followed by one value"),
        (["finetune", "--steps"], "--steps must be followed by at least one value"),
        (["finetune", "--out", ""], "--out must be the path of a folder (got '')"),
        (["finetune", "--data="], "--data must be the path of a folder (got '')"),
        (["predict"], "the following arguments are required: run, images"),
    ],
)
def test_what_was_meant_is_guessed(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(words, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "icons"], "--weights goes with --data: give --data FOLDER"),
        (["--from-scratch"], "--from-scratch goes with --data"),
        (["--no-refresh"], "--no-refresh goes with --data"),
        (["--batch-size", "64"], "--batch-size goes with --data"),  # also where it is the default
        (["--data", "photos", "--tasks", "2"], "--tasks goes with the comparison on Icons"),
        (["--data", "photos", "--optimizers", "adam"], "--optimizers goes with the comparison on Icons"),
        (["--data", "photos", "--steps", "10", "25"], "--steps must be one whole number with --data (got 10 25)"),
    ],
)
def test_finetune_says_what_goes_with_what(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(["finetune", *words], capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty; it must hold settings"),
        (b"# all is commented out\n", "is empty; it must hold settings"),
        (b"[1, 2]", "must hold settings, as in `generations: 100` (got '[1, 2]')"),
        (b"generatons: 3", "no setting is called generatons; did you mean generations?"),
        (b"nes: {sgima: 3}", "no setting is called nes.sgima; did you mean nes.sigma?"),
        (b"nes: {sigma: x}", "--nes.sigma must be a number (got x)"),
        (b"[" * 20_000, "nested more than 50 deep"),
        (b"{a: " * 20_000 + b"1" + b"}" * 20_000, "nested more than 50 deep"),
        (b"".join(b" " * i + b"a:\n" for i in range(200)), "nested more than 50 deep"),
        (b"name: a\0b", "unacceptable character"),
        (b'name: "a\\0b"', "'a\\x00b', which has a character that no name may have"),
        (b'name: "\\ud800"', "holds"),
        (b"name: caf\xe9", "it is not UTF-8"),
        (b"name: {", "holds no settings"),
        (b"name: " + b"n" * 300, "name must be printable and at most 200 bytes"),
    ],
)
def test_a_config_that_cannot_be_is_named(text: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text)
    line = fails(["meta-train", "--config", str(file), "--out", str(tmp_path / "o")], capsys)
    assert said in line
    assert "settings.yaml" in line or "n" * 300 in line
    assert not (tmp_path / "o").exists()


def test_depth_is_counted() -> None:
    assert deepest("a: {b: [c]}") == 3
    assert deepest("[" * DEEPEST + "]" * DEEPEST) == DEEPEST


NAMES = [
    ["finetune", "--out", "NAME", "--learned", "NAME"],
    ["finetune", "--data", "NAME"],
    ["finetune", "--data", "there", "--model", "NAME"],
    ["predict", "there", "NAME"],
    ["split", "NAME"],
    ["split", "there", "--pretrain", "@NAME"],
    ["cache", "--split", "NAME", "--data", "there"],
    ["cache", "--split", "split.json", "--data", "NAME"],
    ["meta-train", "--out", "o", "--config", "NAME"],
    ["meta-train", "--out", "o", "--split", "NAME", "--data", "there"],
    ["meta-train", "--out", "o", "--weights", "NAME"],
    ["meta-train", "--out", "o", "--optimizer", "velo", "--start", "NAME"],
    ["meta-train", "--out", "o", "--name", "NAME"],
    ["info", "NAME"],
]


@pytest.mark.parametrize("name", [LONG, "caf\udce9", "a\ud800b", "a\0b"], ids=["300 characters", "no UTF-8", "half a character", "NUL"])
def test_names_that_no_file_has(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "split.json").write_text(json.dumps({"dataset": "folder", "seed": 0} | {p: [p] for p in PURPOSES}))
    shown = "a\\x00b" if "\0" in name else name.encode("ascii", "backslashreplace").decode()
    for words in NAMES:
        line = fails([word.replace("NAME", name) for word in words], capsys)
        assert shown in line, f"{words}: {line}"
    assert sorted(os.listdir()) == ["split.json", "there"]


def test_a_baseline_whose_library_is_not_there_is_refused_before_any_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("l3rs.finetuning.baselines.recipe.find_spec", lambda name: None)
    said = fails(["finetune", "--optimizers", "l3rs", "schedule-free", "--out", str(tmp_path / "run")], capsys)
    assert "--optimizers has schedule-free, which needs schedulefree: pip install schedulefree" in said
    assert not (tmp_path / "run").exists()


def test_a_baseline_that_was_not_tuned_for_head_starts_is_refused_before_any_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(tuned_learning_rates(head="start"), "adam")
    said = fails(["finetune", "--optimizers", "l3rs", "adam", "--out", str(tmp_path / "run")], capsys)
    assert "--optimizers has adam, whose learning rate was not tuned for head starts: add --head random" in said
    assert not (tmp_path / "run").exists()
    FinetuneConfig(optimizers=("l3rs", "adam"), head="random")


def test_an_optimizer_that_is_named_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[FinetuneConfig] = []
    monkeypatch.setattr(l3rs.cli.finetune, "compare", compared.append)
    main(["finetune", "--optimizers", "adam", "l3rs", "adam"])
    assert compared[0].optimizers == ("adam", "l3rs")
