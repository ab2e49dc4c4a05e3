"""Build the Icons set: 440 classes of grey 32 px icons, drawn by hundreds of designers, from the npm package `@iconify/json`.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz
    python datasets/build_icons.py --source package

writes `pixels.xz`, `index.csv.xz`, `split.json`, `ATTRIBUTION.md` and `SHA256SUMS` into `l3rs/data/icons/`, the same bytes
each time. `--check` rebuilds and compares with what is there instead. Every list it follows is in `datasets/icons.yaml`.
"""

from __future__ import annotations

import io
import json
import multiprocessing
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
import yaml
from embedded_set import (
    ROOT,
    Drawing,
    classes_with_enough,
    command,
    draw_split,
    draw_validation,
    drop_copies,
    quantize,
    shape_of,
    svg_of,
    write_set,
)
from PIL import Image

from l3rs.data.embedded import SETS

SIDE = SETS["icons"].side
CLASSES = {"pretrain": 200, "meta-train": 100, "meta-validation": 40, "meta-test": 100}
SPLIT_SEED = 0  # of the draw of the classes
MAX_PER_SET = 3  # drawings of one class by one icon set: weights and sizes of one drawing teach little
MIN_GROUPS = 6  # designer groups that draw a name before it is rendered at all
VALIDATION_SHARE = 0.35  # of the designer groups
# Pearson correlation of two drawings of one class, each cut to its bounding box and resampled to 16 x 16, from which they count
# as one drawing. Chosen by looking at pairs: above it are retraced copies, and shapes so plain (a minus) that all copies agree.
NEAR_DUPLICATE = 0.97


@dataclass(frozen=True)
class Icon(Drawing):
    """One icon before rendering: the prefix of its icon set, what it is called there, its class, and its SVG."""

    svg: str


def class_name(name: str, lists: dict) -> str:
    """The icon's name without style words, and with synonyms merged: `cog-outline-24` is `settings`."""
    words = name.split("-")
    while len(words) > 1 and words[-1] in lists["suffixes"]:
        words.pop()
    if len(words) > 1 and words[0] in lists["prefixes"]:
        words = words[1:]
    joined = "-".join(words)
    return lists["synonyms"].get(joined, joined)


def read_lists(path: Path) -> dict:
    """The curated lists, with the shapes that the rest of this script looks things up in."""
    raw = yaml.safe_load(path.read_text())
    synonyms = {str(other): str(group[0]) for group in raw["synonyms"] for other in group[1:]}
    banned = {str(n) for n in raw["brands"] + raw["excluded"]}
    clash = banned & (set(synonyms) | set(synonyms.values()))
    if clash:
        raise SystemExit(f"{path.name}: both merged and left out: {sorted(clash)}")
    return {
        **raw,
        "suffixes": {str(s) for s in raw["style_suffixes"]},
        "prefixes": {str(s) for s in raw["style_prefixes"]},
        "synonyms": synonyms,
        "banned": banned,
    }


def permitted_sets(collections: dict, lists: dict) -> dict:
    """Monochrome icon sets under a permissive licence, without trade-mark collections, by prefix."""
    return {
        prefix: info
        for prefix, info in sorted(collections.items())
        if not info["palette"]
        and info["license"].get("spdx") in lists["licences"]
        and info.get("category") not in lists["skip_categories"]
        and prefix not in lists["skip_sets"]
    }


def designer_groups(sets: dict, related: list[list[str]]) -> dict[str, str]:
    """Which group each icon set belongs to: sets are joined by a shared author or by `related`; named by its first set."""
    parent = {prefix: prefix for prefix in sets}

    def root(x: str) -> str:
        while parent[x] != x:
            x = parent[x]
        return x

    by_author = defaultdict(list)
    for prefix, info in sets.items():
        by_author[info["author"]["name"]].append(prefix)
    for members in [*by_author.values(), *related]:
        known = [m for m in members if m in sets]
        for other in known[1:]:
            low, high = sorted((root(known[0]), root(other)))
            parent[high] = low
    return {prefix: root(prefix) for prefix in sets}


def read_icons(source: Path, sets: dict, lists: dict) -> list[Icon]:
    """Every visible, still icon of these sets whose class name is not banned, in a fixed order."""
    icons = []
    for prefix in sets:
        data = json.loads((source / "json" / f"{prefix}.json").read_text())
        for name, icon in sorted(data["icons"].items()):
            label = class_name(name, lists)
            if icon.get("hidden") or label in lists["banned"] or "<animate" in icon["body"]:
                continue
            icons.append(Icon(prefix, name, label, svg_of(icon, data, SIDE)))
    return icons


