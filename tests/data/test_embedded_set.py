"""What the build scripts share: copies dropped, classes chosen and drawn, a set written and checked."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "datasets"))
from embedded_set import Drawing, check, classes_with_enough, draw_split, draw_validation, drop_copies, pack, quantize, shape_of, write_set

from l3rs.data.embedded import cut_apart


def picture(top: int, left: int, height: int, width: int) -> np.ndarray:
    """A rectangle of full ink with a hole in its upper left quarter, uint8 (32, 32)."""
    ink = np.zeros((32, 32), np.uint8)
    ink[top : top + height, left : left + width] = 255
    ink[top + height // 4 : top + height // 2, left + width // 4 : left + width // 2] = 0
    return ink


def test_quantize_has_sixteen_levels_that_end_in_nothing_and_full_ink() -> None:
    levels = np.unique(quantize(np.arange(256, dtype=np.uint8)))
    assert levels.tolist() == list(range(0, 256, 17))


def test_a_shape_does_not_depend_on_place_and_size() -> None:
    small, moved, large = (shape_of(p) for p in (picture(2, 3, 8, 8), picture(20, 11, 8, 8), picture(4, 4, 16, 16)))
    assert np.allclose(small, moved)
    assert small @ large > 0.999
    assert small @ shape_of(picture(2, 3, 8, 8)[:, ::-1]) < 0.9  # mirrored, the hole is elsewhere
    assert not shape_of(np.zeros((32, 32), np.uint8)).any()


def test_copies_are_dropped_within_a_class_and_exact_ones_across_the_sides() -> None:
    wide, same_but_moved, tall = picture(4, 4, 8, 16), picture(6, 6, 8, 16), picture(4, 4, 16, 8)
    drawings = [Drawing("one", "a", "wide"), Drawing("two", "a", "wide"), Drawing("two", "b", "tall"), Drawing("two", "c", "other")]
    pixels = np.stack([wide, same_but_moved, tall, wide])
    shapes = np.stack([shape_of(p) for p in pixels])
    validation = np.array([False, True, True, True])
    assert drop_copies(drawings, pixels, shapes, validation, 0.97).tolist() == [True, False, True, False]
    assert drop_copies(drawings, pixels, shapes, ~validation, 0.97).tolist() == [False, True, True, True]  # train stays


def test_classes_need_enough_images_on_both_sides() -> None:
    drawings = [Drawing("set", str(i), label) for label in ("full", "thin") for i in range(24)]
    validation = np.tile(np.arange(24) < 8, 2)
    keep = np.ones(48, bool)
    assert classes_with_enough(drawings, validation, keep) == ["full", "thin"]
    keep[-1] = False
    assert classes_with_enough(drawings, validation, keep) == ["full"]


def test_draws_are_pure_functions_of_their_seed() -> None:
    groups = [str(i) for i in range(40)]
    held_out = draw_validation(groups, 0.35, seed=1)
    assert len(held_out) == 14
    assert held_out == draw_validation(reversed(groups), 0.35, seed=1) != draw_validation(groups, 0.35, seed=2)
    split = draw_split(groups, {"pretrain": 30, "meta-train": 0, "meta-test": 10}, seed=1)
    assert sorted(c for classes in split.values() for c in classes) == sorted(groups)
    assert split["meta-train"] == []


def test_a_set_is_written_and_checked(tmp_path: Path) -> None:
    drawings = [Drawing("set", "b", "tall"), Drawing("set", "a", "tall")]
    pixels = np.stack([picture(4, 4, 16, 8), picture(4, 4, 16, 10)])

    def build(out: Path) -> None:
        write_set(out, drawings, pixels, np.array([True, False]), {"dataset": "rectangles", "seed": 0}, "about\n")

    build(tmp_path)
    assert check(build, tmp_path) is None
    (tmp_path / "ATTRIBUTION.md").write_text("changed\n")
    assert check(build, tmp_path) == "differ from a fresh build: ['ATTRIBUTION.md']"


def test_colours_are_read_as_they_were_packed() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), dtype=np.uint8)  # more than a row of the picture
    read = cut_apart(pack(colours)["pixels.webp"], 8)
    assert np.array_equal(read[:70], colours)
    assert (read[70:] == 255).all()
