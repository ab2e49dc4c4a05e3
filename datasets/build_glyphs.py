"""Build the Glyphs set: 194 characters as grey 32 px pictures, one a typeface, from the npm packages `@fontsource/*`.

    mkdir -p build/fonts && cp datasets/glyphs-fonts.json build/fonts/package.json
    npm install --ignore-scripts --prefix build/fonts
    python datasets/build_glyphs.py --source build/fonts/node_modules

writes `pixels.xz`, `index.csv.xz`, `split.json`, `ATTRIBUTION.md` and `SHA256SUMS` into `l3rs/data/glyphs/`, the same bytes each
time. `--check` rebuilds and compares with what is there instead. Every list it follows is in `datasets/glyphs.yaml`; the packages
and their versions are in `datasets/glyphs-fonts.json`. Made with Pillow 13.0.0, whose FreeType (2.14.3) draws the outlines.

A character is cut to its bounding box, scaled until its longer side is 26 pixels, and centred: as large as icons are drawn, so
that 32 px hold as much of it as they can. Where it stood on the line and how large it was there tell a comma from an apostrophe
and `c` from `C`, and little else; such pairs are left out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
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
    write_set,
)
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from l3rs.data.embedded import SETS

SIDE = SETS["glyphs"].side
PRETRAIN = 75  # classes; all others are for judging
VALIDATION_SHARE = 0.35  # of the family groups
EM = 256  # pixels, the size in which an outline is drawn: about ten times what is kept, so that averaging leaves no stairs
LONGER_SIDE = 26  # pixels of 32: as most icons do, it leaves 3 pixels around for a shift by augmentation
# Pearson correlation of two drawings of one class, each cut to its bounding box and resampled to 16 x 16, from which they count
# as one drawing. Chosen by looking at pairs: above it no difference can be seen. (For icons it is 0.97; typefaces mean to agree.)
NEAR_DUPLICATE = 0.995
OFL = "https://openfontlicense.org"
STYLES = {400: "", 700: " bold"}  # what a weight adds to the name of an image


@dataclass(frozen=True)
class Glyph(Drawing):
    """One character of one typeface: its family, code point and style (`U+0041 bold`), class, and the font file that has it."""

    character: str
    file: Path


def class_name(character: str) -> str:
    """`latin-a`, `greek-capital-omega`, `digit-7`, `sign-ampersand`: the character's Unicode name, shortened and safe as a file name."""
    if character.isascii() and character.isdigit():
        return f"digit-{character}"
    name = unicodedata.name(character)
    for word in ("SMALL LETTER ", "LETTER ", "CHARACTER "):
        name = name.replace(word, "")
    if not character.isalpha():
        name = "SIGN " + name.replace(" SIGN", "")
    return name.lower().replace(" ", "-")


def family_groups(families: set[str], related: list[list[str]]) -> dict[str, str]:
    """Which group each family belongs to: itself, or the first family of its list in `related`."""
    groups = {family: family for family in families}
    for members in related:
        groups |= {member: members[0] for member in members if member in families}
    return groups


def copyright_of(package: Path) -> str:
    """The copyright line of a family's package; SystemExit when its licence is not the SIL Open Font License 1.1."""
    text = (package / "LICENSE").read_text()
    if "SIL OPEN FONT LICENSE Version 1.1" not in text:
        raise SystemExit(f"{package.name}: its LICENSE is not OFL-1.1")
    first = re.split(r"\s+\S+\.ttf: ", text.splitlines()[0])[0]  # the line goes on with the same for each font file
    return " ".join(first.split()).replace("|", "/")


@cache
def characters_of(file: Path) -> frozenset[int]:
    """The code points that a font file has a glyph for."""
    with TTFont(file, lazy=True) as font:
        return frozenset(font.getBestCmap())


@lru_cache(maxsize=8)
def typeface(file: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, EM, layout_engine=ImageFont.Layout.BASIC)  # no shaping: letters as they stand alone


def font_files(package: Path, weight: int) -> list[Path]:
    """The upright font files of a weight, one for each subset of characters, but for the numbered parts of a large one."""
    files = sorted((package / "files").glob(f"{package.name}-*-{weight}-normal.woff"))
    return [f for f in files if not f.name.removeprefix(f"{package.name}-").split("-")[0].isdigit()]


def read_glyphs(source: Path, lists: dict) -> list[Glyph]:
    """Every character of every alphabet in every typeface that has it."""
    glyphs = []
    for alphabet in lists["alphabets"]:
        for family in lists["families"][alphabet["families"]]:
            for weight in alphabet["weights"]:
                files = font_files(source / "@fontsource" / family, weight)
                for character in alphabet["characters"]:
                    label = lists["names"].get(character) or class_name(character)
                    file = next((f for f in files if ord(character) in characters_of(f)), None)
                    if file and family not in lists["not_these"].get(character, ()):
                        name = f"U+{ord(character):04X}{STYLES[weight]}"
                        glyphs.append(Glyph(family, name, label, character, file))
    return glyphs


