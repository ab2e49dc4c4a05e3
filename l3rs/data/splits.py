"""Class splits: which classes pretrain, meta-train, select (meta-validation) and judge (meta-test)."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from l3rs.data.names import one_form
from l3rs.files import check_name, refuse_endless, write_atomically
from l3rs.text import first_line, printable

PURPOSES = ("pretrain", "meta-train", "meta-validation", "meta-test")
AFTER = "-meta-validation-4096px-01234567"  # the longest that files' names have after that of the split
SHIPPED_SPLITS = ("imagenet25-0", "imagenet25-1", "imagenet25-2", "places25", "cifar10")  # their images are not; see `datasets/`


@dataclass(frozen=True)
class ClassSplit:
    """The classes of a data set by purpose; no class serves two.

    Attributes:
        dataset: what the classes are of; `places365` is read in the layout of Places, all others as folders of classes.
        seed: of the draw, and of the draw of validation images where a data set has no validation side of its own.
        classes: purpose to class ids, for every purpose in `PURPOSES`; a purpose may have none. They are kept in Unicode's composed form.
        name: of the split.
        names: class id to what people call it, where that is not its id.

    Raises:
        ValueError: a purpose is missing or not known, a class is in two, a name is of no class, the seed is negative, or the split's own
            name cannot be part of a file's.
    """

    dataset: str
    seed: int
    classes: Mapping[str, tuple[str, ...]]
    name: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.dataset)
        if "/" in self.name or "\\" in self.name:
            raise ValueError(f"the name of a split must have no slash, since files are called after it (got {self.name!r})")
        if self.name in (".", "..") or self.name != printable(self.name):
            raise ValueError(f"the name of the split must be one that files can be called after (got {self.name!r})")
        check_name(self.name + AFTER, "the name of the split")
        if self.seed < 0:
            raise ValueError(f"the seed of the split {self.name} must be at least 0 (got {self.seed})")
        if set(self.classes) != set(PURPOSES):
            raise ValueError(f"the split {self.name} has the purposes {', '.join(sorted(self.classes))}; it needs {', '.join(PURPOSES)}")
        seen: dict[str, tuple[str, str]] = {}
        for purpose, ids in self.classes.items():
            for c in ids:
                before, other = seen.get(one_form(c), ("", ""))
                if before and other != c:
                    raise ValueError(f"classes {other!a} and {c!a} of {self.name} differ only in their Unicode form")
                if before:
                    raise ValueError(f"class {c!r} of {self.name} is in both {before} and {purpose}")
                seen[one_form(c)] = purpose, c
        object.__setattr__(self, "classes", {p: tuple(map(one_form, ids)) for p, ids in self.classes.items()})
        object.__setattr__(self, "names", {one_form(c): n for c, n in self.names.items()})
        unknown = sorted(set(self.names) - set(seen))
        if unknown:
            raise ValueError(f"the split {self.name} names class {unknown[0]!r}, which serves no purpose in it")

    @classmethod
    def read(cls, path: str | Path) -> ClassSplit:
        """Reads a split's JSON file.

        It holds `dataset`, `seed`, perhaps `name`, and each purpose with its class ids: a list, or a mapping of ids to names.

        Raises:
            ValueError: there is no such file, it is not such JSON, or what `ClassSplit` raises; the message begins with the path.
        """
        path = Path(path)
        try:
            refuse_endless(path)
            raw = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(raw, dict):
                raise ValueError(f"it holds a {type(raw).__name__}, not an object")
            unknown = sorted(set(raw) - {"dataset", "seed", "name", *PURPOSES})
            if unknown:
                raise ValueError(f"no field is called {unknown[0]!r}; there are dataset, seed, name, {', '.join(PURPOSES)}")
            missing = sorted({"dataset", "seed"} - set(raw))
            if missing:
                raise ValueError(f"it has no {missing[0]!r}")
            for name, kind, said in (("dataset", str, "a string"), ("seed", int, "a whole number"), ("name", str, "a string")):
                if name in raw and type(raw[name]) is not kind:
                    raise ValueError(f"{name} must be {said} (got {raw[name]!r})")
            purposes = {p: raw[p] for p in PURPOSES if p in raw}
            for purpose, ids in purposes.items():
                words = [*ids, *ids.values()] if isinstance(ids, dict) else ids
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise ValueError(f"{purpose} is neither a list of class ids nor a mapping of ids to names")
            for purpose, ids in purposes.items():
                for c in ids:
                    check_name(c, f"a class of {purpose}")
            names = {c: n for ids in purposes.values() if isinstance(ids, dict) for c, n in ids.items() if n != c}
            return cls(raw["dataset"], raw["seed"], {p: tuple(ids) for p, ids in purposes.items()}, raw.get("name", ""), names)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no class split: {first_line(error)}") from None

    @classmethod
    def find(cls, name_or_path: str | Path) -> ClassSplit:
        """A split that is shipped, by its name in `SHIPPED_SPLITS`, or one from a file. Raises ValueError."""
        if name_or_path in SHIPPED_SPLITS:
            with resources.as_file(resources.files("l3rs.data") / "classes" / f"{name_or_path}.json") as path:
                return cls.read(path)
        if not os.path.exists(name_or_path):  # unlike pathlib's, without an error for a name of 300 characters
            raise ValueError(f"the split {name_or_path} is neither a file nor one of {', '.join(SHIPPED_SPLITS)}")
        return cls.read(name_or_path)

    def write(self, path: str | Path) -> None:
        """Writes the JSON file that `read` takes."""
        about = {"name": self.name, "dataset": self.dataset, "seed": self.seed}
        ids = {p: {c: self.names.get(c, c) for c in self.classes[p]} if self.names else list(self.classes[p]) for p in PURPOSES}
        text = json.dumps(about | ids, indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(path), text.encode(errors="backslashreplace"))  # bytes that are not UTF-8 become JSON's \\udcxx

    def check(self, there: Collection[str], where: str, purposes: Sequence[str] = PURPOSES) -> None:
        """Raises ValueError, naming the missing, unless all classes of these purposes are `there`; `where` is said in the message."""
        found = set(there)
        missing = [c for purpose in purposes for c in self.classes[purpose] if c not in found]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(f"{where} lacks {len(missing)} classes of the split {self.name}: {', '.join(missing[:5])}{more}")


def draw(classes: Sequence[str], wanted: Mapping[str, float | Sequence[str]], seed: int) -> dict[str, tuple[str, ...]]:
    """Divides classes among the purposes.

    Explicit lists are served first. The others are drawn at random, by `seed` alone, from the classes that are left.

    Args:
        classes: all there are.
        wanted: purpose to its class ids, or to how many it gets: a number of classes if it is 1 or more, else a share of all, rounded
            such that shares that sum to 1 are all classes. A purpose that is not there gets none.

    Returns:
        Purpose to class ids, in the order of `classes`.

    Raises:
        ValueError: a purpose or a class is not known, a class is asked for twice, or more classes are asked for than there are.
    """
    unknown = sorted(set(wanted) - set(PURPOSES))
    if unknown:
        raise ValueError(f"no purpose is called {unknown[0]!r}; there are {', '.join(PURPOSES)}")
    listed = {p: tuple(map(one_form, w)) for p, w in wanted.items() if not isinstance(w, (int, float))}
    there, taken = set(classes), dict[str, str]()
    for purpose, ids in listed.items():
        for c in ids:
            if c not in there:
                raise ValueError(f"{purpose} asks for class {c!r}, which is not there; of {len(classes)}, some are {list(classes[:3])}")
            if c in taken:
                raise ValueError(f"class {c!r} is asked for twice, by {taken[c]} and by {purpose}")
            taken[c] = purpose
    counts: dict[str, int] = {}
    shares = 0.0
    for purpose in PURPOSES:
        share = wanted.get(purpose)
        if isinstance(share, (int, float)):
            if not 0 <= share < float("inf") or (share > 1 and share != int(share)):
                raise ValueError(f"{purpose} must be a share between 0 and 1, a number of classes, or a list of them (got {share})")
            if share >= 1:
                counts[purpose] = int(share)
            else:
                before, after = (int(round(s * len(classes), 9) + 0.5) for s in (shares, shares + share))
                counts[purpose], shares = after - before, shares + share
    left = [c for c in classes if c not in taken]
    if sum(counts.values()) > len(left):
        asked = ", ".join(f"{n} for {p}" for p, n in counts.items())
        raise ValueError(f"{asked}: that is {sum(counts.values())} classes, and there are {len(left)} to draw from")
    shuffled = iter(np.random.Generator(np.random.PCG64(seed)).permutation(len(left)).tolist())
    for purpose, count in counts.items():
        taken |= {left[next(shuffled)]: purpose for _ in range(count)}
    return {p: tuple(c for c in classes if taken.get(c) == p) for p in PURPOSES}
