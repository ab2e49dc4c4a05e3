"""The script that verifies everything on a GPU: its parts run here, small; one that hangs or dies takes nothing along; GPU.md is marked."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "evaluate"))

import gpu  # noqa: E402
import gpu_parts  # noqa: E402

PAGE = """Text | with | bars.

| row | what | command | date | device | result |
|---|---|---|---|---|---|
| `a` | one | `x \\| y` | | | open |
| `b` | two | `z` | | | open |
| `c` | three | `z` | before | a GPU | passed |
"""
CELLS = {"date": "2026-11-28", "device": "some GPU", "torch": "2", "triton": "", "python": "3", "l3rs": "0"}
TELLS = """
import csv
with open({file!r}, "w", newline="") as file:
    writer = csv.DictWriter(file, {fields!r})
    writer.writeheader()
    writer.writerow({row!r})
"""


def row(**values: str) -> dict[str, str]:
    return {**CELLS, "part": "p", "row": "a", "what": "time", "value": "3", "unit": "ms", **values}


def telling(file: Path, then: str) -> tuple[str, str]:
    """What Python is given to write a row, and to do something then."""
    return "-c", TELLS.format(file=str(file), row=row(), fields=gpu.FIELDS) + then


def test_a_part_that_hangs_dies_or_lacks_a_library_takes_nothing_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "AT_LEAST", 0.1)
    page, rows, alive = tmp_path / "GPU.md", tmp_path / "gpu.csv", tmp_path / "alive"
    page.write_text(PAGE)
    hang = f"""
import subprocess, time
subprocess.Popen(["sh", "-c", "sleep 1.5; touch {alive}"])
time.sleep(60)
"""
    parts = [
        gpu.Part("hangs", telling(rows, hang), 2, ("a",)),
        gpu.Part("dies", ("-c", "import os; print('last words', flush=True); os.abort()"), 1, ("b",)),
        gpu.Part("lacks", ("-c", f"print('needs Ray'); raise SystemExit({gpu.MISSING_LIBRARY})"), 1, ("c",)),
        gpu.Part("works", ("-c", "pass"), 1, ()),
    ]
    started = time.monotonic()
    ended = gpu.verify(parts, gpu.Settings("cpu", True, tmp_path), 2.5, page)
    assert time.monotonic() - started < 2.5
    assert [how for _, how, _ in ended] == ["time was up after 1 s", "failed, code -6: last words", "passed over: needs Ray", "done"]
    device = gpu.versions("cpu")["device"]
    lines = page.read_text().splitlines()
    assert lines[4].endswith(f" | {gpu.date.today()} | {device} | time 3 ms; time was up after 1 s |")
    assert lines[4].startswith("| `a` | one | `x \\| y` |")
    assert lines[5].endswith(f"| {device} | failed, code -6: last words |")
    assert lines[6] == "| `c` | three | `z` | before | a GPU | passed |"
    assert "works: done" in capsys.readouterr().out
    time.sleep(max(0.0, 1.8 - (time.monotonic() - started)))
    assert not alive.exists()


def test_results_in_words() -> None:
    tests = [row(what=name, value=value, unit="test") for name, value in (("x", "passed"), ("y", "failed"), ("z", "skipped"))]
    assert gpu.said(tests, "done") == "1 of 3 passed, 1 skipped; failed: y"
    assert gpu.said([row(), row(what="share", value="8%", unit="")], "time was up") == "time 3 ms; share 8%; time was up"
    assert gpu.mark(PAGE, "b", "today", "GPU", "1 | 2").splitlines()[5] == "| `b` | two | `z` | today | GPU | 1 \\| 2 |"
    with pytest.raises(ValueError, match="no row `d`"):
        gpu.mark(PAGE, "d", "today", "GPU", "fine")


def test_every_row_that_a_part_marks_is_in_the_page() -> None:
    page = (ROOT / "GPU.md").read_text()
    for part in gpu.PARTS:
        assert callable(getattr(gpu_parts, part.name))
        for each in part.rows:
            page = gpu.mark(page, each, "today", "GPU", "fine")
    marked = {each for part in gpu.PARTS for each in part.rows}
    assert set(gpu_parts.ROW_OF_TEST.values()) <= marked
    assert page.count("| today | GPU | fine |") == len(marked)


@pytest.mark.parametrize("part", ["comparison", pytest.param("candidates", marks=pytest.mark.slow)])
def test_a_part_tells_its_rows(part: str, tmp_path: Path) -> None:
    settings = gpu.Settings("cpu", True, tmp_path)
    assert gpu.child(part, settings) == 0
    found = gpu.read(tmp_path / "gpu.csv")
    assert len(found) == 2
    assert {r["row"] for r in found} == {part}
    assert all(float(r["value"]) > 0 for r in found)


def test_settings_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in (
        (["--only", "speed"], "--only must name some of tests, step"),
        (["--minutes", "0"], "--minutes must be positive (got 0.0)"),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", *words])
        with pytest.raises(SystemExit):
            gpu.main()
        assert line in capsys.readouterr().err


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "GPU.md"
    page.write_text((ROOT / "GPU.md").read_text())
    words = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--page", str(page), "--minutes", "15"]
    done = subprocess.run([sys.executable, ROOT / "evaluate" / "gpu.py", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = gpu.read(tmp_path / "gpu.csv")
    assert {r["part"] for r in found} == {part.name for part in gpu.PARTS}, done.stdout
    for part in gpu.PARTS:
        assert f"{part.name}: done" in done.stdout
    assert {r["value"] for r in found if r["unit"] == "test"} == {"skipped"}
    today = f"| {gpu.date.today()} | {gpu.versions('cpu')['device']} |"
    without = {"interpreter"}  # whose tests are not among the quick ones
    assert page.read_text().count(today) == len({each for part in gpu.PARTS for each in part.rows} - without)
