"""Writing an embedded data set: what the scripts in `datasets/` share once they have drawn their pictures.

A script gives one `Drawing` and one picture an image, of ink, uint8 (32, 32), or of colours, uint8 (3, side, side), and says which
images are for validation. This module drops copies, finds the classes with enough images, draws the class split and writes the files,
the same bytes each time.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import lzma
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from l3rs.data.embedded import COLUMNS, INK

ROOT = Path(__file__).resolve().parent.parent
MIN_VALIDATION, MIN_TRAIN = 8, 16  # images a class, as an evaluation batch of 25 classes x 8 needs


@dataclass(frozen=True)
class Drawing:
    """Where an image comes from and what it shows.

    Attributes:
        set: the icon set or typeface family that it is from.
        name: what it is called there.
        label: its class.
    """

    set: str
    name: str
    label: str


def quantize(ink: np.ndarray) -> np.ndarray:
    """Ink, uint8 from 0 to 255, in 16 levels: more cannot be seen at 32 px and would not fit the package."""
    return ((ink.astype(np.uint16) + INK // 2) // INK * INK).astype(np.uint8)


def shape_of(ink: np.ndarray) -> np.ndarray:
    """A centred unit vector, float32 (256,), that stays the same when a drawing is shifted or scaled; products are correlations."""
    rows, cols = np.flatnonzero(ink.max(1) > 64), np.flatnonzero(ink.max(0) > 64)
    if not len(rows) or not len(cols):
        return np.zeros(256, np.float32)
    cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1])
    side = max(cut.size)
    square = Image.new("L", (side, side), 0)
    square.paste(cut, ((side - cut.size[0]) // 2, (side - cut.size[1]) // 2))
    v = np.asarray(square.resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel()
    v -= v.mean()
    return v / np.float32(max(float(np.linalg.norm(v)), 1e-6))


def draw_validation(groups: Iterable[str], share: float, seed: int) -> set[str]:
    """The groups whose images are for validation: `share` of them, drawn by `seed`."""
    names = sorted(set(groups))
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    return {names[j] for j in shuffled[: round(share * len(names))]}


def drop_copies(
    drawings: Sequence[Drawing], pixels: np.ndarray, shapes: np.ndarray, validation: np.ndarray, near_duplicate: float
) -> np.ndarray:
    """Keeps one of each near duplicate within a class, and no validation image that is on the train side too: bool (n,).

    Near duplicates, whose `shapes` correlate by `near_duplicate` or more, are looked for within a class (a plus and a first-aid
    cross may be the same shape and rightly be two classes); exact copies in all of them.
    """
    keep = np.ones(len(drawings), bool)
    train_copies = {pixels[i].tobytes() for i in np.flatnonzero(~validation)}
    by_class = defaultdict(list)
    for i, drawing in enumerate(drawings):
        if validation[i] and pixels[i].tobytes() in train_copies:
            keep[i] = False
        else:
            by_class[drawing.label].append(i)
    for members in by_class.values():
        train_first = sorted(members, key=lambda i: bool(validation[i]))
        similar = shapes[train_first] @ shapes[train_first].T >= near_duplicate
        for j, i in enumerate(train_first):
            keep[i] = not (similar[j, :j] & keep[train_first[:j]]).any()
    return keep


def classes_with_enough(
    drawings: Sequence[Drawing], validation: np.ndarray, keep: np.ndarray, least: tuple[int, int] = (MIN_TRAIN, MIN_VALIDATION)
) -> list[str]:
    """The classes with at least so many kept images on the two sides, in the order in which they first appear."""
    sides: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for i in np.flatnonzero(keep).tolist():
        sides[drawings[i].label][int(validation[i])] += 1
    return [label for label, (train, val) in sides.items() if train >= least[0] and val >= least[1]]


def draw_split(classes: Sequence[str], sizes: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Purpose to its classes: `sizes` of them, drawn by `seed` from `classes`."""
    draw = np.random.Generator(np.random.PCG64(seed)).permutation(len(classes))
    bounds = np.cumsum([0, *sizes.values()])
    return {purpose: sorted(classes[j] for j in draw[a:b]) for purpose, a, b in zip(sizes, bounds, bounds[1:], strict=False)}


