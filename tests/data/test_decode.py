"""Decoding: every format and mode becomes RGB or grey pixels of the same meaning; whatever is broken is named."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import noise
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from l3rs.data.decode import BrokenImage, Decoder, open_image

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # the 16-bit greys that are 0, 1, ..., 255 in 8 bits


def as_torchvision_does(path: Path, side: int, interpolation: str = "bilinear") -> np.ndarray:
    with Image.open(path) as file:
        resized = functional.resize(file.convert("RGB"), [side], InterpolationMode(interpolation))
    pixels: np.ndarray = functional.pil_to_tensor(functional.center_crop(resized, [side, side])).numpy()
    return pixels


def png(width: int, height: int, bits: int, colour: int, pixels: bytes, **chunks: bytes) -> bytes:
    """A PNG file by hand: rows, without their filter bytes, as `pixels`."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + pixels[i : i + len(pixels) // height] for i in range(0, len(pixels), len(pixels) // height or 1))
    named = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), *((n.encode(), d) for n, d in chunks.items())]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(n, d) for n, d in [*named, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (17, 17), (5, 9), (16, 300)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_plain_image_is_what_torchvision_makes_of_it(size: tuple[int, int], suffix: str, interpolation: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    noise(str(size), *size).save(path)
    pixels = Decoder(16, 3, interpolation)(path)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, as_torchvision_does(path, 16, interpolation))


@pytest.mark.parametrize("suffix", IMG_EXTENSIONS)
def test_every_kind_of_file_that_is_looked_for_is_read(suffix: str, tmp_path: Path) -> None:
    image = noise("x", 4, 4).convert("L" if suffix == ".pgm" else "RGB").resize((60, 60))
    image.save(tmp_path / f"x{suffix}")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(float)
    error = np.abs(Decoder(60)(tmp_path / f"x{suffix}") - expected)
    assert error.mean() < 4  # JPEG and WebP lose a little
    if suffix not in (".jpg", ".jpeg", ".webp"):
        assert error.max() == 0


def solid(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (24, 20), colour)  # type: ignore[arg-type]


def palette() -> Image.Image:
    """The left half transparent, the right half green."""
    image = Image.new("P", (24, 20), 1)
    image.putpalette([255, 0, 0, 0, 200, 0])
    image.paste(0, (0, 0, 12, 20))
    return image


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("grey.jpg", solid("L", 100), {}, (100, 100, 100)),
        ("rgb.jpg", solid("RGB", (200, 30, 60)), {}, (200, 30, 60)),
        ("cmyk.jpg", solid("CMYK", (0, 255, 255, 0)), {}, (255, 0, 0)),
        ("dark-cmyk.jpg", solid("CMYK", (0, 0, 0, 155)), {}, (100, 100, 100)),
        ("clear.png", solid("RGBA", (255, 0, 0, 0)), {}, (255, 255, 255)),
        ("half.png", solid("RGBA", (255, 0, 0, 128)), {}, (255, 127, 127)),
        ("grey-and-alpha.png", solid("LA", (0, 51)), {}, (204, 204, 204)),
        ("key.png", solid("RGB", (9, 9, 9)), {"transparency": (9, 9, 9)}, (255, 255, 255)),
        ("one-bit.png", solid("1", 1), {}, (255, 255, 255)),
        ("black.png", solid("1", 0), {}, (0, 0, 0)),
        ("alpha.webp", solid("RGBA", (0, 0, 255, 0)), {}, (255, 255, 255)),
        ("rgb.bmp", solid("RGB", (1, 2, 3)), {}, (1, 2, 3)),
        ("cmyk.tif", solid("CMYK", (255, 0, 255, 0)), {}, (0, 255, 0)),
        ("moving.webp", solid("RGB", (0, 0, 0)), {"save_all": True, "append_images": [solid("RGB", (255, 255, 255))]}, (0, 0, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_keeps_its_colour(
    name: str, image: Image.Image, options: dict[str, object], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    image.save(tmp_path / name, **options)  # type: ignore[arg-type]
    pixels = Decoder(8)(tmp_path / name).astype(int)
    assert np.abs(pixels - np.array(expected)[:, None, None]).max() <= 3


def test_a_transparent_palette_is_seen_on_white(tmp_path: Path) -> None:
    for name, transparency in (("index.png", 0), ("bytes.png", b"\x00\xff")):
        palette().save(tmp_path / name, transparency=transparency)
        left, right = np.split(Decoder(20)(tmp_path / name), 2, axis=2)
        assert (left == 255).all()
        assert (right == np.array([0, 200, 0])[:, None, None]).all()


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif", "ramp.pgm"])
def test_sixteen_bits_of_grey_become_eight(name: str, tmp_path: Path) -> None:
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(tmp_path / name)
    assert np.array_equal(Decoder(16, 1)(tmp_path / name)[0], (RAMP >> 8).astype(np.uint8))


def test_sixteen_bits_of_grey_with_a_transparent_one_are_seen_on_white(tmp_path: Path) -> None:
    (tmp_path / "key.png").write_bytes(png(16, 16, 16, 0, RAMP.astype(">u2").tobytes(), tRNS=struct.pack(">H", 257)))
    expected = (RAMP >> 8).astype(np.uint8)
    expected[0, 1] = 255
    assert np.array_equal(Decoder(16, 1)(tmp_path / "key.png")[0], expected)


def test_one_channel_is_grey(tmp_path: Path) -> None:
    noise("x", 16, 16).save(tmp_path / "x.png")
    grey = Decoder(16, 1)(tmp_path / "x.png")
    assert grey.shape == (1, 16, 16)
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601, Pillow's
    assert np.abs(grey[0] - np.einsum("c,chw->hw", weights, Decoder(16)(tmp_path / "x.png"))).max() < 1


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 200), (201, 1), (3, 33), (40, 2)])
def test_any_size_can_be_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    noise(str(size), *size).save(tmp_path / "x.png")
    assert np.array_equal(Decoder(16)(tmp_path / "x.png"), as_torchvision_does(tmp_path / "x.png", 16))


@pytest.mark.parametrize("size", [(50_000, 1), (1, 50_000), (3, 9_000)])
def test_of_a_strip_only_the_middle_is_resized(size: tuple[int, int], tmp_path: Path) -> None:
    """The whole would be 3 million pixels wide, take seconds and a gigabyte."""
    strip = Image.new("RGB", size, "red")
    strip.paste("blue", (max(0, size[0] // 2 - 10), max(0, size[1] // 2 - 10), size[0] // 2 + 10, size[1] // 2 + 10))
    strip.save(tmp_path / "x.png")
    started = time.process_time()
    pixels = Decoder(64)(tmp_path / "x.png")
    assert time.process_time() - started < 0.3
    assert (pixels == np.array([0, 0, 255])[:, None, None]).all()


def broken_files() -> dict[str, tuple[bytes, str]]:
    jpeg, flat = io.BytesIO(), io.BytesIO()
    noise("x", 64, 64).save(jpeg, "JPEG")
    noise("x", 64, 64).save(flat, "PNG")
    return {
        "cut.jpg": (jpeg.getvalue()[: len(jpeg.getvalue()) // 2], "truncated"),
        "cut.png": (flat.getvalue()[: len(flat.getvalue()) // 2], "truncated"),
        "text.jpg": (b"<html>404 Not Found</html>", "it is not an image"),
        "empty.jpg": (b"", "it is empty"),
        "bomb.png": (png(20_000, 20_000, 8, 2, b""), "decompression bomb"),
        "small-bomb.png": (png(10_000, 10_000, 8, 2, b""), "decompression bomb"),
        "no-palette.png": (png(4, 4, 8, 3, bytes(16)), "."),
    }


@pytest.mark.parametrize("name", broken_files())
def test_what_is_broken_is_named(name: str, tmp_path: Path) -> None:
    data, said = broken_files()[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BrokenImage, match=f"^{tmp_path / name}: .*{said}"):
        Decoder(8)(tmp_path / name)


def test_a_bomb_is_refused_where_warnings_are_not_errors(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(10_000, 10_000, 8, 2, b""))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BrokenImage, match="decompression bomb"):
            Decoder(8)(tmp_path / "bomb.png")


def test_what_is_not_there_or_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match=f"^{tmp_path}/no.jpg: No such file or directory$"):
        Decoder(8)(tmp_path / "no.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BrokenImage, match=f"^{tmp_path}/folder.jpg: "):
        Decoder(8)(tmp_path / "folder.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_file_cut_anywhere_is_broken_or_whole_and_nothing_else(suffix: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    noise("x", 24, 24).save(whole)
    data = whole.read_bytes()
    outcomes = set()
    for end in range(0, len(data), max(1, len(data) // 60)):
        cut.write_bytes(data[:end])
        try:
            Decoder(8)(cut)
            outcomes.add("whole")
        except BrokenImage as error:
            assert str(cut) in str(error)  # noqa: PT017  (either outcome will do)
            outcomes.add("broken")
    assert "broken" in outcomes


def tiff_with_an_odd_tag(path: Path) -> None:
    """The x resolution said to be two numbers."""
    noise("x", 9, 9).save(path, dpi=(72, 72))
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHI", 282, 5, 1))
    data[at : at + 8] = struct.pack("<HHI", 282, 5, 2)
    path.write_bytes(bytes(data))


def test_remarks_of_pillow_are_kept_to_itself(tmp_path: Path) -> None:
    """Where Pillow warns of odd metadata, the pixels count. Warnings are errors here, so none came out."""
    tiff_with_an_odd_tag(tmp_path / "x.tif")
    with pytest.warns(UserWarning, match="Metadata Warning"), Image.open(tmp_path / "x.tif") as file:
        file.load()
    assert np.array_equal(np.asarray(open_image(tmp_path / "x.tif")), np.asarray(noise("x", 9, 9)))


def test_a_decoder_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"side must be at least 1 pixel \(got 0\)"):
        Decoder(0)
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3 \(RGB\) \(got 2\)"):
        Decoder(8, 2)
