"""From an image file to pixels: any format and mode that Pillow reads."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torchvision.transforms import InterpolationMode, v2

from l3rs.data.names import NOT_DECODED
from l3rs.files import refuse_endless
from l3rs.text import first_line

STRIP = 32  # times as long as wide: of longer images, only the middle is resized
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second
DEFLATE = 1032  # times as many bytes as were read is the most that zlib unpacks


class BrokenImage(ValueError):
    """A file that cannot be decoded; the message has its path and why."""


def check_channels(channels: int) -> None:
    """Raises ValueError unless images can have as many channels."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB) (got {channels})")


def side_before_cut(side: int, share: float) -> int:
    """The pixels to resize an image to, of which the middle `side`, a `share` (timm's crop_pct), is cut out; rounded down, as timm does."""
    return max(side, math.floor(side / share))


@dataclass(frozen=True)
class Decoder:
    """Decodes, resizes the shorter side to `side` and cuts the middle out; or resizes both sides to it.

    Attributes:
        side: height and width of what comes out, in pixels.
        channels: 3, RGB; or 1, grey.
        interpolation: how it is resized, by Pillow's name: `bilinear` or `bicubic` (what a timm model's data config may say).
        squash: whether both sides are resized, whatever the image's form, and nothing is cut off.
    """

    side: int
    channels: int = 3
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side must be at least 1 pixel (got {self.side})")
        check_channels(self.channels)

    @cached_property
    def _transform(self) -> v2.Transform:
        size = [self.side, self.side] if self.squash else self.side
        return v2.Compose([v2.Resize(size, InterpolationMode(self.interpolation)), v2.CenterCrop(self.side), v2.PILToTensor()])

    def __call__(self, path: str | Path) -> np.ndarray:
        """Pixels, uint8 (channels, side, side). Raises `BrokenImage`."""
        image = open_image(path, self.channels)
        short, long = sorted(image.size)
        if long > STRIP * short and not self.squash:  # resized whole, a strip of one pixel by 50,000 would take gigabytes
            left = (long - STRIP * short) // 2
            image = image.crop((left, 0, long - left, short) if image.width == long else (0, left, short, long - left))
        pixels: np.ndarray = self._transform(image).numpy()
        return pixels


def open_image(path: str | Path, channels: int = 3) -> Image.Image:
    """An image, decoded and upright as its EXIF orientation says, in mode RGB or L. What is transparent is seen on white.

    Raises:
        BrokenImage: the file is missing, no image, truncated, or so large that it may be meant to fill the memory; or its pixels are
            floats or 32-bit integers, of which no file says which is white.
    """
    try:
        try:
            return _decoded(path, channels)
        except (UserWarning, Image.DecompressionBombWarning):  # warnings are errors here, and a remark on odd metadata is none
            _mute_remarks()
            return _decoded(path, channels)
    except UnidentifiedImageError:
        size = Path(path).stat().st_size
        raise BrokenImage(f"{path}: {'it is not an image' if size else 'it is empty'}") from None
    except Exception as error:  # in a damaged file, Pillow may stumble over anything: AssertionError, TypeError, struct.error
        raise BrokenImage(f"{path}: {first_line(error)}") from None


def _mute_remarks() -> None:
    """Mutes what Pillow says of odd EXIF and TIFF tags, and of large photos, for good.

    A filter that came and went would take others with it in threads.
    """
    for kind in (UserWarning, Image.DecompressionBombWarning):
        warnings.filterwarnings("ignore", category=kind, module=r"PIL\.")


_mute_remarks()


def _decoded(path: str | Path, channels: int) -> Image.Image:
    refuse_endless(path)  # a named pipe may keep its reader waiting for ever
    with Image.open(path) as file:
        if file.format in NOT_DECODED:
            raise UnidentifiedImageError
        _check_size(file)
        _check_density(file, path)
        file.load()
        _turn_upright(file)
        image: Image.Image = file
        if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
            grey, tags = np.asarray(image), getattr(file, "tag_v2", {})  # up to 16 bits, which Pillow would clip to 255
            bits = tags.get(BITS, (16,))[0]
            eight = (grey >> max(0, bits - 8)).astype(np.uint8)
            eight[grey == file.info.get("transparency", -1)] = 255
            image = Image.fromarray(255 - eight if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else eight)
        elif image.mode in ("F", "I"):
            kind = "floats" if image.mode == "F" else "32-bit integers"
            raise ValueError(f"its pixels are {kind}, and no file says which of them is white; save it with 8 or 16 bits")
        elif image.has_transparency_data:
            over = image.convert("RGBA")
            image = Image.new("RGBA", over.size, "white")
            image.alpha_composite(over)
        if image.mode in ("LAB", "HSV"):  # Pillow makes colours of them, but no grey
            image = image.convert("RGB")
        return image.convert("RGB" if channels == 3 else "L")


def _check_size(image: Image.Image) -> None:
    """Raises ValueError above Pillow's limit of pixels. A row counts as three at least: Pillow keeps a pointer to each.

    Pillow refuses from twice `MAX_IMAGE_PIXELS` on, and warns of less, as of photos that phones take.
    """
    (short, long), limit = sorted(image.size), 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
    if max(short, 3) * long > limit:
        what = f"{image.width} x {image.height} pixels are more than the limit of {limit}"
        raise ValueError(f"{what}; it could be a decompression bomb; if it is none, make it smaller")


def _check_density(image: ImageFile.ImageFile, path: str | Path) -> None:
    """Raises ValueError where a PNG claims more rows than its bytes can hold: Pillow would take those that are not there for black."""
    least = image.height * (1 + image.width // 8)  # bytes, at one bit a pixel
    if image.format == "PNG" and least > DEFLATE * (size := os.path.getsize(path)):
        raise ValueError(f"{image.width} x {image.height} pixels are more than its {size} bytes can hold; it could be a decompression bomb")


def _turn_upright(image: Image.Image) -> None:
    """Turns and mirrors an image in place, as its EXIF orientation says; what cannot be read says nothing."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except (UserWarning, MemoryError):
        raise
    except Exception:  # EXIF may be any bytes; the pixels count
        return
