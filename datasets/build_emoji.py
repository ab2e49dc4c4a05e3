"""Build the Emoji set: signs in colour, 64 px, each drawn by several vendors, from the npm packages `@iconify-json/*`.

    mkdir -p build/emoji && cp datasets/emoji-sets.json build/emoji/package.json
    npm install --ignore-scripts --prefix build/emoji
    python datasets/build_emoji.py --source build/emoji/node_modules

writes `pixels.webp`, `index.csv.xz`, `split.json`, `ATTRIBUTION.md` and `SHA256SUMS` into `l3rs/data/emoji/`, the same bytes each
time. `--check` rebuilds and compares with what is there instead. Every list it follows is in
`datasets/emoji.yaml`. Made with Pillow 13.0.0 and resvg_py 0.5.0.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
import yaml
from embedded_set import ROOT, Drawing, classes_with_enough, command, draw_split, drop_copies, svg_of, write_set
from PIL import Image

from l3rs.data.embedded import SETS

SIDE = SETS["emoji"].side
CLASSES = {"meta-train": 100, "meta-validation": 40, "meta-test": 100}  # all others are for pretraining
MIN_TRAIN = 4  # images a class: five sets, of three vendors, are on the train side
MIN_VALIDATION = 2  # images a class of a task; a class for pretraining has one
LEVELS = 32  # of each colour: more can hardly be seen and would not fit the package
NEAR_DUPLICATE = 0.99  # correlation, as `look_of` gives it, from which two drawings of a class count as one


@dataclass(frozen=True)
class Emoji(Drawing):
    """One drawing before it is rendered, as an SVG."""

    svg: str


def read_lists() -> dict:
    """The curated lists, with the shapes that the rest of this script looks things up in."""
    lists = yaml.safe_load((ROOT / "datasets" / "emoji.yaml").read_text())
    lists["excluded"] = re.compile("|".join(lists["excluded"]))
    lists["allowed"] = set(lists["allowed"])
    lists["alike"] = {name for group in lists["look_alikes"] for name in group[1:]}
    lists["synonyms"] = {plain(other): plain(group[0]) for group in lists["synonyms"] for other in group[1:]}
    return lists


def plain(name: str) -> str:
    """A name without hyphens, as fxemoji writes all names."""
    return name.replace("-", "")


def read_set(folder: Path, prefix: str, about: dict, lists: dict) -> tuple[list[Emoji], dict]:
    """The drawings of a set under plain names, aliases resolved, and what its package says of it.

    Raises:
        SystemExit: it is another version, or its licence is not permitted.
    """
    data, info = (json.loads((folder / f"{name}.json").read_text()) for name in ("icons", "info"))
    version = json.loads((folder / "package.json").read_text())["version"]
    if version != about["version"]:
        raise SystemExit(f"{folder} holds {prefix} {version}; the set is built from {about['version']}")
    if info["license"]["spdx"] not in lists["licences"]:
        raise SystemExit(f"{prefix} is under {info['license']['spdx']}, which is not one of {', '.join(lists['licences'])}")
    aliases = {name: alias["parent"] for name, alias in data.get("aliases", {}).items() if set(alias) <= {"parent", "hidden"}}
    drawings = []
    for name in sorted({*data["icons"], *aliases}):
        icon = data["icons"].get(name) or data["icons"].get(aliases[name])
        label = plain(re.sub(r"-\d$", "", name) if prefix == "streamline-emojis" else name)  # it draws some signs more than once
        label = lists["synonyms"].get(label, label)
        excluded = label in lists["alike"] or (lists["excluded"].search(label) and label not in lists["allowed"])
        if icon is None or "<animate" in icon["body"] or excluded:
            continue
        drawings.append(Emoji(prefix, name, label, svg_of(icon, data, SIDE)))
    return drawings, info


def render(svg: str) -> np.ndarray | None:
    """A drawing on white, uint8 (3, 64, 64), in 32 levels of each colour; None where the renderer refuses or it is (nearly) empty."""
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True))
    except ValueError:
        return None
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    paper = Image.new("RGBA", (SIDE, SIDE), "white")
    paper.alpha_composite(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
    pixels = np.asarray(paper.convert("RGB")).transpose(2, 0, 1).astype(np.float32)
    pixels = (np.round(pixels * (LEVELS - 1) / 255) * 255 / (LEVELS - 1)).round().astype(np.uint8)
    return pixels if (255 - pixels.astype(np.int16)).max(0).mean() > 0.03 * 255 else None


def look_of(pixels: np.ndarray) -> np.ndarray:
    """A centred unit vector, float32 (768,), of a drawing at 16 px; products are correlations."""
    v = pixels.reshape(3, 16, SIDE // 16, 16, SIDE // 16).mean((2, 4), dtype=np.float32).ravel()
    v -= v.mean()
    return v / np.float32(max(float(np.linalg.norm(v)), 1e-6))


def choose_classes(drawings: list[Emoji], validation: np.ndarray, keep: np.ndarray, seed: int) -> dict[str, list[str]]:
    """Purpose to its classes, which have enough drawings on both sides."""
    classes, for_tasks = (sorted(classes_with_enough(drawings, validation, keep, (MIN_TRAIN, least))) for least in (1, MIN_VALIDATION))
    print(f"{len(classes)} classes have enough drawings, {len(for_tasks)} of them for tasks")
    drawn = draw_split(for_tasks, CLASSES, seed)
    rest = sorted(set(classes) - {c for names in drawn.values() for c in names})
    return {"pretrain": rest, **drawn}


def attribution(used: Counter[str], infos: dict, lists: dict) -> str:
    """The credits page: every set that gave an image."""
    lines = [
        "# Attribution",
        "",
        f"The Emoji set holds {sum(used.values()):,} drawings from {len(used)} sets, rendered at {SIDE} px on white, in {LEVELS} levels of",
        "each colour, from the npm packages `@iconify-json/*`, which hold them unchanged. Each set stays under its own licence. Sets "
        "in one",
        "group are of one vendor; a group is wholly on the train or on the validation side.",
        "",
        "| set | name | author | licence | version | images | group | side |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for prefix, count in sorted(used.items()):
        info, ours = infos[prefix], lists["sets"][prefix]
        author, licence = info["author"], info["license"]
        lines.append(
            f"| `{prefix}` | {info['name']} | [{author['name']}]({author['url']}) | [{licence['spdx']}]({licence['url']}) | "
            f"{ours['version']} | {count} | {ours['group']} | {ours['side']} |"
        )
    return "\n".join(lines) + "\n"


def build(source: Path, out: Path) -> None:
    lists = read_lists()
    drawings, infos = [], {}
    for prefix, about in lists["sets"].items():
        mine, infos[prefix] = read_set(source / "@iconify-json" / prefix, prefix, about, lists)
        drawings += mine
    drawn_by = Counter(label for label, _ in {(d.label, d.set) for d in drawings})
    drawings = [d for d in drawings if drawn_by[d.label] >= MIN_TRAIN + 1]  # rendering the rest would be for nothing
    print(f"rendering {len(drawings)} drawings", flush=True)
    with multiprocessing.Pool() as pool:
        rendered = pool.map(render, [d.svg for d in drawings], chunksize=64)
    drawings = [d for d, p in zip(drawings, rendered, strict=True) if p is not None]
    pixels = np.stack([p for p in rendered if p is not None])
    looks = np.stack([look_of(p) for p in pixels])

    validation = np.array([lists["sets"][d.set]["side"] == "validation" for d in drawings])
    keep = drop_copies(drawings, pixels, looks, validation, NEAR_DUPLICATE)
    print(f"{len(drawings)} drawings, {int((~keep).sum())} of them near duplicates")
    split = choose_classes(drawings, validation, keep, lists["split_seed"])
    chosen = {c for names in split.values() for c in names}
    keep &= np.array([d.label in chosen for d in drawings])
    drawings, pixels, validation = [d for d, k in zip(drawings, keep, strict=True) if k], pixels[keep], validation[keep]
    about = attribution(Counter(d.set for d in drawings), infos, lists)
    write_set(out, drawings, pixels, validation, {"dataset": "emoji", "seed": lists["split_seed"], **split}, about)


if __name__ == "__main__":
    command(__doc__, build, "emoji", "build/emoji/node_modules", "@iconify-json", "npm install first, as --help says")