def compress(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


def pack(pixels: np.ndarray) -> dict[str, bytes]:
    """The file of the pixels: levels of ink packed by xz, or colours as one picture without loss, WebP, with `COLUMNS` images a row."""
    if pixels.ndim == 3:
        return {"pixels.xz": compress((pixels // INK).tobytes())}
    n, channels, height, width = pixels.shape
    rows = -(-n // COLUMNS)
    filled = np.concatenate([pixels, np.full((rows * COLUMNS - n, channels, height, width), 255, np.uint8)])
    apart = filled.reshape(rows, COLUMNS, channels, height, width)
    sheet = apart.transpose(0, 3, 1, 4, 2).reshape(rows * height, COLUMNS * width, channels)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(file, "WEBP", lossless=True, quality=100, method=6)
    return {"pixels.webp": file.getvalue()}


def write_set(
    out: Path, drawings: Sequence[Drawing], pixels: np.ndarray, validation: np.ndarray, split: dict[str, object], about: str
) -> None:
    """Writes the five files of a set; images are ordered by class, then side, then set and name.

    Args:
        out: the folder, made if it is not there.
        drawings: one for each image.
        pixels: uint8 (n, 32, 32), in 16 levels of ink; or colours, uint8 (n, 3, side, side).
        validation: bool (n,).
        split: what `split.json` holds: `dataset`, `seed` and the classes by purpose.
        about: the text of `ATTRIBUTION.md`.
    """
    order = sorted(range(len(drawings)), key=lambda i: (drawings[i].label, bool(validation[i]), drawings[i].set, drawings[i].name))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class", "side", "set", "name"])
    for i in order:
        side = "validation" if validation[i] else "train"
        writer.writerow([drawings[i].label, side, drawings[i].set, drawings[i].name])
    files = {
        **pack(pixels[order]),
        "index.csv.xz": compress(table.getvalue().encode()),
        "split.json": (json.dumps(split, indent=1) + "\n").encode(),
        "ATTRIBUTION.md": about.encode(),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    out.mkdir(parents=True, exist_ok=True)
    for name, data in {**files, "SHA256SUMS": sums.encode()}.items():
        (out / name).write_bytes(data)
    classes, total = {d.label for d in drawings}, sum(len(d) for d in files.values())
    print(f"{len(order)} images, {len(classes)} classes, {total / 2**20:.2f} MiB in {out}")


def check(build: Callable[[Path], None], out: Path) -> str | None:
    """What differs between the files in `out` and a fresh `build`, or None."""
    with tempfile.TemporaryDirectory() as fresh:
        build(Path(fresh))
        names = ["SHA256SUMS", *(line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines())]
        wrong = [n for n in names if (Path(fresh) / n).read_bytes() != (out / n).read_bytes()]
    return f"differ from a fresh build: {wrong}" if wrong else None


def svg_of(icon: Mapping[str, Any], data: Mapping[str, Any], side: int) -> str:
    """An icon of a set of Iconify, `data`, as a picture of `side` pixels; what it leaves out the set says."""
    view = " ".join(str(icon.get(k, data.get(k, usual))) for k, usual in (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" width="{side}" height="{side}">{icon["body"]}</svg>'


def command(about: str | None, build: Callable[[Path, Path], None], name: str, source: str, inside: str, cure: str) -> None:
    """The command line of a script that builds the set `name` from a folder.

    Args:
        about: the script's docstring.
        build: from a folder, into another.
        source: the folder, if none is given.
        inside: what lies there.
        cure: what to do where it does not.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path(source), help=f"the folder that holds {inside} (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "l3rs" / "data" / name, help=f"(default: l3rs/data/{name})")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare with --out instead of writing it")
    args = parser.parse_args()
    if not (args.source / inside).exists():
        parser.error(f"--source must be a folder that holds {inside} (got {args.source}): {cure}")
    if not args.check:
        build(args.source, args.out)
    elif wrong := check(lambda fresh: build(args.source, fresh), args.out):
        sys.exit(wrong)
    else:
        print("identical to a fresh build")
