"""Write an embedded set out as a folder of PNG files, `train/<class>/*.png` and `val/<class>/*.png`.

    python datasets/export.py icons --classes 150 --out photos

For trying on files what is meant for files, and for using the set with other software. Grey ink is dark on white; with `--colour` it is of
a dark colour on paper of a bright one, both drawn at random for each image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from l3rs.data.embedded import load_embedded
from l3rs.finetuning.workload import EMBEDDED


def export(name: str, out: Path, classes: int | None = None, colour: bool = False) -> int:
    """Writes the first `classes` classes of the set, or all, and gives the number of images."""
    images = load_embedded(name)
    written = 0
    for label, sides in tqdm(list(zip(images.classes, images.by_class, strict=True))[:classes], unit="class"):
        for side, members in zip(("train", "val"), sides, strict=True):
            folder = out / side / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in members.tolist():
                pixels = images.pixels[i].permute(1, 2, 0).numpy()
                if pixels.shape[2] == 1:
                    pixels = coloured(pixels[:, :, 0], i) if colour else 255 - pixels[:, :, 0]
                Image.fromarray(pixels).save(folder / f"{i}.png")
            written += len(members)
    return written


def coloured(ink: np.ndarray, number: int) -> np.ndarray:
    """Colours grey ink, uint8 (height, width), as (height, width, 3); the image's number decides."""
    rng = np.random.default_rng(number)
    dark, bright = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
    share = ink[..., None] / 255
    return np.rint(share * dark + (1 - share) * bright).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=EMBEDDED, help="which")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--colour", action="store_true", help="draws ink and paper in colours")
    parser.add_argument("--classes", type=int, help="only the first so many classes")
    args = parser.parse_args()
    if args.classes is not None and args.classes < 1:
        parser.error(f"--classes must be at least 1 (got {args.classes})")
    try:
        print(f"Wrote {export(args.set, args.out, args.classes, args.colour)} images to {args.out}.")
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
