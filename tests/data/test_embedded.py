"""What holds for every embedded set as it is shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from l3rs.data.embedded import SETS, files_of, load_embedded, read_index, read_split
from l3rs.data.emoji import emoji_index, emoji_split, load_emoji
from l3rs.data.glyphs import glyphs_index, glyphs_split, load_glyphs
from l3rs.data.icons import icons_index, icons_split, load_icons

MEBIBYTES = {"icons": 7, "glyphs": 4, "emoji": 6}
FEWEST = {"icons": (16, 8), "glyphs": (16, 8), "emoji": (4, 1)}  # train and validation images of a class
HELD_OUT = {"icons": (0.3, 0.4), "glyphs": (0.3, 0.4), "emoji": (0.5, 0.5)}  # of the groups; of those drawn, some give no image
each_set = pytest.mark.parametrize("name", MEBIBYTES)


def credits_of(name: str) -> dict[str, list[str]]:
    """Icon set or typeface family to the cells of its row in ATTRIBUTION.md."""
    text = (files_of(name) / "ATTRIBUTION.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    return {row[0]: row for row in rows}


@each_set
def test_files_are_the_recorded_ones(name: str) -> None:
    recorded = dict(reversed(line.split("  ")) for line in (files_of(name) / "SHA256SUMS").read_text().splitlines())
    assert {p.name for p in files_of(name).iterdir()} == {*recorded, "SHA256SUMS"}
    for file, digest in recorded.items():
        assert hashlib.sha256((files_of(name) / file).read_bytes()).hexdigest() == digest, file


@each_set
def test_size(name: str) -> None:
    assert sum(p.stat().st_size for p in Path(str(files_of(name))).iterdir()) <= MEBIBYTES[name] * 2**20
    images = load_embedded(name)
    form = SETS[name]
    assert images.pixels.shape == (len(images.labels), form.channels, form.side, form.side)
    assert images.pixels.dtype == torch.uint8
    levels = set(range(0, 256, 17)) if form.channels == 1 else {round(i * 255 / 31) for i in range(32)}  # of ink, of a colour
    assert set(torch.bincount(images.pixels.flatten(), minlength=256).nonzero().flatten().tolist()) == levels


@each_set
def test_every_class_has_enough_images_on_both_sides(name: str) -> None:
    images = load_embedded(name)
    for label, (train, validation) in zip(images.classes, images.by_class, strict=True):
        assert len(train) >= FEWEST[name][0], label
        assert len(validation) >= FEWEST[name][1], label


@each_set
def test_no_group_is_on_both_sides(name: str) -> None:
    cells = credits_of(name)
    sides: dict[str, set[str]] = {}
    for row in read_index(name):
        group, side = cells[row["set"]][-2:]
        assert row["side"] == side
        sides.setdefault(group, set()).add(side)
    assert {len(s) for s in sides.values()} == {1}
    held_out = sum(s == {"validation"} for s in sides.values()) / len(sides)
    assert HELD_OUT[name][0] <= held_out <= HELD_OUT[name][1]


@each_set
def test_every_source_is_credited_for_its_images(name: str) -> None:
    index = read_index(name)
    counts = {row["set"]: 0 for row in index}
    for row in index:
        counts[row["set"]] += 1
    assert counts == {source: int(cells[-3]) for source, cells in credits_of(name).items()}


@each_set
def test_no_image_is_on_both_sides(name: str) -> None:
    images = load_embedded(name)
    flat = [p.numpy().tobytes() for p in images.pixels]
    train = {flat[i] for i in torch.nonzero(~images.validation).flatten()}
    assert not any(flat[i] in train for i in torch.nonzero(images.validation).flatten())


@each_set
def test_no_image_is_empty(name: str) -> None:
    pixels = load_embedded(name).pixels
    ink = pixels if pixels.shape[1] == 1 else 255 - pixels.amin(1)  # on paper, what is not white
    assert float(ink.flatten(1).float().mean(1).min()) > 0.005 * 255


@each_set
def test_the_split_has_every_class_once(name: str) -> None:
    classes = [c for names in read_split(name).classes.values() for c in names]
    assert sorted(classes) == sorted(load_embedded(name).classes)


@pytest.mark.parametrize(
    ("name", "load", "index", "split"),
    [
        ("icons", load_icons, icons_index, icons_split),
        ("glyphs", load_glyphs, glyphs_index, glyphs_split),
        ("emoji", load_emoji, emoji_index, emoji_split),
    ],
)
def test_the_functions_of_each_set(name: str, load: Callable, index: Callable, split: Callable) -> None:
    assert load() is load_embedded(name)
    assert load().name == split().dataset == name
    assert len(index()) == len(load().labels)
