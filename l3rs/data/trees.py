"""Labelled image files on disk: folders of classes, and the layout of Places365. Nothing is decoded here."""

from __future__ import annotations

import os
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from l3rs.data.names import (
    TEST,
    TRAIN,
    VALIDATION,
    extension_of,
    image_extensions,
    in_words,
    is_passed_over,
    one_form,
    side_of,
)  # fmt: skip
from l3rs.text import printable

DEEPEST = 100  # folders within folders of a class


class TreeError(ValueError):
    """A folder holds no images in a known layout; the message says which layout it should have."""


@dataclass(frozen=True, eq=False)
class ImageTree:
    """Image files with their classes.

    Attributes:
        root: the folder that `files` are relative to.
        classes: class ids.
        files: relative paths, with `/` on every system.
        labels: int64 (N,), indices into `classes`; or, where an image may be of several, float32 (N, classes), 1 for each of its own.
        validation: bool (N,); True on the validation side.
        divided: whether the validation images were drawn from each class.
        passed_over: number of files that are no images, or in no class, by extension.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    validation: np.ndarray
    divided: bool = False
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Class id to its numbers of train and of validation images."""
        sides = [self.labels[self.validation == side] for side in (False, True)]
        train, held_out = (np.bincount(s, minlength=len(self.classes)) if s.ndim == 1 else s.sum(axis=0) for s in sides)
        return {c: (int(train[i]), int(held_out[i])) for i, c in enumerate(self.classes)}


def read_tree(dataset: str, root: str | Path, seed: int = 0, classes: Collection[str] | None = None) -> ImageTree:
    """Finds the image files below `root`.

    Args:
        dataset: `read_places` reads `places365`, and `read_folder` all others.
        seed: draws the validation images if there is no validation folder.
        classes: only these; None is all.
    """
    return read_places(root, classes) if dataset == "places365" else read_folder(root, seed, classes)


def read_folder(root: str | Path, seed: int = 0, classes: Collection[str] | None = None, validation_share: float = 0.2) -> ImageTree:
    """Reads folders of classes, as torchvision's ImageFolder and ImageNet have them.

    Either `root/train/<class>/*` and `root/val/<class>/*`, or `root/<class>/*`: then `validation_share` of each class's images, drawn
    from (seed, class), is the validation side. Class folders may have folders of their own. It counts files without an extension of
    images, and passes over hidden files and a system's own.

    The two sides may have other names (`sides`). Names of classes are in Unicode's composed form: folders that differ in form alone are
    one class.

    Raises:
        TreeError: there is no such folder, no class in it, one side alone, or a class in the validation folder that the train folder lacks.
    """
    root = _existing(root)
    wanted = None if classes is None else {one_form(c) for c in classes}
    found = sides(root)
    if found is None:
        return _divided(root, seed, wanted, validation_share)
    train, held_out = (_class_folders(side) for side in found)
    strange = sorted(set(held_out) - set(train))
    if strange:
        raise TreeError(f"{found[1]} has class {strange[0]!r}, which {found[0]} lacks; both must have the same classes")
    kept, passed_over = [c for c in train if wanted is None or c in wanted], _loose(*found)
    rows = [
        (f"{side.relative_to(root).as_posix()}/{file}", i, folders is held_out)
        for i, name in enumerate(kept)
        for side, folders in zip(found, (train, held_out), strict=True)
        for file in _files_of_class(side, folders.get(name, ()), passed_over)
    ]
    return _tree(root, kept, rows, passed_over=passed_over)


def sides(root: Path) -> tuple[Path, Path] | None:
    """Finds the folders of the train and the validation side; None if `root` has classes instead.

    The train side is called `train` or `training`; the validation side `val`, `validation` or `valid`, or else `test` or `testing`, in
    capitals or not. Names may hold these words (`seg_train`, `test_set`), if both have folders. In `seg_train/seg_train` the inner folder
    is the side.

    Raises:
        TreeError: there is one side alone, or two folders for one side, or nothing but folders named like sides.
    """
    folders = _folders(root)
    named = {name: side for name in folders if (side := side_of(name)) is not None}
    nested = {name for name in named if _folders(root / name)}
    plain = {name for name in named if name.lower() in TRAIN + VALIDATION or (name.lower() in TEST and name in nested)}
    for known in (plain, nested):
        train, validation, test = ([n for n in folders if n in known and named[n] == side] for side in ("train", "validation", "test"))
        held_out = validation or test
        for several in (train, held_out):
            if len(several) > 1 and train and held_out:
                raise TreeError(f"{root} has both {several[0]} and {several[1]}; each side, train and validation, must have one folder")
        if train and held_out:
            return _inner(root / train[0]), _inner(root / held_out[0])
    lone = sorted(plain & nested) or (sorted(nested) if nested and nested == set(folders) else [])
    if lone:
        there = named[lone[0]]
        missing, called = ("validation", VALIDATION + TEST) if there == "train" else ("training", TRAIN)
        raise TreeError(f"{root} has a folder {printable(lone[0])} and none for {missing}: it may be called {' or '.join(called)}")
    return None


def read_test(root: str | Path, classes: Sequence[str]) -> ImageTree | None:
    """Reads the folder of the test side beside those of training and validation; None if there is none. Raises as `read_labelled`."""
    root, found = Path(root), sides(Path(root))
    if found is None:
        return None
    named = (_inner(root / name) for name in _folders(root) if side_of(name) == "test" and _folders(root / name))
    others = [folder for folder in named if folder not in found]
    return read_labelled(others[0], classes) if len(others) == 1 else None


