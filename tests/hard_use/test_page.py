"""The page of hard use: every case on it is shown by a test that exists, and every test of this folder is on it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def names_in(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_case_has_its_test() -> None:
    rows = [line for line in (ROOT / "docs" / "hard-use.md").read_text().splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) >= 60
    named = [re.search(r"`(tests/[\w/]+\.py)::(test_\w+)` \|$", row) for row in rows]
    assert [row for row, found in zip(rows, named, strict=True) if found is None] == []
    pairs = {(found[1], found[2]) for found in named if found}
    assert [pair for pair in sorted(pairs) if pair[1] not in names_in(ROOT / pair[0])] == []
    here = {
        (str(f.relative_to(ROOT)), name)
        for f in Path(__file__).parent.glob("test_*.py")
        if f.name != "test_page.py"
        for name in names_in(f)
    }
    assert here - pairs == set()
