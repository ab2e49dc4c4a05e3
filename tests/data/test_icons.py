"""The Icons set as it is shipped."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch

from l3rs.data import load_icons
from l3rs.data.icons import FILES, icons_index, icons_split
from l3rs.data.splits import ClassSplit

IMAGES = load_icons()


def designer_groups() -> dict[str, tuple[str, str]]:
    """Icon set to (designer group, side), as ATTRIBUTION.md has it."""
    rows = [line.split("|") for line in (FILES / "ATTRIBUTION.md").read_text().splitlines() if line.startswith("| `")]
    return {r[1].strip(" `"): (r[-3].strip(), r[-2].strip()) for r in rows}


def test_files_are_the_recorded_ones() -> None:
    for line in (FILES / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((FILES / name).read_bytes()).hexdigest() == digest, name


def test_size() -> None:
    assert sum(p.stat().st_size for p in Path(str(FILES)).iterdir()) <= 7 * 2**20
    assert IMAGES.pixels.shape == (len(IMAGES.labels), 1, 32, 32)
    assert len(IMAGES.classes) == 440


def test_every_class_has_enough_images_on_both_sides() -> None:
    for name, (train, validation) in zip(IMAGES.classes, IMAGES.by_class, strict=True):
        assert len(train) >= 16, name
        assert len(validation) >= 8, name


def test_no_designer_is_on_both_sides() -> None:
    groups = designer_groups()
    sides: dict[str, set[str]] = {}
    for row in icons_index():
        group, side = groups[row["set"]]
        assert row["side"] == side
        sides.setdefault(group, set()).add(side)
    assert all(len(s) == 1 for s in sides.values())
    assert Counter(s for both in sides.values() for s in both).keys() == {"train", "validation"}


def test_no_image_is_on_both_sides() -> None:
    flat = [p.numpy().tobytes() for p in IMAGES.pixels]
    train = {flat[i] for i in torch.nonzero(~IMAGES.validation).flatten()}
    assert not any(flat[i] in train for i in torch.nonzero(IMAGES.validation).flatten())


def test_split() -> None:
    split = icons_split()
    assert {purpose: len(names) for purpose, names in split.classes.items()} == {
        "pretrain": 200,
        "meta-train": 100,
        "meta-validation": 40,
        "meta-test": 100,
    }
    assert {n for names in split.classes.values() for n in names} == set(IMAGES.classes)


def test_a_class_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="'bell' of icons is in both pretrain and meta-test"):
        ClassSplit("icons", 0, {"pretrain": ("bell",), "meta-train": (), "meta-validation": (), "meta-test": ("bell",)})


def test_brands_are_left_out() -> None:
    assert not {"github", "facebook", "twitter", "google", "bluetooth"} & set(IMAGES.classes)


def test_contact_sheet(tmp_path: Path) -> None:
    IMAGES.contact_sheet(tmp_path / "sheet.png", IMAGES.classes[:3])
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no such class in icons: 'unicorn'"):
        IMAGES.contact_sheet(tmp_path / "no.png", ("unicorn",))
