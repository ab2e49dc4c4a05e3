"""What names in folders of images mean."""

from __future__ import annotations

import pytest
from PIL import Image

from l3rs.data.names import NOT_DECODED, extension_of, image_extensions, in_words, is_passed_over, one_form, side_of


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("seg_train", "train"), ("train_set", "train"),
        ("training_set", "train"), ("train-images", "train"), ("trainset", "train"), ("train2017", "train"),
        ("val", "validation"), ("Valid", "validation"), ("validation", "validation"), ("my_val", "validation"),
        ("Test", "test"), ("Testing", "test"), ("seg_test", "test"), ("test_set", "test"), ("test data", "test"),
        ("cat", None), ("trains", None), ("trainer", None), ("valley", None), ("", None),
        ("contest", None), ("latest", None), ("test_tube", None),
    ],
)  # fmt: skip
def test_sides_are_known_by_name(name: str, side: str | None) -> None:
    assert side_of(name) == side


def test_hidden_files_and_those_of_systems_are_passed_over() -> None:
    for name in (
        ".x",
        "._cat.png",
        ".Trash-1000",
        "@eaDir",
        "@eadir",
        "$RECYCLE.BIN",
        "System Volume Information",
        "__MACOSX",
        "lost+found",
    ):
        assert is_passed_over(name)
    for name in ("cat", "__background__", "__other", "@home", "lost", "_"):
        assert not is_passed_over(name)


def test_extensions_are_those_that_pillow_decodes() -> None:
    extensions = image_extensions()
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".avif", ".jp2", ".tga", ".ico", ".mpo", ".webp", ".tiff"} <= extensions
    assert extensions.isdisjoint({".eps", ".mpg", ".h5", ".pdf", ".txt", ""})
    assert set(Image.OPEN) >= NOT_DECODED


def test_a_format_that_is_registered_later_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of pillow-heif."""
    assert ".heic" not in image_extensions()
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    assert ".heic" in image_extensions()


def test_extensions_are_told_in_words() -> None:
    assert in_words({".txt": 3, "": 1, ".db": 12}) == "12 .db, 3 .txt, 1 without an extension"
    assert in_words({f".x{i}": 1 for i in range(11)}) == ", ".join(f"1 .x{i}" for i in (0, 1, 10, 2, 3, 4, 5, 6)) + ", 3 others"
    assert in_words({".\x1b": 1}) == r"1 .\x1b"
    assert [extension_of(name) for name in ("a.JPG", "a.tar.GZ", "png", ".png")] == [".jpg", ".gz", "", ""]


def test_names_have_one_form() -> None:
    assert one_form("cafe\u0301") == one_form("caf\u00e9") == "caf\u00e9"
    assert one_form("caf\udce9") == "caf\udce9"  # a byte that is not UTF-8
