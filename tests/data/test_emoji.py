"""The Emoji set as it is shipped; what holds for every embedded set is in test_embedded.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from test_embedded import credits_of

from l3rs.data.emoji import emoji_index, emoji_split, load_emoji

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
LISTS = yaml.safe_load((DATASETS / "emoji.yaml").read_text())


def test_split() -> None:
    sizes = {purpose: len(names) for purpose, names in emoji_split().classes.items()}
    assert sizes == {"pretrain": 329, "meta-train": 100, "meta-validation": 40, "meta-test": 100}


def test_a_class_of_a_task_has_more_images_than_one_for_pretraining_must() -> None:
    images, split = load_emoji(), emoji_split().classes
    for purpose, fewest in (("pretrain", 1), ("meta-train", 2), ("meta-validation", 2), ("meta-test", 2)):
        assert min(len(images.by_class[images.classes.index(c)][1]) for c in split[purpose]) >= fewest


def test_excluded_names_and_look_alikes_are_no_classes() -> None:
    classes, excluded = set(load_emoji().classes), re.compile("|".join(LISTS["excluded"]))
    assert {c for c in classes if excluded.search(c)} <= set(LISTS["allowed"])
    for alike in LISTS["look_alikes"]:
        assert not classes & set(alike[1:]), alike


def test_vendors_licences_and_versions_are_the_listed_ones() -> None:
    versions = json.loads((DATASETS / "emoji-sets.json").read_text())["dependencies"]
    cells = credits_of("emoji")
    assert set(cells) == set(LISTS["sets"]) == {row["set"] for row in emoji_index()}
    for name, about in LISTS["sets"].items():
        _, _, _, licence, version, _, group, side = cells[name]
        assert re.match(r"\[(.*?)\]", licence)[1] in LISTS["licences"]
        assert (version, group, side) == (about["version"], about["group"], about["side"])
        assert versions[f"@iconify-json/{name}"] == version


def test_it_is_in_colour_on_white() -> None:
    pixels = load_emoji().pixels
    assert float((pixels[:, :, 0, 0] == 255).all(1).float().mean()) > 0.8  # the upper left corner
    red, blue = pixels[:, 0].float(), pixels[:, 2].float()
    assert float((red - blue).abs().amax((1, 2)).gt(60).float().mean()) > 0.8


@pytest.mark.parametrize("side", [32, pytest.param(128, marks=pytest.mark.slow)])
def test_other_sizes_show_the_same(side: int) -> None:
    full, other = load_emoji(), load_emoji(side)
    assert other.pixels.shape == (len(full.labels), 3, side, side)
    assert torch.equal(other.labels, full.labels)
    assert float((other.pixels.float().mean((2, 3)) - full.pixels.float().mean((2, 3))).abs().max()) < 1.0
    if side == 32:
        first = full.pixels[:8].float().unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5)).round()
        assert torch.equal(other.pixels[:8].float(), first)
