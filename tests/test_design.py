"""The table of rooms and floors in docs/design.md says what import-linter's contract says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")

ROOT = Path(__file__).parent.parent


def floors_in_the_contract() -> list[set[str]]:
    """The rooms of each floor, from the top down."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert contract["exhaustive"]
    return [set(layer.split(" | ")) for layer in contract["layers"]]


def floors_on_the_page() -> list[set[str]]:
    """The same, from the rows `| floor | room | ...` of the page."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)(?:\.py|/)` \|", (ROOT / "docs" / "design.md").read_text(), flags=re.MULTILINE)
    numbers = [int(floor) for floor, _ in rows]
    assert numbers == sorted(numbers, reverse=True)
    assert set(numbers) == set(range(1, max(numbers) + 1))
    return [{room for floor, room in rows if int(floor) == number} for number in range(max(numbers), 0, -1)]


def test_the_page_and_the_contract_have_the_same_floors() -> None:
    assert floors_on_the_page() == floors_in_the_contract()


def test_a_room_is_a_folder_or_a_file_as_the_page_says() -> None:
    rooms = re.findall(r"^\| \d+ \| `(\w+(?:\.py|/))` \|", (ROOT / "docs" / "design.md").read_text(), flags=re.MULTILINE)
    assert [room for room in rooms if not (ROOT / "l3rs" / room).exists()] == []
