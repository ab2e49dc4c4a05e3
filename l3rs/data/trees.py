"""Labelled image files on disk: folders of classes, and the layout of Places365. Nothing is decoded here."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

TRAIN, VALIDATION = ("train", "training"), ("val", "validation", "valid")  # what the two sides' folders are called


class TreeError(ValueError):
    """A folder that holds no images in a layout that is known; the message says what was looked for."""


@dataclass(frozen=True, eq=False)
class ImageTree:
    """Image files with their classes.

    Attributes:
        root: the folder that `files` are relative to.
        classes: class ids.
        files: relative paths, with `/` on every system.
        labels: int64 (N,), indices into `classes`.
        validation: bool (N,); True on the validation side.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    validation: np.ndarray

    def counts(self) -> dict[str, tuple[int, int]]:
        """Class id to its numbers of train and of validation images."""
        n = len(self.classes)
        train, held_out = (np.bincount(self.labels[self.validation == side], minlength=n) for side in (False, True))
        return {c: (int(train[i]), int(held_out[i])) for i, c in enumerate(self.classes)}


def read_tree(dataset: str, root: str | Path, seed: int = 0, classes: Collection[str] | None = None) -> ImageTree:
    """The image files below `root`.

    Args:
        dataset: `places365` is read by `read_places`, all others by `read_folder`.
        seed: draws the validation images where there is no validation folder.
        classes: only these; None is all.
    """
    return read_places(root, classes) if dataset == "places365" else read_folder(root, seed, classes)


def read_folder(root: str | Path, seed: int = 0, classes: Collection[str] | None = None, validation_share: float = 0.2) -> ImageTree:
    """Folders of classes, as torchvision's ImageFolder and ImageNet have them.

    Either `root/train/<class>/*` and `root/val/<class>/*`, or `root/<class>/*`: then `validation_share` of each class's images, drawn
    from (seed, class), is the validation side. Class folders may have folders of their own. Files that are not called like images
    are passed over, and so are hidden ones. A folder `train` or `val` that is alone, and has no folders, is a class.

    Raises:
        TreeError: there is no such folder, no class in it, one side alone, or a class in the validation folder that the train folder lacks.
    """
    root = _existing(root)
    sides = [next((root / n for n in names if (root / n).is_dir()), None) for names in (TRAIN, VALIDATION)]
    train, held_out = sides
    if train is None or held_out is None:
        lone, missing, called = (train, "validation", VALIDATION) if train is not None else (held_out, "training", TRAIN)
        if lone is not None and any(entry.is_dir() and not entry.name.startswith(".") for entry in lone.iterdir()):
            raise TreeError(f"{root} has a folder {lone.name} and none for {missing}: it may be called {' or '.join(called)}")
        return _divided(root, seed, classes, validation_share)
    names = _class_folders(train)
    strange = sorted(set(_class_folders(held_out)) - set(names))
    if strange:
        raise TreeError(f"{held_out} has class {strange[0]!r}, which {train} lacks; both have the same classes")
    kept = [n for n in names if classes is None or n in classes]
    found = [
        (f"{side.name}/{name}/{file}", i, side is held_out)
        for i, name in enumerate(kept)
        for side in (train, held_out)
        for file in sorted(image_files(side / name))
    ]
    return _tree(root, kept, found)


def _divided(root: Path, seed: int, classes: Collection[str] | None, share: float) -> ImageTree:
    found = []
    kept = [n for n in _class_folders(root) if classes is None or n in classes]
    for i, name in enumerate(kept):
        files = sorted(image_files(root / name))
        stream = np.random.SeedSequence([seed, zlib.crc32(name.encode(errors="surrogateescape"))])
        held_out = set(np.random.Generator(np.random.PCG64(stream)).permutation(len(files))[: round(share * len(files))].tolist())
        found += [(f"{name}/{file}", i, j in held_out) for j, file in enumerate(files)]
    return _tree(root, kept, found)


def read_places(root: str | Path, classes: Collection[str] | None = None) -> ImageTree:
    """Places365-standard as torchvision lays it out, with small images (256 px) or, where these are not there, large ones.

    Class ids are those of `categories_places365.txt`, such as `/a/airfield`, in the order of their numbers there.

    Raises:
        TreeError: a list or an image folder is not there, or a list cannot be read; the message names it.
    """
    root = _existing(root)
    size = next((s for s in ("256", "large") if (root / f"data_{s}_standard").is_dir()), None)
    if size is None:
        raise TreeError(f"{root} has neither data_256_standard nor data_large_standard, where Places365 has its train images")
    if not (root / f"val_{size}").is_dir():
        raise TreeError(f"{root} has no val_{size}, where Places365 has its validation images")
    every = {n: c for c, n in sorted(read_list(root / "categories_places365.txt"), key=lambda line: line[1])}
    kept = [c for c in every.values() if classes is None or c in classes]
    label = {c: i for i, c in enumerate(kept)}
    found = []
    for file, folder, side in (
        ("places365_train_standard.txt", f"data_{size}_standard", False),
        ("places365_val.txt", f"val_{size}", True),
    ):
        for image, n in read_list(root / file):
            if n not in every:
                raise TreeError(f"{root / file} has {image} of class {n}, and categories_places365.txt has no such number")
            if every[n] in label:
                found.append((f"{folder}/{image.lstrip('/')}", label[every[n]], side))
    return _tree(root, kept, found)


def read_list(path: Path) -> Iterator[tuple[str, int]]:
    """The lines of one of Places' lists: a path, or a class id, and a class number. Raises `TreeError`."""
    if not path.is_file():
        raise TreeError(f"{path} is not there; it comes with filelist_places365-standard.tar")
    for n, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or not words[1].isdecimal():
            raise TreeError(f"{path}, line {n}: {line!r} is not a path and a class number")
        yield words[0], int(words[1])


def _existing(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise TreeError(f"{root} is not a folder")
    return root


def _class_folders(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith((".", "__")))
    if not names:
        raise TreeError(f"{folder} has no class folders: it is read as {folder.name}/<class>/<image>")
    return names


def image_files(folder: Path) -> Iterator[str]:
    """Image files below a folder, relative to it; links to folders are followed, but never in a circle."""
    if not folder.is_dir():
        return
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        at = Path(path).relative_to(folder)
        yield from ((at / f).as_posix() for f in files if f.lower().endswith(IMG_EXTENSIONS) and not f.startswith("."))


def _tree(root: Path, classes: list[str], found: list[tuple[str, int, bool]]) -> ImageTree:
    labels, validation = (np.array([row[i] for row in found], dtype) for i, dtype in ((1, np.int64), (2, bool)))
    return ImageTree(root, tuple(classes), tuple(file for file, _, _ in found), labels, validation)