def render(svg: str) -> np.ndarray:
    """Ink of an icon, uint8 (32, 32): 0 is empty, 255 is full ink, in 16 levels."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    ink = 255 - np.asarray(paper.convert("L"), dtype=np.uint8)
    if ink.shape != (SIDE, SIDE):  # a viewBox that is not square is rendered within the square
        out = np.zeros((SIDE, SIDE), np.uint8)
        top, left = (SIDE - ink.shape[0]) // 2, (SIDE - ink.shape[1]) // 2
        out[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        ink = out
    return quantize(ink)


def try_render(svg: str) -> np.ndarray | None:
    """`render`, or None for a drawing that the renderer refuses or that leaves the paper (nearly) empty."""
    try:
        ink = render(svg)
    except ValueError:
        return None
    return ink if 0.01 * 255 * ink.size < ink.sum() < 0.9 * 255 * ink.size else None


def drop_within_sets(icons: list[Icon], shapes: np.ndarray) -> np.ndarray:
    """Keeps at most `MAX_PER_SET` different drawings of a class by each set: bool (n,)."""
    keep = np.zeros(len(icons), bool)
    taken: dict[tuple[str, str], list[int]] = defaultdict(list)
    # Short names first: `bell` before `bell-outline-24`.
    for i in sorted(range(len(icons)), key=lambda i: (icons[i].set, icons[i].label, len(icons[i].name), icons[i].name)):
        before = taken[icons[i].set, icons[i].label]
        if len(before) < MAX_PER_SET and all(shapes[i] @ shapes[j] < NEAR_DUPLICATE for j in before):
            before.append(i)
            keep[i] = True
    return keep


def choose_classes(icons: list[Icon], validation: np.ndarray, keep: np.ndarray, groups: dict[str, str]) -> list[str]:
    """The classes drawn by most designer groups among those with enough images on both sides."""
    drawn_by = defaultdict(set)
    for i in np.flatnonzero(keep):
        drawn_by[icons[i].label].add(groups[icons[i].set])
    enough = classes_with_enough(icons, validation, keep)
    wanted = sum(CLASSES.values())
    if len(enough) < wanted:
        raise SystemExit(f"only {len(enough)} classes have enough images; {wanted} are wanted")
    return sorted(sorted(enough, key=lambda c: (-len(drawn_by[c]), c))[:wanted])


def attribution(sets: dict, used: dict[str, int], groups: dict[str, str], held_out: set[str], lists: dict) -> str:
    """The credits page: every set that gave an image."""
    lines = [
        "# Attribution",
        "",
        f"The Icons set holds {sum(used.values()):,} drawings from {len(used)} icon sets, rendered at {SIDE} px in grey from the npm",
        f"package `{lists['package']}` {lists['version']}, which collects them unchanged. Each set stays under its own licence. Sets in",
        "one designer group share an author or draw on one another; a group is wholly on the train or on the validation side.",
        "",
        "| set | name | author | licence | version | images | designer group | side |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for prefix, count in sorted(used.items()):
        info = sets[prefix]
        author, licence = info["author"], info["license"]
        who = f"[{author['name']}]({author['url']})" if author.get("url") else author["name"]
        terms = f"[{licence['spdx']}]({licence['url']})" if licence.get("url") else licence["spdx"]
        side = "validation" if groups[prefix] in held_out else "train"
        lines.append(f"| `{prefix}` | {info['name']} | {who} | {terms} | {info.get('version', '')} | {count} | {groups[prefix]} | {side} |")
    return "\n".join(lines) + "\n"


def build(source: Path, out: Path) -> None:
    lists = read_lists(ROOT / "datasets" / "icons.yaml")
    version = json.loads((source / "package.json").read_text())["version"]
    if version != lists["version"]:
        raise SystemExit(f"{source} holds {lists['package']} {version}; the set is built from {lists['version']}")
    sets = permitted_sets(json.loads((source / "collections.json").read_text()), lists)
    groups = designer_groups(sets, lists["related_sets"])
    icons = read_icons(source, sets, lists)

    # Only names that enough groups draw can become a class; rendering the rest would be for nothing.
    drawn_by = defaultdict(set)
    for icon in icons:
        drawn_by[icon.label].add(groups[icon.set])
    icons = [i for i in icons if len(drawn_by[i.label]) >= MIN_GROUPS]
    print(f"{len(sets)} sets in {len(set(groups.values()))} designer groups; rendering {len(icons)} icons", flush=True)
    with multiprocessing.Pool() as pool:
        rendered = pool.map(try_render, [i.svg for i in icons], chunksize=256)
    icons = [icon for icon, ink in zip(icons, rendered, strict=True) if ink is not None]
    pixels = np.stack([ink for ink in rendered if ink is not None])
    shapes = np.stack([shape_of(ink) for ink in pixels])

    keep = drop_within_sets(icons, shapes)
    icons, pixels, shapes = [i for i, k in zip(icons, keep, strict=True) if k], pixels[keep], shapes[keep]

    held_out = draw_validation(groups.values(), VALIDATION_SHARE, lists["seed"])
    validation = np.array([groups[i.set] in held_out for i in icons])
    keep = drop_copies(icons, pixels, shapes, validation, NEAR_DUPLICATE)
    print(f"{len(icons)} drawings, {int((~keep).sum())} of them near duplicates; {validation[keep].mean():.0%} for validation")

    classes = choose_classes(icons, validation, keep, groups)
    chosen = set(classes)
    keep &= np.array([i.label in chosen for i in icons])
    icons, pixels, validation = [i for i, k in zip(icons, keep, strict=True) if k], pixels[keep], validation[keep]
    used: dict[str, int] = defaultdict(int)
    for icon in icons:
        used[icon.set] += 1
    split = {"dataset": "icons", "seed": SPLIT_SEED, **draw_split(classes, CLASSES, SPLIT_SEED)}
    write_set(out, icons, pixels, validation, split, attribution(sets, used, groups, held_out, lists))


if __name__ == "__main__":
    command(__doc__, build, "icons", "package", "collections.json", "unpack the npm package @iconify/json first, as --help says")
