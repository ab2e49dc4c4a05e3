"""Every block of the page on trainers runs, where its library is installed."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
NEEDS = {
    "accelerate": ("accelerate",),
    "transformers": ("accelerate", "transformers", "datasets"),
    "Lightning Fabric": ("lightning_fabric",),
    "timm": ("timm",),
    "fastai": ("fastai",),
    "skorch": ("skorch",),
    "Ignite": ("ignite",),
}
SLOW = {"transformers", "fastai"}


def sections() -> dict[str, list[str]]:
    """The blocks of Python below each heading; before the first it is "start"."""
    found: dict[str, list[str]] = {}
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    for heading, text in zip(["start", *parts[1::2]], parts[::2], strict=True):
        blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        if blocks:
            found[heading] = blocks
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NEEDS])
def test_the_block_of_a_trainer_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in NEEDS[name]:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in (*sections()["start"], *sections()[name]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message=".*pin_memory")
            exec(compile(block, "trainers.md", "exec"), namespace)
    inside = {"skorch": lambda: namespace["net"].optimizer_, "fastai": lambda: namespace["learn"].opt.opt}
    optimizer = inside.get(name, lambda: namespace["optimizer"])()
    group = optimizer.param_groups[0]
    assert group["step"] == group["total_steps"] > 0
    assert "icons-resnet34' (names and sizes agree)" in repr(optimizer) or name == "transformers"


def test_every_trainer_of_the_page_has_its_test() -> None:
    assert set(sections()) == {"start", *NEEDS}
    rows = re.findall(r"^\| \[.*`(tests/\S+\.py)` \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(rows) == len(NEEDS) + 1  # and Lightning's Trainer
    assert [row for row in rows if not (PAGE.parents[1] / row).exists()] == []
    here = {f"tests/trainers/{file.name}" for file in Path(__file__).parent.glob("test_*.py")} - {"tests/trainers/test_trainers_page.py"}
    assert here <= set(rows)
