"""Class splits: which classes pretrain, meta-train, select (meta-validation) and judge (meta-test)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PURPOSES = ("pretrain", "meta-train", "meta-validation", "meta-test")


@dataclass(frozen=True)
class ClassSplit:
    """The classes of a data set by purpose; no class serves two.

    Attributes:
        dataset: name of the data set.
        seed: of the draw.
        classes: purpose to class names, for every purpose in `PURPOSES`.
    """

    dataset: str
    seed: int
    classes: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if set(self.classes) != set(PURPOSES):
            raise ValueError(f"a split of {self.dataset} has the purposes {sorted(self.classes)}; it needs {sorted(PURPOSES)}")
        seen: dict[str, str] = {}
        for purpose, names in self.classes.items():
            for name in names:
                if name in seen:
                    raise ValueError(f"class {name!r} of {self.dataset} is in both {seen[name]} and {purpose}")
                seen[name] = purpose

    @classmethod
    def read(cls, path: str | Path) -> ClassSplit:
        """Reads a split's JSON file; raises ValueError when classes overlap or a purpose is missing."""
        raw = json.loads(Path(path).read_text())
        return cls(raw.pop("dataset"), raw.pop("seed"), {purpose: tuple(names) for purpose, names in raw.items()})
