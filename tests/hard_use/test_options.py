"""Every option of every command with values that it cannot take: exit code 2, one line that names the option, and nothing is written.

The parsers are walked: an option that is new makes a test fail until it has its cases here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import write_tree

import l3rs.data.cache
import l3rs.finetuning.compare
import l3rs.meta.train
import l3rs.own_images.run
from l3rs import cli
from l3rs.data.splits import PURPOSES, ClassSplit

PARSERS: dict[str, Callable[[], cli.Parser]] = {name: make for name, (make, _) in cli.COMMANDS.items()} | {
    "finetune --data": cli._own_images_parser
}
OWN = ["--split", "split.json", "--data", "images", "--from-scratch", "--model", "resnet18", "--side", "16"]
# What a command needs besides the words that are wrong, which come after.
NEEDED = {
    "finetune": ["finetune", "--tasks", "1", "--steps", "1", "--out", "out"],
    "finetune --data": ["finetune", "--data", "images", "--model", "resnet18", "--side", "16", "--workers", "0", "--out", "out"],
    "predict": ["predict"],
    "split": ["split", "images", "--classes-per-task", "1", "--batch-size", "1", "--evaluation-size", "1", "--out", "out.json"],
    "cache": ["cache", *OWN, "--cache", "cache"],
    "meta-train": ["meta-train", "--out", "out", "--workers", "1"],
    "info": ["info"],
    "list": ["list"],
}
NOT_THERE, IN_A_FILE = "nowhere", "file/x"
# Of each option, the values that are of its type, or of none that can be told, and cannot be; and what is said.
CASES: dict[str, dict[str, list[tuple[str, str]]]] = {
    "finetune": {
        "--tasks": [("0", "--tasks is 0; it is a whole number of at least 1")],
        "--steps": [("0", "--steps is 0; it is one or more whole numbers of at least 1"), ("", "--steps: expected at least one")],
        "--optimizers": [("sgd", "--optimizers is 'sgd'; it is some of l3rs, adam"), ("", "--optimizers: expected at least one")],
        "--learned": [(NOT_THERE, "a learned schedule is one of"), ("file", "cannot be read as safetensors"), ("images", "is a folder")],
        "--seed": [("-1", "--seed is -1; it is a whole number of at least 0")],
        "--out": [(IN_A_FILE, "--out must be a folder that can be written (got file/x: Not a directory)")],
        "--workers": [("-1", "--workers is -1; it is at least 0")],
    },
    "finetune --data": {
        "--data": [(NOT_THERE, "nowhere is not a folder"), ("file", "file is not a folder")],
        "--model": [("resnet43", "model is 'resnet43', which timm"), ("", "model is ''")],
        "--steps": [("0", "--steps is 0; it is a whole number of at least 1")],
        "--weights": [(NOT_THERE, "the weights nowhere are not a file"), ("file", "file holds no weights that can be read")],
        "--from-scratch": [("=maybe", "--from-scratch")],
        "--width": [("0 --from-scratch", "width is 0; it is at least 1"), ("8", "width is 8, and pretrained weights are of timm's own")],
        "--side": [("0", "side is 0"), ("99999", "side is 99999 and resize")],
        "--channels": [("2", "channels is 2; it is 1 (grey) or 3 (RGB)")],
        "--batch-size": [("0", "--batch-size is 0; it is a whole number of at least 1")],
        "--no-augment": [("=maybe", "--no-augment")],
        "--learned": [(f"{NOT_THERE} --from-scratch", "a learned schedule is one of"), ("file --from-scratch", "as safetensors")],
        "--compare": [("adamx", "--compare is 'adamx'; it is some of adam"), ("adam=-1", "a learning rate is a number above 0")],
        "--precision": [("8", "--precision is '8'; it is one of 32-true")],
        "--seed": [("-1", "--seed is -1; it is a whole number of at least 0"), ("9" * 30, "it is below 2^63")],
        "--out": [
            (f"{IN_A_FILE} --from-scratch", "--out must be a folder that can be written (got file/x: Not a directory)"),
            ("images/x", "--out is images/x, inside the images' folder"),
            ("images", "inside the images' folder"),
        ],
        "--workers": [("-1", "--workers is -1; it is a whole number of at least 0")],
    },
    "predict": {
        "run": [(f"{NOT_THERE} images", "nowhere is not there; give the folder of a run"), ("file images", "file cannot be read as")],
        "images": [("file nowhere", "nowhere is not there"), ("file empty", "the folder empty has no images"), ("file", "images")],
        "--top": [("0 file images", "--top is 0; it is at least 1")],
        "--csv": [("no/x.csv file images", "--csv must be a file that can be written (got no/x.csv: No such file or directory)")],
    },
    "split": {
        "folder": [("more", "unrecognized arguments: more")],
        "--pretrain": [("-1", "pretrain is -1.0; it is a share between 0 and 1, a number of classes, or a list of them")],
        "--meta-train": [
            ("nan", "meta-train is nan; it is a share"),
            ("@nowhere", "--meta-train is @nowhere, and that file cannot be read"),
        ],
        "--meta-validation": [("1.5", "meta-validation is 1.5; it is a share")],
        "--meta-test": [("unicorn", "meta-test asks for class 'unicorn', which is not there"), ("", "--meta-test: expected at least one")],
        "--seed": [("-1", "--seed is -1; it is at least 0")],
        "--classes-per-task": [("0", "classes is 0; it is at least 1"), ("9", "a task has 9")],
        "--batch-size": [("0", "batch_size is 0; it is at least 1"), ("99", "which batches of 99")],
        "--evaluation-size": [("0", "evaluation_size is 0; it is at least 1"), ("99", "which batches of 99")],
        "--name": [("a/b", "the split is called 'a/b'; files are called after it, so it has no slash")],
        "--out": [(IN_A_FILE, "file/x cannot be written"), ("images", "images cannot be written")],
    },
    "cache": {
        "--purposes": [("x", "--purposes is 'x'; it is some of pretrain, meta-train"), ("", "--purposes: expected at least one")],
        "--plan": [("=maybe", "--plan")],
        "--verify": [("=maybe", "--verify")],
        "--split": [(NOT_THERE, "the split nowhere is neither a file nor one of"), ("file", "file is no class split"), ("images", "Is a")],
        "--data": [(NOT_THERE, "nowhere is not a folder"), ("empty", "empty has no class folders")],
        "--side": [("0", "side is 0 pixels; it is at least 1")],
        "--channels": [("2", "channels is 2; it is 1 (grey) or 3 (RGB)")],
        "--augment": [],
        "--skip_broken": [("=maybe", "--skip-broken is maybe; it is true or false")],
        "--cache": [(IN_A_FILE, "cannot be written (Not a directory)")],
        "--model": [("resnet43", "model is 'resnet43', which timm")],
        "--width": [
            ("0", "width is 0; it is at least 1"),
            ("8 --from-scratch=false", "width is 8, and pretrained weights are of timm's own"),
        ],
        "--weights": [("icons --from-scratch=false", "the shipped weights icons are of resnet34"), ("w.pt", "choose one")],
        "--from_scratch": [("=maybe", "--from-scratch is maybe; it is true or false")],
    },
    "meta-train": {
        "--config": [(NOT_THERE, "nowhere"), ("file", "Unexpected config: x")],
        "--out": [(IN_A_FILE, "--out must be a folder that can be written (got file/x: Not a directory)")],
        "--split": [(NOT_THERE, "the split nowhere needs data"), ("file --data images --from-scratch", "file is no class split")],
        "--data": [
            ("images", "data is images, and the split icons is embedded"),
            (f"{NOT_THERE} --split split.json --from-scratch", "nowhere is not a folder"),
        ],
        "--side": [("31", "side is 31, and the images of icons have 32 pixels"), ("-1 --split split.json --data images", "side is -1")],
        "--channels": [("2", "channels is 2; it is 1 (grey) or 3 (RGB)")],
        "--augment": [],
        "--skip_broken": [("=maybe", "--skip-broken is maybe; it is true or false")],
        "--cache": [(f"{IN_A_FILE} {' '.join(OWN)} --task.classes 1 --task.batch_size 1 --task.evaluation_size 1", "the cache file/x/")],
        "--model": [("resnet43", "model is 'resnet43', which timm")],
        "--width": [("0 --from-scratch", "width is 0; it is at least 1")],
        "--weights": [(NOT_THERE, "the weights nowhere are not a file"), ("glyphs --model resnet18", "the shipped weights glyphs are of")],
        "--from_scratch": [("=maybe", "--from-scratch is maybe; it is true or false")],
        "--name": [("a/b", "name is 'a/b'; a file is called after it, so it has no slash")],
        "--generations": [("0", "generations is 0; it is at least 1")],
        "--optimizer": [("adam", "optimizer is 'adam'; it is one of l3rs, velo")],
        "--start": [
            ("[nowhere]", "start and lr are of another optimizer than l3rs"),
            ("[nowhere] --optimizer velo", "nowhere is not a file; the meta-parameters are published as"),
            ("[file] --optimizer velo", "file: there is int, not names and arrays"),
        ],
        "--lr": [("0 --optimizer velo", "lr is 0.0; it is positive and finite"), (".inf --optimizer velo", "lr is inf")],
        "--specialist": [("false", "specialist is False, with schedule.embedding 16")],
        "--steps": [("[0,3]", "steps is [0, 3]; it is a range of at least 1"), ("[3,1]", "the smaller end first"), ("[3]", '"steps"')],
        "--steps_distribution": [("normal", "steps_distribution is 'normal'; it is one of uniform, log-uniform")],
        "--meta_batch": [("0", "meta_batch is 0; it is at least 1")],
        "--objective": [("best", "objective is 'best'; it is one of final, mean, error")],
        "--penalty": [("0", "penalty is 0.0; it is positive and finite"), (".nan", "penalty is nan")],
        "--precision": [("8", "precision is '8'; it is one of float32, bfloat16")],
        "--validate_every": [("0", "validate_every is 0; it is at least 1")],
        "--validation_steps": [
            ("[]", "validation_steps is []; it is one or more numbers of at least 1"),
            ("[0]", "validation_steps is [0]"),
        ],
        "--validation_tasks": [("0", "validation_tasks is 0; it is at least 1")],
        "--finalists": [("0", "finalists is 0; it is at least 1")],
        "--final_tasks": [("0", "final_tasks is 0; it is at least 1")],
        "--workers": [("-1", "workers is -1; it is at least 0")],
        "--ray_address": [],  # what is no cluster is found when it is joined: test_a_cluster_that_is_not_there
        "--gpus_per_actor": [("-1", "gpus_per_actor is -1.0; it is at least 0"), (".nan", "gpus_per_actor is nan")],
        "--schedule": [(NOT_THERE, "schedule"), ("file", "schedule")],
        "--schedule.directions": [("[]", "directions is empty"), ("[adamm]", "no direction is called 'adamm'"), ("[sgd,sgd]", "once")],
        "--schedule.ema_factors": [("[1.0]", "an EMA factor is 1.0; it is at least 0 and below 1"), ("[.nan]", "an EMA factor is nan")],
        "--schedule.time_points": [("1", "time_points is 1; 0 and 1 need two"), ("9999", "at most 4096")],
        "--schedule.time_slope": [("0", "time_slope is 0.0; it is positive and finite"), (".nan", "time_slope is nan")],
        "--schedule.time_scales": [
            ("[0]", "time_scales is [0.0]; it is one or more numbers of steps, positive"),
            ("[]", "time_scales is []"),
        ],
        "--schedule.controller": [("x", "controller is 'x'; it is one of shared, layerwise, global")],
        "--schedule.embedding": [("-1", "embedding -1; two widths of at least 1, and a length of at least 0"), ("9999", "at most 4096")],
        "--schedule.hidden": [("[0,8]", "hidden is [0, 8]"), ("[9999,8]", "at most 4096"), ("[8]", "schedule.hidden")],
        "--schedule.unit": [("x", "unit is 'x'; it is one of rms, l2, relative")],
        "--schedule.lr0": [("0", "lr0 is 0.0; it is positive and finite"), (".nan", "lr0 is nan")],
        "--schedule.relative_floor": [("-1", "relative_floor is -1.0; it is at least 0"), (".inf", "relative_floor is inf")],
        "--schedule.norm_scale": [("0", "norm_scale is 0.0; it is positive and finite")],
        "--schedule.norm_floor": [("-1", "norm_floor is -1.0; it is positive and finite")],
        "--schedule.loss_scale": [("0", "loss_scale is 0.0; it is positive and finite")],
        "--schedule.initial_mix": [(".nan", "initial_mix is nan; it is finite")],
        "--schedule.initial_decay": [(".inf", "initial_decay is inf; it is finite")],
        "--schedule.initial_horizon": [("=-.inf", "initial_horizon is -inf; it is finite")],
        "--schedule.initial_head": [("0", "initial_head is 0.0; it is positive and finite")],
        "--nes": [(NOT_THERE, "nes"), ("file", "nes")],
        "--nes.population": [("3", "population is 3; candidates come in pairs"), ("0", "population is 0")],
        "--nes.sigma": [("0", "sigma is 0.0; it is positive"), (".inf", "sigma is inf; it is finite")],
        "--nes.hidden_noise": [("0", "hidden_noise is 0.0; it is positive")],
        "--nes.sigma_half_life": [("-1", "sigma_half_life is -1.0; it is positive"), (".nan", "sigma_half_life is nan")],
        "--nes.lr": [("0", "lr is 0.0; it is positive"), (".inf", "lr is inf; it is finite")],
        "--nes.lr_half_life": [("0", "lr_half_life is 0.0; it is positive")],
        "--nes.optimizer": [("x", "optimizer is 'x'; it is one of adam, sgd")],
        "--nes.seed": [("-1", "seed is -1; it is at least 0, and below 2^32"), ("4294967296", "seed is 4294967296")],
        "--task": [(NOT_THERE, "task"), ("file", "task")],
        "--task.classes": [("0", "classes is 0; it is at least 1"), ("101", "meta-train of icons has 100 classes, and a task has 101")],
        "--task.batch_size": [("0", "batch_size is 0; it is at least 1"), ("99999", "which batches of 99999")],
        "--task.evaluation_size": [("0", "evaluation_size is 0; it is at least 1"), ("99999", "which batches of 99999")],
    },
    "info": {
        "schedule": [(NOT_THERE, "nowhere is not a file"), ("file", "cannot be read as safetensors"), ("empty", "is a folder without")]
    },
    "list": {},
}
ALLOWED = {"tuple": "a list, as in [10,100]", "bool": "true or false", "float": "a number", "int": "a whole number"}


def options(command: str) -> Iterator[tuple[str, str]]:
    """Each option of a command, or what it is called where it is none, and its type."""
    for action in PARSERS[command]()._actions:
        name = action.option_strings[0] if action.option_strings else action.dest
        if name not in ("-h", "--print_config"):
            typehint = getattr(action, "_typehint", None) or action.type or str
            yield name, next((kind for kind in ALLOWED if kind in str(typehint)), "str")


TYPED = [(command, name, kind) for command in PARSERS for name, kind in options(command) if kind != "str"]
GIVEN = [(command, name, value, said) for command, of in CASES.items() for name, cases in of.items() for value, said in cases]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two classes of images, a split of them, a file, and nothing else; where no work may begin."""
    root = tmp_path_factory.mktemp("place")
    write_tree(root / "images", {"ant": 4, "bee": 4, "cat": 4})
    (root / "file").write_text("x")
    (root / "empty").mkdir()
    classes = dict.fromkeys(PURPOSES, ()) | {"meta-train": ("ant",), "meta-validation": ("bee",)}
    ClassSplit("folder", 0, classes).write(root / "split.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for module, work in (
            (l3rs.meta.train, "run"),
            (l3rs.finetuning.compare, "finetune"),
            (l3rs.own_images.run, "_trained"),
            (l3rs.data.cache, "_decode_all"),
        ):
            patch.setattr(module, work, None)
        for name, (make, run) in cli.COMMANDS.items():
            patch.setitem(cli.COMMANDS, name, (cache(make), run))  # a parser takes a while to make
        yield root


