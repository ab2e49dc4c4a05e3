"""The model card says what a schedule knows of itself, its curve goes along, and paths of the machine that made it stay there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_schedule, small_network
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

from l3rs import LearnedSchedule, load, save, save_pretrained
from l3rs.schedules.card import generate_model_card, shareable
from l3rs.schedules.find import START

TRAINING = {
    "config": {
        "split": "/home/me/photos/split.json",
        "data": "/home/me/photos",
        "cache": "/home/me/cache",
        "ray_address": "10.0.0.1:6379",
        "model": "resnet18",
        "weights": "/home/me/backbone.safetensors",
        "start": [],
        "steps": [10, 40],
        "generations": 90,
        "workers": 4,
        "task": {"classes": 10, "batch_size": 32},
        "nes": {"population": 16, "sigma": 0.03, "seed": 7},
    },
    "generation": 60,
    "validation_accuracy": 0.875,
    "validation_loss": 0.5,
    "seconds": 1800.0,
}


@pytest.fixture
def schedule() -> LearnedSchedule:
    return replace(random_schedule(small_network()), name="mine", training=TRAINING)


def test_the_card_says_what_the_schedule_knows(tmp_path: Path, schedule: LearnedSchedule) -> None:
    save_pretrained(schedule, tmp_path, repo_id="me/mine", model_card_kwargs={"license": "mit", "results": "| steps |\n|---|\n| 25 |\n"})
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "l3rs")
    assert "arxiv:2408.09310" in card.data.tags
    for part in (
        "# mine\n",
        'L3RS(model.named_parameters(), total_steps=100, learned="me/mine")',
        "| fits | resnet18, 7 layers by name: 0.weight to 6.bias |",
        "| directions | sgd, adam |",
        "| network | resnet18, with the pretrained weights backbone.safetensors |",
        "| class split | split |",
        "| tasks | 10 classes, batches of 32 |",
        "| steps of a run | 10 to 40 |",
        "| candidates | 16 a generation, sigma 0.03, seed 7 |",
        "| generations | 60, chosen among 90 on meta-validation |",
        "| meta-validation | accuracy 0.875, loss 0.500 |",
        "| cost | 2.00 core-hours |",
        "## Results\n\n| steps |\n|---|\n| 25 |\n\n",
        "## Licence\n\nmit\n",
    ):
        assert part in card.text, part
    assert "curve.png" not in card.text
    (tmp_path / "README.md").write_text("my own")
    save_pretrained(schedule, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own"


def test_a_card_of_a_schedule_that_knows_nothing_of_itself(tmp_path: Path) -> None:
    save_pretrained(random_schedule(small_network(), specialist=False), tmp_path)
    text = ModelCard.load(tmp_path / "README.md").text
    assert "It does not say." in text
    assert "| fits | any network |" in text
    assert "Results" not in text


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ({}, "| network | resnet34 at width 16, the one that l3rs ships, pretrained on icons |"),
        ({"split": "glyphs", "from_scratch": True}, "| network | resnet34, from random weights, anew for each task |"),
        ({"split": "imagenet25-0"}, "| network | resnet34, with timm's pretrained weights |"),
        ({"workers": 0}, "| cost | 0.50 hours, one process on each core |"),
        ({"workers": 8, "gpus_per_actor": 0.5}, "| cost | 0.50 hours on 8 processes, each with 0.5 of a GPU |"),
    ],
)
def test_other_networks_and_machines(config: dict[str, object], row: str, schedule: LearnedSchedule) -> None:
    assert row in generate_model_card(replace(schedule, training={"config": config, "seconds": 1800}), repo_id="me/mine").text


def test_the_curve_of_a_run_goes_along(tmp_path: Path, schedule: LearnedSchedule) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curve.png").write_bytes(b"a picture")
    save(schedule, tmp_path / "run" / "mine.safetensors")
    learned = load(tmp_path / "run" / "mine.safetensors")
    save_pretrained(learned, tmp_path / "folder")
    assert (tmp_path / "folder" / "curve.png").read_bytes() == b"a picture"
    assert "](curve.png)" in (tmp_path / "folder" / "README.md").read_text()
    again = load(tmp_path / "folder")
    save_pretrained(again, tmp_path / "folder")  # where it comes from
    assert torch.equal(load(tmp_path / "folder").theta, schedule.theta)
    save_pretrained(replace(learned, theta=learned.theta + 1), tmp_path / "other")  # is not what that curve is of
    assert not (tmp_path / "other" / "curve.png").exists()
    save_pretrained(load("icons-resnet34"), tmp_path / "shipped")
    assert (tmp_path / "shipped" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_paths_of_this_machine_stay_here(tmp_path: Path, schedule: LearnedSchedule) -> None:
    training = {**TRAINING, "config": {**TRAINING["config"], "start": ["/home/me/theta.state"]}}  # type: ignore[dict-item]
    save_pretrained(replace(schedule, training=training), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["l3rs"])
    assert all(secret not in json.dumps(about) + (tmp_path / "README.md").read_text() for secret in ("/home", "10.0.0.1"))
    config = about["training"]["config"]
    assert (config["split"], config["weights"], config["start"]) == ("split.json", "backbone.safetensors", ["theta.state"])
    assert load_file(tmp_path / "model.safetensors").keys()  # any reader of safetensors reads it


def test_the_card_of_the_start_says_that_nothing_was_learned() -> None:
    text = generate_model_card(load(START), repo_id="me/start").text
    assert "| generations | none: it was not meta-trained, and learned nothing; meta-training starts from it |" in text
    assert "curve.png" not in text


def test_the_card_tells_of_meta_gradients_a_start_and_a_zoo(schedule: LearnedSchedule) -> None:
    config = {
        **TRAINING["config"],
        "search": "both",
        "start": ["start"],
        "zoo": {"file": "/home/me/zoo.yaml", "weights": "/home/me/runs/zoo"},
    }  # type: ignore[dict-item]
    training = shareable({**TRAINING, "config": config})
    assert training["config"]["zoo"] == {"file": "zoo.yaml", "weights": "zoo"}
    text = generate_model_card(replace(schedule, training=training), repo_id="me/mine").text
    assert "| networks | those of zoo.yaml that are not held out, in turn |" in text
    assert "| started from | start |" in text
    assert "| search | meta-gradients, then evolution strategies, seed " in text
    assert "| candidates |" in text
    assert "| network |" not in text
    assert "batches of" not in text
    alone = generate_model_card(replace(schedule, training={"config": {**config, "search": "gradient"}}), repo_id="me/mine").text
    assert "| candidates |" not in alone


HOSTILE = (
    "<script>alert(1)</script> | a\n# b\r\n---\nlicense: mit ![x](https://x.invalid) HTTPS://y.invalid www.z.invalid me@a.invalid _c_ `c` "
    "\x1b[2J \u202e \ud800 <!-- $x$"
)
STRANGE = [HOSTILE, -1, 10**400, float("nan"), float("inf"), True, None, [HOSTILE], {"a": HOSTILE}]


def test_nothing_in_a_file_gets_out_of_its_place_on_the_card(tmp_path: Path, schedule: LearnedSchedule) -> None:
    config = {**TRAINING["config"], "model": HOSTILE, "split": HOSTILE, "weights": HOSTILE}  # type: ignore[dict-item]
    training = {**TRAINING, "generation": HOSTILE, "config": config}
    layers = (*schedule.layers[:-1], HOSTILE)
    save_pretrained(replace(schedule, name=HOSTILE, layers=layers, training=training), tmp_path / 'a" + `b`\n```')
    (file,) = tmp_path.glob("*/README.md")
    text = file.read_text()
    usual = ModelCard.load(_card(schedule, tmp_path / "usual"))
    assert ModelCard.load(file).data.to_dict() == usual.data.to_dict()
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == [
        f"## {h}" for h in ("Use it", "What it is", "How it was meta-trained", "Licence")
    ]
    assert text.count("```") == 2
    code = text.split("```")[1].removeprefix("python\n")
    assert 'learned="a--+--b-----"' in code
    compile(code, "card", "exec")
    rest = text.replace("|---|---|", "").replace("| | |", "")
    for row in (line for line in rest.splitlines() if line.startswith("| ")):
        assert re.sub(r"\\.", "", row).count("|") == 3, row  # two cells
    bare = re.sub(r"\\.", "", text.split("```")[2])
    assert not any(sign in bare for sign in ("<", ">", "`", "![", "$", "_", "HTTPS://", "www.", "@"))
    assert "me&#64;&#8288;a.invalid" in text  # a sign of no width between them, without which GitHub makes a link
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| a # b --- license: mit !\\[x\\]" in text


def _card(learned: LearnedSchedule, folder: Path) -> Path:
    save_pretrained(learned, folder)
    return folder / "README.md"


@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: str(value)[:12])
def test_training_may_hold_anything(strange: object, tmp_path: Path, schedule: LearnedSchedule) -> None:
    given = [{**TRAINING, key: strange} for key in TRAINING]
    given += [{**TRAINING, "config": {**TRAINING["config"], key: strange}} for key in TRAINING["config"]]  # type: ignore[dict-item]
    given += [{"config": {}, "seconds": strange, "workers": strange, "gpus_per_actor": strange}]
    for training in given:
        text = generate_model_card(replace(schedule, training=shareable(training)), repo_id="me/mine").text
        assert "## How it was meta-trained" in text


def test_a_licence_stays_one_line_of_the_front_matter(schedule: LearnedSchedule) -> None:
    card = generate_model_card(schedule, repo_id="me/mine", license="mit\ntags: [x]\n---\n<b>")
    assert card.data.license == "mit\ntags: [x]\n---\n<b>"
    assert "x" not in card.data.tags
    assert card.text.endswith("## Licence\n\nmit tags: \\[x\\] --- &lt;b&gt;\n")
