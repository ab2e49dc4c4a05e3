"""What names in folders of images mean: which are a system's own, which are the sides of a data set, which differ only in form."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping

from PIL import Image

from l3rs.text import printable

# Of Synology, QNAP, Windows, macOS, Unix and Python; what begins with a dot is passed over too.
SYSTEM = {
    "@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin", "recycler", "system volume information", "__macosx", "lost+found",
    "__pycache__",
}  # fmt: skip
# Pillow only tells these apart, or starts another program, as Ghostscript: a page of PostScript is a program itself.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "validation", "valid"), ("test", "testing")
_SIDE = re.compile(
    rf"(?:\w+[_\- ])?({'|'.join(TRAIN + VALIDATION + TEST)})(?:[_\- ]?(?:set|data|dataset|images?|imgs|split)|[_\- ]?\d+)?", re.IGNORECASE
)


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems put among others."""
    return name.startswith(".") or name.lower() in SYSTEM


def extension_of(name: str) -> str:
    """The extension in small letters, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def image_extensions() -> frozenset[str]:
    """Extensions of the formats that Pillow decodes; one that is registered later, as pillow-heif does, is among them."""
    named = Image.registered_extensions()  # MPO is opened as JPEG
    return frozenset(e for e, kind in named.items() if (kind in Image.OPEN or kind == "MPO") and kind not in NOT_DECODED)


def side_of(name: str) -> str | None:
    """`train`, `validation` or `test` if a folder is called like that side of a data set, as `Training` or `seg_test`; else None."""
    found = _SIDE.fullmatch(name)
    if found is None:
        return None
    word = found[1].lower()
    return "train" if word in TRAIN else "validation" if word in VALIDATION else "test"


def one_form(name: str) -> str:
    """The name in Unicode's composed form (NFC): macOS may store an é as an e and an accent, which looks the same."""
    return unicodedata.normalize("NFC", name)


def in_words(passed_over: Mapping[str, int]) -> str:
    """Extensions and their numbers, as `3 .txt, 1 without an extension`; the most frequent first."""
    ranked = sorted(passed_over.items(), key=lambda row: (-row[1], row[0]))
    shown = ", ".join(f"{count} {printable(extension) or 'without an extension'}" for extension, count in ranked[:8])
    rest = sum(count for _, count in ranked[8:])
    return f"{shown}, {rest} others" if rest else shown
