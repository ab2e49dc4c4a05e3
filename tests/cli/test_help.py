"""Help as a newcomer reads it, made from the dataclasses; and options as they are spelled."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from l3rs.cli import COMMANDS, main, parser_of
from l3rs.cli.meta_train import PARTS, config_of
from l3rs.cli.options import Options
from l3rs.cli.parser import Parser
from l3rs.finetuning.compare import FinetuneConfig
from l3rs.finetuning.workload import Workload
from l3rs.meta.config import MetaTrainConfig
from l3rs.own_images.config import OwnImagesConfig


def text_of(command: str) -> str:
    """The help of a command, its lines joined."""
    return " ".join(parser_of(command).format_help().split())


def options_of(config: type, prefix: str = "") -> set[str]:
    """The options that show the fields of a dataclass."""
    off = {f.name for f in fields(config) if f.default is True}
    return {f"--{'no-' * (f.name in off)}{prefix}{f.name}".replace("_", "-") for f in fields(config)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: l3rs {command}")
    for words in ("(type:", "null", "None", "default: )", "[choice", "[paper", "`imagenet", "(default: True)", "(default: False)"):
        assert words not in out
    for paragraph in out.split("  --")[1:]:
        assert paragraph.count("(default") <= 1, paragraph
        assert len(paragraph.split()) > 2, paragraph  # each says something


def test_the_help_of_finetune_is_whole() -> None:
    said = parser_of("finetune").format_help()
    assert options_of(FinetuneConfig) | options_of(OwnImagesConfig) <= set(said.replace(",", " ").split())
    assert said.index("the comparison (without --data):") < said.index("--optimizers") < said.index("your own images (with --data):")
    assert said.index("your own images (with --data):") < said.index("  --weights FILE")


@pytest.mark.parametrize("more", [[], ["--data"], ["--data", "photos"], ["--weights", "icons"]])
def test_help_of_finetune_comes_whatever_else_is_given(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["finetune", *more, "--help"])
    assert stop.value.code == 0
    assert "your own images" in capsys.readouterr().out


def test_the_help_of_meta_train_begins_with_what_most_runs_need() -> None:
    basic, *advanced = parser_of("meta-train").format_help().split("\nadvanced options of ")
    for option in ("--config", "--out", "--split", "--data", "--model", "--generations", "--workers", "--steps", "--optimizer"):
        assert f"  {option} " in basic
    assert len(basic.splitlines()) < 50
    assert "--nes" not in basic
    parts = set().union(*(options_of(part, f"{name}.") for name, (part, _) in PARTS.items()))
    shown = (options_of(MetaTrainConfig) | options_of(Workload) | parts) - {"--workload", *(f"--{name}" for name in PARTS)}
    assert shown <= set(" ".join([basic, *advanced]).split())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("finetune", "--optimizers NAME [NAME ...] names of the optimizers to compare: l3rs, adam, adam-cosine, "),
        ("finetune", "--precision {32-true,bf16-mixed,16-mixed} of the forward"),
        ("finetune", "--tasks N tasks of 25 new classes each, the same for every optimizer (default: 8)"),
        ("finetune", "--no-head-start begins with a random head"),
        ("cache", "--skip-broken leaves out images that cannot be decoded"),
        ("meta-train", "--validation-steps N [N ...] lengths of the runs of a meta-validation (default: 10 25 50 100)"),
        ("meta-train", "--schedule.controller {shared,layerwise,global} shared, one MLP"),
        ("meta-train", "--side N height and width, in pixels, of the network's input; by default timm's data config, 224 for ResNets"),
        ("meta-train", "--schedule.lr0 X step size per element"),
    ],
)
def test_help_reads_as_a_person_writes_it(command: str, said: str) -> None:
    assert said in text_of(command)


@dataclass
class Made:
    """What a run is made of.

    Attributes:
        first, second: how many,
            of both [choice; and why].
        loud: makes a `noise`.
        quiet: makes none.
        kind: of all; None is as usual.
        file: where it goes.
    """

    file: str
    first: int = 3
    second: tuple[float, ...] = (0.5, 1e-9)
    loud: bool = True
    quiet: bool = False
    kind: str | None = None


def test_a_dataclass_makes_options_and_options_make_its_values() -> None:
    parser = Parser("[options]", "About.")
    Options(Made, choices={"kind": ("a", "b")}, texts={"loud": "makes no noise"}).add(parser, *(f.name for f in fields(Made)))
    said = " ".join(parser.format_help().split())
    for line in (
        "--file FILE where it goes --first N how many, of both (default: 3) --second X [X ...] how many, of both (default: 0.5 1e-09)",
        "--no-loud makes no noise --quiet makes none --kind {a,b} of all; by default as usual",
    ):
        assert line in said
    args = parser.parse_args(["--file", "2024", "--second", "-1e-3", "2", "--no-loud", "--quiet"])
    assert vars(args) == {"file": "2024", "first": 3, "second": (-0.001, 2.0), "loud": False, "quiet": True, "kind": None}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--skip-broken"], {"skip_broken": True}),
        (["--skip_broken", "--cache", "x-y_z"], {"skip_broken": True, "cache": "x-y_z"}),
        (["--skip-broken", "false"], {"skip_broken": False}),
        (["--skip-broken=True"], {"skip_broken": True}),
        (["--no-skip-broken", "--no-augment"], {"skip_broken": False, "augment": False}),
        (["--augment", "false"], {"augment": False}),
        (["--from-scratch", "--no_augment"], {"from_scratch": True, "augment": False}),
        (["--model", "no_augment"], {"model": "no_augment"}),
        (["--purposes", "meta-test"], {"purposes": ("meta-test",)}),
        (["--purposes=[pretrain,meta-test]"], {"purposes": ("pretrain", "meta-test")}),
    ],
)
def test_options_are_spelled_with_hyphens_or_underscores(words: list[str], values: dict[str, object]) -> None:
    args = vars(parser_of("cache").parse_args(words))
    assert {name: args[name] for name in values} == values


@pytest.mark.parametrize(
    ("words", "value"), [(["-1e-3"], -1e-3), (["-1E+2"], -100.0), (["-.5"], -0.5), (["-3"], -3.0), (["=-2e0"], -2.0), (["1e-3"], 1e-3)]
)
def test_a_negative_number_in_scientific_notation_is_a_number(words: list[str], value: float) -> None:
    given = [f"--schedule.initial_mix{words[0]}"] if words[0].startswith("=") else ["--schedule.initial_mix", *words]
    config = config_of(parser_of("meta-train").parse_args(["--out", "o", *given, "--steps", "3", "4"]))
    assert config.schedule.initial_mix == value
    assert config.steps == (3, 4)


def test_starting_the_command_imports_nothing_that_only_some_commands_need() -> None:
    code = "import sys, l3rs; before = set(sys.modules); import l3rs.cli; l3rs.cli.main(['--help']); print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1].split()
    assert {name for name in imported if name.startswith("l3rs.")} == {"l3rs.cli", "l3rs.cli.dispatch", "l3rs.cli.errors", "l3rs.processes"}
    assert not {"jsonargparse", "matplotlib", "pandas", "yaml"} & set(imported)


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "l3rs.cli"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