def render(glyph: Glyph) -> np.ndarray | None:
    """Ink of a character, uint8 (32, 32), in 16 levels: 0 is empty, 255 is full ink; None where its outline is empty."""
    font = typeface(glyph.file)
    left, top, right, bottom = font.getbbox(glyph.character)
    large = Image.new("L", (max(int(right - left), 1), max(int(bottom - top), 1)), 0)
    ImageDraw.Draw(large).text((-left, -top), glyph.character, fill=255, font=font)
    box = large.getbbox()
    if box is None:
        return None
    large = large.crop(box)
    width, height = (max(1, round(side * LONGER_SIDE / max(large.size))) for side in large.size)
    picture = Image.new("L", (SIDE, SIDE), 0)
    picture.paste(large.resize((width, height), Image.Resampling.BOX), ((SIDE - width) // 2, (SIDE - height) // 2))
    return quantize(np.asarray(picture))


def attribution(source: Path, versions: dict[str, str], used: Counter[str], groups: dict[str, str], held_out: set[str]) -> str:
    """The credits page: every family that gave an image."""
    lines = [
        "# Attribution",
        "",
        f"The Glyphs set holds {sum(used.values()):,} characters drawn with {len(used)} typeface families, rendered at {SIDE} px in grey",
        f"from the npm packages `@fontsource/*`. Every family is under the [SIL Open Font License 1.1]({OFL}). Families in one",
        "group share a design; a group is wholly on the train or on the validation side.",
        "",
        "| family | copyright | licence | version | images | group | side |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, count in sorted(used.items()):
        side = "validation" if groups[family] in held_out else "train"
        who, version = copyright_of(source / "@fontsource" / family), versions[family]
        lines.append(f"| `{family}` | {who} | [OFL-1.1]({OFL}) | {version} | {count} | {groups[family]} | {side} |")
    return "\n".join(lines) + "\n"


def read_lists() -> dict:
    """The curated lists; SystemExit when two classes look alike."""
    lists = yaml.safe_load((ROOT / "datasets" / "glyphs.yaml").read_text())
    characters = {c for alphabet in lists["alphabets"] for c in alphabet["characters"]}
    for alike in lists["look_alikes"]:
        if len(characters & set(alike)) > 1:
            raise SystemExit(f"glyphs.yaml: {sorted(characters & set(alike))} are classes and look alike")
    return lists


def pinned_versions(source: Path) -> dict[str, str]:
    """Family to the version of its package; SystemExit when `source` holds another."""
    pinned = json.loads((ROOT / "datasets" / "glyphs-fonts.json").read_text())["dependencies"]
    for package, version in pinned.items():
        found = json.loads((source / package / "package.json").read_text())["version"]
        if found != version:
            raise SystemExit(f"{source} holds {package} {found}; the set is built from {version}")
    return {package.removeprefix("@fontsource/"): version for package, version in pinned.items()}


def build(source: Path, out: Path) -> None:
    lists = read_lists()
    versions = pinned_versions(source)
    groups = family_groups(set(versions), lists["related_families"])
    glyphs = read_glyphs(source, lists)
    rendered = [render(g) for g in glyphs]
    glyphs = [g for g, ink in zip(glyphs, rendered, strict=True) if ink is not None]
    pixels = np.stack([ink for ink in rendered if ink is not None])
    shapes = np.stack([shape_of(ink) for ink in pixels])

    held_out = draw_validation(groups.values(), VALIDATION_SHARE, lists["seed"])
    validation = np.array([groups[g.set] in held_out for g in glyphs])
    keep = drop_copies(glyphs, pixels, shapes, validation, NEAR_DUPLICATE)
    print(f"{len(glyphs)} drawings, {int((~keep).sum())} of them copies; {validation[keep].mean():.0%} for validation")

    classes = sorted(classes_with_enough(glyphs, validation, keep))
    too_few = sorted({g.label for g in glyphs} - set(classes))
    if too_few:
        raise SystemExit(f"not enough images: {too_few}")
    glyphs, pixels, validation = [g for g, k in zip(glyphs, keep, strict=True) if k], pixels[keep], validation[keep]
    sizes = {"pretrain": PRETRAIN, "meta-train": 0, "meta-validation": 0, "meta-test": len(classes) - PRETRAIN}
    split = {"dataset": "glyphs", "seed": lists["split_seed"], **draw_split(classes, sizes, lists["split_seed"])}
    used = Counter(g.set for g in glyphs)
    write_set(out, glyphs, pixels, validation, split, attribution(source, versions, used, groups, held_out))


if __name__ == "__main__":
    command(__doc__, build, "glyphs", "build/fonts/node_modules", "@fontsource", "npm install first, as --help says")
