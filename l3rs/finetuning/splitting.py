"""Making a class split of one's own from a folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from l3rs import text
from l3rs.data.splits import PURPOSES, ClassSplit, draw
from l3rs.data.trees import ImageTree, read_tree, tell_passed_over
from l3rs.files import check_name
from l3rs.finetuning.tasks import TaskConfig, check_sizes
from l3rs.text import printable

SHARES = {"pretrain": 0.0, "meta-train": 0.5, "meta-validation": 0.2, "meta-test": 0.3}


@dataclass(frozen=True)
class SplitConfig:
    """How to divide the classes of a folder.

    Attributes:
        folder: of the images, see `l3rs.data.trees.read_folder`.
        out: JSON file to write.
        name: name of the split; None takes the folder's.
        seed: seed of the draw.
        shares: purpose to a share of all classes, a number of classes, or their ids.
        task: the size of the tasks to come; every one needs enough classes and images.
    """

    folder: Path
    out: Path = Path("split.json")
    name: str | None = None
    seed: int = 0
    shares: Mapping[str, float | Sequence[str]] = field(default_factory=lambda: dict(SHARES))
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0 (got {self.seed})")


def wanted(purpose: str, words: Sequence[str]) -> float | tuple[str, ...]:
    """Reads the words of a purpose on the command line: a share or a number of classes, class ids, or `@FILE` with one id a line.

    Raises:
        ValueError: the file cannot be read, or a line cannot be a class's name.
    """
    if len(words) == 1 and words[0].startswith("@"):
        try:
            lines = Path(words[0][1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"--{purpose} must name a file that can be read (got {words[0]}: {why})") from None
        names = {n: line.strip() for n, line in enumerate(lines, start=1) if line.strip()}
        for n, name in names.items():
            check_name(name, f"{words[0][1:]}, line {n}: a class")
        return tuple(names.values())
    if len(words) == 1:
        try:
            return float(words[0])
        except ValueError:
            pass
    return tuple(words)


def make_split(config: SplitConfig) -> tuple[ClassSplit, ImageTree]:
    """Draws the split, checks it, and writes it.

    Raises:
        ValueError: the folder holds no classes, the shares ask for more than there is, a purpose has too few classes for a task, or
            classes have too few images; the message names them.
    """
    tree = read_tree("folder", config.folder, config.seed)
    classes = draw(tree.classes, config.shares, config.seed)
    split = ClassSplit("folder", config.seed, classes, config.name or config.folder.resolve().name)
    counts = tree.counts()
    for purpose in PURPOSES[1:]:
        check_sizes({c: counts[c] for c in classes[purpose]}, config.task, f"{purpose} of {split.name}")
    empty = [c for c in classes["pretrain"] if not counts[c][0]]
    if empty:
        raise ValueError(f"class {empty[0]!r} of pretrain has no train images")
    if config.out.is_file():
        try:
            ClassSplit.read(config.out)
        except ValueError:
            raise ValueError(f"--out must be a new file, or one of an earlier split (got {config.out}, which would be lost)") from None
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        split.write(config.out)
    except OSError as error:
        raise ValueError(f"{config.out} cannot be written ({error.strerror})") from None
    tell_passed_over(tree.root, tree.passed_over)
    return split, tree


def as_table(split: ClassSplit, tree: ImageTree) -> str:
    """The classes with their images on either side, by purpose, and the sums."""
    counts = tree.counts()
    rows = [
        ("class", "train", "validation"),
        *((printable(c), *map(str, counts[c])) for purpose in PURPOSES for c in split.classes[purpose]),
    ]
    aligned = iter(text.table(rows))
    lines = [next(aligned)]
    for purpose in PURPOSES:
        ids = split.classes[purpose]
        train, held_out = (sum(counts[c][side] for c in ids) for side in (0, 1))
        lines += ["", f"{purpose}: {len(ids)} classes, {train} train and {held_out} validation images", *islice(aligned, len(ids))]
    left = len(tree.classes) - sum(map(len, split.classes.values()))
    return "\n".join([*lines, "", f"left out: {left} classes"] if left else lines)
