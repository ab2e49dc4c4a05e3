"""The page on a schedule for one's own classes does what it says, from the files to the schedule."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "own-classes.md"


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    """In order, in an empty folder; the YAML block is the file that it says it is."""
    blocks = re.findall(r"^```(sh|yaml|python)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["sh", "sh", "yaml", "sh", "sh", "python"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "L3RS_CACHE": str(tmp_path / "cache"), "PATH": path, "OMP_NUM_THREADS": "1"}
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    (tmp_path / "pretrain").symlink_to(ROOT / "pretrain")
    said = []
    for language, block in blocks:
        if language == "yaml":
            (tmp_path / "photos.yaml").write_text(block)
            continue
        command = ["bash", "-euo", "pipefail", "-c", block] if language == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"
        said.append(done.stdout)
    assert "Wrote split.json." in said[1]
    accuracy = float(re.search(r"^([\d.]+) on ten classes", said[-1], flags=re.MULTILINE)[1])  # type: ignore[index]
    assert accuracy > 0.5  # chance is 0.1
