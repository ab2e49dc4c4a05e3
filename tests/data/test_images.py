"""A set of images: what a network sees of it, and which images each class has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_set
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from l3rs.data.images import ImageSet, statistics


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 14),
    width=st.integers(8, 14),
    mirror=st.booleans(),
    rows=st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999), st.booleans(), st.integers(0, 11)), min_size=1, max_size=9),
)
def test_training_inputs_are_those_of_torchvision_image_by_image(
    height: int, width: int, mirror: bool, rows: list[tuple[float, float, bool, int]]
) -> None:
    images = image_set(classes=3, each=4, height=height, width=width, side=8, mirror=mirror)
    down, right = images.margin
    assert (down, right) == (height - 8, width - 8)
    crops = torch.tensor([(int(y * (down + 1)), int(x * (right + 1)), int(flip)) for y, x, flip, _ in rows])
    indices = torch.tensor([i for *_, i in rows])
    inputs = images.inputs(indices, crops)
    assert inputs.shape == (len(rows), 3, 8, 8)
    assert inputs.dtype == torch.float32
    for one, index, (top, left, mirrored) in zip(inputs, indices.tolist(), crops.tolist(), strict=True):
        expected = functional.crop(images.pixels[index], top, left, 8, 8)
        expected = functional.horizontal_flip(expected) if mirrored and mirror else expected
        expected = functional.normalize(functional.to_dtype(expected, torch.float32, scale=True), list(images.mean), list(images.std))
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (12, 10), (8, 14), (8, 8)])
def test_without_crops_the_middle_is_seen_unmirrored(height: int, width: int) -> None:
    images = image_set(classes=3, each=4, height=height, width=width, side=8, mirror=True)
    expected = functional.center_crop(images.pixels, [8, 8]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (images.mean, images.std))
    torch.testing.assert_close(images.inputs(torch.arange(12)), (expected - mean) / std)


def test_all_pixels_are_seen_where_no_side_is_given() -> None:
    images = image_set(classes=3, each=4, height=9, width=7)
    assert not images.augmented
    assert images.margin == (0, 0)
    assert images.inputs(torch.tensor([5, 5, 0])).shape == (3, 3, 9, 7)
    mirrored = image_set(classes=3, each=4, height=9, width=7, mirror=True)
    assert mirrored.augmented
    seen = mirrored.inputs(torch.tensor([5, 5]), torch.tensor([[0, 0, 0], [0, 0, 1]]))
    assert torch.equal(seen[0], images.inputs(torch.tensor([5]))[0])
    assert torch.equal(seen[1], seen[0].flip(-1))


def test_inputs_leave_the_pixels_alone() -> None:
    for images in (image_set(classes=2, each=2), image_set(classes=2, each=2, side=8, mirror=True)):
        before = images.pixels.clone()
        images.inputs(torch.arange(4), torch.tensor([[0, 0, 1]] * 4)).zero_()
        assert torch.equal(images.pixels, before)


def test_a_side_that_is_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"side must be at most that of the images of made up, \(12, 10\) \(got 13\)"):
        image_set(classes=2, each=2, height=12, width=10, side=13)
    with pytest.raises(ValueError, match=r"\(got 11\)"):
        image_set(classes=2, each=2, height=12, width=10, side=11)


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(-1, 4), max_size=60), data=st.data())
def test_each_class_has_its_images_in_order_and_no_other(labels: list[int], data: st.DataObject) -> None:
    validation = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    pixels = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    names = tuple("abcde")
    images = ImageSet(
        "x", pixels, torch.tensor(labels, dtype=torch.int64), names, torch.tensor(validation, dtype=torch.bool), (0.5,), (1.0,)
    )
    assert len(images.by_class) == 5
    for number, sides in enumerate(images.by_class):
        for side, members in zip((False, True), sides, strict=True):
            assert members.tolist() == [i for i, label in enumerate(labels) if label == number and validation[i] == side]


def test_statistics_are_those_of_the_pixels() -> None:
    pixels = torch.randint(256, (7, 1, 5, 5), dtype=torch.uint8)
    values = pixels.numpy().astype(np.float64) / 255
    assert statistics(pixels) == pytest.approx((values.mean(), values.std()))


def test_a_contact_sheet_in_colour(tmp_path: Path) -> None:
    images = image_set(classes=3, each=8, height=10, width=10)
    images.contact_sheet(tmp_path / "sheet.png", ("1",), columns=6)
    with Image.open(tmp_path / "sheet.png") as file:
        sheet = np.asarray(file)
    train, held_out = images.by_class[1]
    for index, left in ((train[0], 130), (held_out[0], 130 + 4 * 12 + 8)):
        assert np.array_equal(sheet[:10, left : left + 10], images.pixels[index].permute(1, 2, 0).numpy())
