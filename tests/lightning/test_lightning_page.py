"""The page on Lightning does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lightning.md"


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    """In order, in an empty folder, in one process of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    (tmp_path / "page.py").write_text("\n".join(blocks))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(re.search(r"tensor\(([\d.]+)\)", done.stdout)[1]) > 0.5  # type: ignore[index]  # chance is 0.04
    assert len(list(tmp_path.rglob("l3rs.png"))) == 1


@pytest.mark.slow
def test_the_block_of_the_page_on_lightning_cli_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "lightning-cli.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.rglob("metrics.csv"))) == 1
    assert len(list(tmp_path.rglob("l3rs.png"))) == 1
