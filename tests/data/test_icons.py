"""The Icons set as it is shipped; what holds for every embedded set is in test_embedded.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from l3rs.data import load_icons
from l3rs.data.icons import icons_split
from l3rs.data.splits import ClassSplit

IMAGES = load_icons()


def test_split() -> None:
    assert {purpose: len(names) for purpose, names in icons_split().classes.items()} == {
        "pretrain": 200,
        "meta-train": 100,
        "meta-validation": 40,
        "meta-test": 100,
    }


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