def there(root: Path) -> list[tuple[str, int]]:
    return sorted((str(Path(at) / name), (Path(at) / name).stat().st_mtime_ns) for at, _, names in os.walk(root) for name in names)


def refused(command: str, words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line on stderr of a command that must fail, and write nothing."""
    before = there(place)
    with pytest.raises(SystemExit) as stop:
        cli.main([*NEEDED[command], *words])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("l3rs: error: ")
    assert "Traceback" not in out + err
    assert there(place) == before
    return lines[0]


def test_every_option_has_its_cases() -> None:
    for command in PARSERS:
        walked = dict(options(command))
        assert CASES[command].keys() == walked.keys()
        without = {name for name, cases in CASES[command].items() if not cases}
        assert all(walked[name] == "bool" or name == "--ray_address" for name in without)
    assert len(TYPED) + len(GIVEN) > 200
    flags = {a.option_strings[0] for make in PARSERS.values() for a in make()._actions if isinstance(a, argparse._StoreTrueAction)}
    assert flags == {"--plan", "--verify", "--from-scratch", "--no-augment"}


@pytest.mark.parametrize("command", PARSERS)
def test_a_value_of_a_wrong_type_says_which_is_right(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, name, kind in (row for row in TYPED if row[0] == command):
        said = refused(command, [f"{name}=ten"], place, capsys)
        assert said == f"l3rs: error: {name.replace('_', '-')} is ten; it is {ALLOWED[kind]}"
    refused(command, ["--no-such-option", "1"], place, capsys)


@pytest.mark.parametrize("command", [c for c, of in CASES.items() if of])
def test_a_value_that_cannot_be_says_what_can(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, name, value, said in (row for row in GIVEN if row[0] == command):
        first, *more = value.split() or [""]
        words = [name, *([first] if first or name == "--model" else [])] if name.startswith("-") and not first.startswith("=") else [first]
        words = [f"{name}{first}"] if first.startswith("=") else words
        line = refused(command, [*words, *more], place, capsys)
        assert said in line, f"{command} {name} {value}: {line}"


def test_a_cluster_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["meta-train", "--out", "cluster", "--ray-address", "127.0.0.1:1"])
    assert stop.value.code == 2
    assert "ray_address is 127.0.0.1:1, where nothing answers" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["finetun"], ["--steps", "3"], [""], ["list", "more"], ["info", "one", "two"]])
def test_what_is_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
