"""From an image file to pixels: any format and mode that Pillow reads."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import InterpolationMode, v2

STRIP = 32  # times as long as wide: of longer images, only the middle is resized


class BrokenImage(ValueError):
    """A file that cannot be decoded; the message has its path and why."""


def check_channels(channels: int) -> None:
    """Raises ValueError unless images can have as many channels."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB) (got {channels})")


@dataclass(frozen=True)
class Decoder:
    """Decodes, resizes the shorter side to `side` and cuts the middle out.

    Attributes:
        side: height and width of what comes out, in pixels.
        channels: 3, RGB; or 1, grey.
        interpolation: how it is resized, by Pillow's name: `bilinear` or `bicubic` (what a timm model's data config may say).
    """

    side: int
    channels: int = 3
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side must be at least 1 pixel (got {self.side})")
        check_channels(self.channels)

    @cached_property
    def _transform(self) -> v2.Transform:
        return v2.Compose([v2.Resize(self.side, InterpolationMode(self.interpolation)), v2.CenterCrop(self.side), v2.PILToTensor()])

    def __call__(self, path: str | Path) -> np.ndarray:
        """Pixels, uint8 (channels, side, side). Raises `BrokenImage`."""
        image = open_image(path, self.channels)
        short, long = sorted(image.size)
        if long > STRIP * short:  # resized whole, a strip of one pixel by 50,000 would take gigabytes
            left = (long - STRIP * short) // 2
            image = image.crop((left, 0, long - left, short) if image.width == long else (0, left, short, long - left))
        pixels: np.ndarray = self._transform(image).numpy()
        return pixels


def open_image(path: str | Path, channels: int = 3) -> Image.Image:
    """An image, decoded, in mode RGB or L. What is transparent is seen on white.

    Raises:
        BrokenImage: the file is missing, no image, truncated, or so large that it may be meant to fill the memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # Pillow's remarks on odd EXIF and TIFF tags
            with Image.open(path) as file:
                file.load()
                image: Image.Image = file
                if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
                    grey = np.asarray(image).astype(np.int64)  # 16 bits, which Pillow would clip to 255
                    image = Image.fromarray(np.where(grey == file.info.get("transparency", -1), 255, grey >> 8).astype(np.uint8))
                elif image.has_transparency_data:
                    over = image.convert("RGBA")
                    image = Image.new("RGBA", over.size, "white")
                    image.alpha_composite(over)
                return image.convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError:
        size = Path(path).stat().st_size
        raise BrokenImage(f"{path}: {'it is not an image' if size else 'it is empty'}") from None
    except Exception as error:  # in a damaged file, Pillow may stumble over anything: AssertionError, TypeError, struct.error
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise BrokenImage(f"{path}: {why}") from None
