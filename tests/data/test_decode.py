"""Decoding: every format and mode becomes RGB or grey pixels of the same meaning; whatever is broken is named."""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import ExifTags, Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from l3rs.data.decode import BrokenImage, Decoder, open_image
from l3rs.data.names import image_extensions
from l3rs.data.transform import Transform

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


def tiff(bits: int, photometric: int, pixels: bytes) -> bytes:
    """A grey image of 2 by 1."""
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 122), (277, 1), (278, 1), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


@pytest.mark.parametrize(
    ("bits", "photometric", "pixels", "expected"),
    [
        (16, 1, struct.pack("<2H", 65535, 256), [255, 1]),
        (16, 0, struct.pack("<2H", 0, 65535), [255, 0]),
        (12, 1, b"\xff\xf0\x10", [255, 1]),
        (8, 0, b"\x00\xff", [255, 0]),
    ],
    ids=["16 bits", "white is zero", "12 bits", "8 bits, white is zero"],
)
def test_a_grey_tiff_says_how_many_bits_it_has_and_which_end_is_white(
    bits: int, photometric: int, pixels: bytes, expected: list[int], tmp_path: Path
) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(bits, photometric, pixels))
    for channels in (1, 3):
        image = np.asarray(open_image(tmp_path / "x.tif", channels))
        assert image.reshape(2, -1)[:, 0].tolist() == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_of_another_kind_are_seen_in_grey_too(channels: int, tmp_path: Path) -> None:
    solid("LAB", (255, 128, 128)).save(tmp_path / "x.tif")
    assert (np.asarray(open_image(tmp_path / "x.tif", channels)) >= 250).all()


def test_a_photo_above_what_pillow_warns_of_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise("x", 30, 20).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert open_image(tmp_path / "x.png").size == (30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(BrokenImage, match=r"decompression bomb"):
        open_image(tmp_path / "x.png")


def test_what_is_moved_out_of_an_inverted_picture_leaves_the_mean(tmp_path: Path) -> None:
    Image.new("L", (32, 32), 255).save(tmp_path / "white.png")
    transform = Transform.of_shipped("icons")
    seen = transform.training(tmp_path / "white.png", 4, "randaugment")  # which moves it
    assert seen.max() == pytest.approx(0, abs=0.02)  # and no ink
    assert seen.min() == pytest.approx(-transform.mean[0] / transform.std[0], abs=1e-5)


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
        "strip.png": (png(1, 80_000_000, 8, 2, b""), "1 x 80000000 pixels are more than the limit"),
        "long.ppm": (b"P6 80000000 1 255\n", "80000000 x 1 pixels are more than the limit"),
        "hollow.png": (png(9000, 9000, 8, 2, bytes(9000)), "9000 x 9000 pixels are more than its .* bytes can hold"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is not an image"),
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


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".gif", ".avif", ".jp2", ".tga", ".ico", ".pcx", ".dds", ".sgi", ".qoi", ".mpo"])
def test_images_called_otherwise_are_read(suffix: str, tmp_path: Path) -> None:
    assert suffix in image_extensions()
    solid("RGB", (200, 30, 60)).resize((32, 32)).save(tmp_path / f"x{suffix}", format={".jpe": "JPEG", ".jfif": "JPEG"}.get(suffix))
    assert np.abs(Decoder(32)(tmp_path / f"x{suffix}").astype(int) - np.array([200, 30, 60])[:, None, None]).max() <= 4


BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def quarters() -> Image.Image:
    """Wider than high, each quarter with a grey of its own."""
    return Image.fromarray(np.kron(np.array([[20, 90], [160, 230]], np.uint8), np.ones((16, 24), np.uint8))).convert("RGB")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "mpo"])
def test_photos_are_seen_as_viewers_show_them(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    for orientation, how in BACK.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        quarters().transpose(how).save(path, exif=exif)
        seen = open_image(path)
        assert seen.size == (48, 32)
        assert np.abs(np.asarray(seen).astype(int) - np.asarray(quarters())).mean() < 3
        transform = Transform(16, 16, 3, "bilinear", (0.0,) * 3, (1.0,) * 3)
        corners = transform.evaluation(path)[0, [0, 0, -1, -1], [0, -1, 0, -1]] * 255
        assert torch.allclose(corners, torch.tensor([20.0, 90.0, 160.0, 230.0]), atol=8)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_exif_that_cannot_be_read_says_nothing(exif: bytes, tmp_path: Path) -> None:
    for name in ("x.jpg", "x.png", "x.webp"):
        quarters().save(tmp_path / name, exif=exif)
        assert open_image(tmp_path / name).size == (48, 32)


@pytest.mark.parametrize(("kind", "name"), [(np.float32, "x.tif"), (np.int32, "x.tif"), (np.float32, "x.pfm")])
def test_pixels_without_a_white_are_refused(kind: type, name: str, tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 70_000, 256).reshape(16, 16).astype(kind)).save(tmp_path / name)
    with pytest.raises(BrokenImage, match=r"its pixels are (floats|32-bit integers), and no file says which of them is white; save it"):
        Decoder(16)(tmp_path / name)


def test_a_named_pipe_or_a_device_is_no_image(tmp_path: Path) -> None:
    """Nobody writes to the pipe: who opens it waits for ever."""
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", Path("/dev/zero")):
        with pytest.raises(BrokenImage, match=f"^{path}: it is no file, but a named pipe, a socket or a device$"):
            Decoder(8)(path)


def test_an_icon_that_holds_a_strip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = png(1, 400, 8, 2, bytes(1200))
    (tmp_path / "x.ico").write_bytes(struct.pack("<HHH4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner)
    assert open_image(tmp_path / "x.ico").size == (1, 400)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # of which Pillow warns; twice as many it refuses
    with pytest.raises(BrokenImage, match="1 x 400 pixels are more than the limit of 1000"):
        open_image(tmp_path / "x.ico")


def test_filters_of_warnings_are_left_alone_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`warnings.catch_warnings` is of the process: what one thread puts back may be another's, and mutes what comes after."""
    files = [tmp_path / f"{i}.jpg" for i in range(40)]
    for file in files:
        noise(file.name, 20, 20).save(file)

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("filters of warnings were changed")

    before = list(warnings.filters)
    monkeypatch.setattr(warnings, "catch_warnings", fail)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_image, files))
    assert warnings.filters == before


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
