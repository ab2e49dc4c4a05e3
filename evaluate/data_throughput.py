"""How fast tasks are drawn, and their batches made: from a decoded cache, and by decoding JPEG files, in one run.

    python evaluate/data_throughput.py

writes `evaluate/results/data_throughput.csv`. The JPEG files are made here: 500 x 375 pixels, ImageNet's median, with the
spectrum of photographs, about 120 kB each. A batch is 128 images, cut out at random and mirrored, at 64 and at 224 px; both ways do
the same after decoding, on one thread. Tasks are drawn on Icons, and on labels of the size of ImageNet25: 500 classes of 1,300 images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from options import RESULTS
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from tqdm import trange

from l3rs.data import ImageSet, load_icons
from l3rs.data.cache import build, open_cache
from l3rs.data.decode import Decoder
from l3rs.data.icons import icons_split
from l3rs.data.trees import ImageTree
from l3rs.finetuning.tasks import TaskConfig, TaskDistribution

IMAGES, BATCH = 1024, 128
PHOTO, QUALITY = (500, 375), 90  # pixels


def write_photos(folder: Path, count: int) -> ImageTree:
    """Pictures whose spectrum falls as that of photographs, as JPEG files in one class."""
    width, height = PHOTO
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).clip(1 / width)
    for i in trange(count, desc="writing photos", unit="image"):
        rng = np.random.default_rng(i)
        spectrum = rng.standard_normal((3, *frequency.shape)) / frequency * np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
        picture = np.fft.irfft2(spectrum, (height, width)).transpose(1, 2, 0)
        picture = 128 + 50 * picture / picture.std() + rng.normal(0, 6, picture.shape)  # and a sensor's noise
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=QUALITY)
    return ImageTree(folder, ("photo",), tuple(f"{i}.jpg" for i in range(count)), np.zeros(count, np.int64), np.zeros(count, bool))


def seconds(action: Callable[[int], object], i: int) -> float:
    """The time of one action, which is told its number."""
    started = time.perf_counter()
    action(i)
    return time.perf_counter() - started


def batches(side: int, tree: ImageTree, folder: Path, rows: list[dict[str, object]]) -> None:
    """Images a second through either way, on one thread, interleaved."""
    decoder = Decoder(round(side * 256 / 224))
    cache = folder / f"cache-{side}"
    build(tree, decoder, cache, workers=1)
    pixels, labels, validation = open_cache(cache, tree.classes)
    numbers = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    images = ImageSet("photos", pixels, labels, tree.classes, validation, *numbers, side=side, mirror=True)
    rng = np.random.default_rng(0)
    order = [torch.from_numpy(rng.choice(IMAGES, BATCH, replace=False)) for _ in range(8)]
    crops = [
        torch.from_numpy(np.stack([rng.integers(0, images.margin[0] + 1, BATCH) for _ in range(2)] + [rng.integers(0, 2, BATCH)], 1))
        for _ in order
    ]

    def decoded(i: int) -> torch.Tensor:
        fresh = torch.from_numpy(np.stack([decoder(tree.root / tree.files[j]) for j in order[i].tolist()]))
        return replace(images, pixels=fresh).inputs(torch.arange(BATCH), crops[i])

    def cached(i: int) -> torch.Tensor:
        return images.inputs(order[i], crops[i])

    assert torch.equal(decoded(0), cached(0))
    taken = [(seconds(decoded, i), seconds(cached, i)) for i in range(len(order))]
    for way, median in zip(("decoding JPEG files", "from the cache"), np.median(taken, axis=0), strict=True):
        rows.append({"what": f"batches of {BATCH} at {side} px, {way}", "images_per_second": round(BATCH / median, 1)})


def draws(rows: list[dict[str, object]]) -> None:
    """Seconds that 1,000 tasks of 100 steps take to draw."""
    count, per_class = 500, 1300
    labels = torch.arange(count).repeat_interleave(per_class + 50)
    large = ImageSet(
        "imagenet25",
        torch.zeros(1, 3, 73, 73, dtype=torch.uint8).expand(len(labels), -1, -1, -1),
        labels,
        tuple(f"n{i:08d}" for i in range(count)),
        torch.arange(per_class + 50).repeat(count) >= per_class,
        (0.5,) * 3,
        (0.25,) * 3,
        side=64,
        mirror=True,
    )
    icons = TaskDistribution(load_icons(), icons_split().classes["meta-train"])
    imagenet = TaskDistribution(large, large.classes, TaskConfig(25, 128, 512))
    for what, tasks in (("Icons25", icons), ("500 classes of 1,300 images", imagenet)):
        tasks.draw(0, 100)
        started = time.perf_counter()
        for seed in range(1000):
            tasks.draw(seed, 100)
        rows.append({"what": f"1,000 tasks of 100 steps from {what}", "seconds": round(time.perf_counter() - started, 2)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "data_throughput.csv", help="file for the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    draws(rows)
    with tempfile.TemporaryDirectory() as folder:
        tree = write_photos(Path(folder), IMAGES)
        size = sum((tree.root / f).stat().st_size for f in tree.files) / IMAGES
        print(f"JPEG files of {size / 1000:.0f} kB on average")
        for side in (64, 224):
            batches(side, tree, Path(folder), rows)
    table = pd.DataFrame(rows)
    table.to_csv(args.out, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