def read_labelled(folder: str | Path, classes: Sequence[str]) -> ImageTree:
    """Reads `folder/<class>/*`, whose classes are known already; some of them may be missing. All images are of the validation side.

    Raises:
        TreeError: there is no such folder, no class or no image in it, or an unknown class.
    """
    folder = _existing(folder)
    there, passed_over = _class_folders(folder), _loose(folder)
    strange = sorted(set(there) - set(classes))
    if strange:
        other = next((name for name in strange if side_of(name) in ("validation", "test")), None)
        cure = f"; its sides lie apart: give {folder / other}" if other else ""
        raise TreeError(f"{folder} has class {strange[0]!r}, which is none of the {len(classes)} classes, such as {classes[0]!r}{cure}")
    rows = [(file, classes.index(c), True) for c, folders in there.items() for file in _files_of_class(folder, folders, passed_over)]
    if not rows:
        raise TreeError(f"{folder} has no images{f' (passed over: {in_words(passed_over)})' if passed_over else ''}")
    return _tree(folder, list(classes), rows, passed_over=passed_over)


def _inner(side: Path) -> Path:
    """Finds the folder that holds the classes of a side."""
    while _folders(side) == [side.name]:
        side = side / side.name
    return side


def _divided(root: Path, seed: int, classes: Collection[str] | None, share: float) -> ImageTree:
    found, passed_over = [], _loose(root)
    folders = _class_folders(root)
    kept = [c for c in folders if classes is None or c in classes]
    for i, name in enumerate(kept):
        files = _files_of_class(root, folders[name], passed_over)
        stream = np.random.SeedSequence([seed, zlib.crc32(name.encode(errors="surrogateescape"))])
        held_out = set(np.random.Generator(np.random.PCG64(stream)).permutation(len(files))[: round(share * len(files))].tolist())
        found += [(file, i, j in held_out) for j, file in enumerate(files)]
    return _tree(root, kept, found, True, passed_over)


def read_places(root: str | Path, classes: Collection[str] | None = None) -> ImageTree:
    """Reads Places365-standard as torchvision lays it out, with small images (256 px) or else large ones.

    Class ids come from `categories_places365.txt`, such as `/a/airfield`, in the order of their numbers.

    Raises:
        TreeError: a list or an image folder is missing, or a list cannot be read; the message names it.
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
    """Reads one of Places' lists: a path or class id, and a class number, in each line. Raises `TreeError`."""
    if not path.is_file():
        raise TreeError(f"{path} is not there; it comes with filelist_places365-standard.tar")
    for n, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or not words[1].isdecimal() or len(words[1]) > 9 or "\0" in line or ".." in words[0].split("/"):
            raise TreeError(f"{path}, line {n}: {line!r} is not a path and a class number")
        yield words[0], int(words[1])


def _existing(root: str | Path) -> Path:
    if not os.path.isdir(root):  # unlike pathlib's, without an error for a name of 300 characters
        raise TreeError(f"{root} is not a folder")
    return Path(root)


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, but those that are passed over."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_passed_over(entry.name))
    except OSError as error:
        raise TreeError(f"{folder} cannot be read ({error.strerror})") from None


def _class_folders(folder: Path) -> dict[str, list[str]]:
    """Class to its folders: one, or more that differ in their Unicode form."""
    classes = defaultdict[str, list[str]](list)
    for name in _folders(folder):
        classes[one_form(name)].append(name)
    if not classes:
        raise TreeError(f"{folder} has no class folders: it is read as {folder.name}/<class>/<image>")
    return dict(sorted(classes.items()))


def _loose(*folders: Path) -> Counter[str]:
    """Counts, by extension, the images that lie beside the folders of classes."""
    extensions = image_extensions()
    loose = (extension_of(entry.name) for folder in folders for entry in os.scandir(folder) if entry.is_file())
    return Counter(f"{extension} outside the class folders" for extension in loose if extension in extensions)


def _files_of_class(side: Path, folders: Collection[str], passed_over: Counter[str]) -> list[str]:
    """The images of a class, relative to `side`, in order."""
    return sorted(f"{folder}/{file}" for folder in folders for file in image_files(side / folder, passed_over))


def image_files(folder: Path, passed_over: Counter[str]) -> Iterator[str]:
    """Image files below a folder, relative to it; links to folders are followed, but never in a circle.

    Args:
        passed_over: counts, by extension, the files that are not called like images.

    Raises:
        TreeError: a folder cannot be read, or they are nested too deeply.
    """

    def refuse(error: OSError) -> None:
        raise TreeError(f"{error.filename} cannot be read ({error.strerror})")

    seen: set[str] = set()
    extensions = image_extensions()
    for path, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not is_passed_over(f))
        parts = Path(path).relative_to(folder).parts
        if len(parts) > DEEPEST:
            raise TreeError(f"{folder} has folders nested more than {DEEPEST} deep: {path}")
        at = "".join(f"{part}/" for part in parts)
        for file in files:
            extension = extension_of(file)
            if is_passed_over(file):
                continue
            if extension in extensions:
                yield at + file
            else:
                passed_over[extension] += 1


def tell_passed_over(where: str | Path, passed_over: Mapping[str, int]) -> None:
    """Prints one line on stderr about files that are no images, if there are any."""
    if passed_over:
        print(f"{printable(str(where))}: passed over {in_words(passed_over)}", file=sys.stderr)


def _tree(
    root: Path, classes: list[str], found: list[tuple[str, int, bool]], divided: bool = False, passed_over: Mapping[str, int] | None = None
) -> ImageTree:
    labels, validation = (np.array([row[i] for row in found], dtype) for i, dtype in ((1, np.int64), (2, bool)))
    return ImageTree(root, tuple(classes), tuple(file for file, _, _ in found), labels, validation, divided, passed_over or {})
