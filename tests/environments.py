"""Pythons that have l3rs with some extras only, wheels of l3rs, and virtual environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEFT_OUT = ("PYTHONPATH", "VIRTUAL_ENV", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def brought(requirement: Requirement, found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What pip installs for a requirement besides itself: names with their extras."""
    if requirement.name == "l3rs":
        texts = [*PROJECT["dependencies"], *(text for extra in requirement.extras for text in PROJECT["optional-dependencies"][extra])]
    else:
        texts = distribution(requirement.name).requires or []
    for asked in map(Requirement, texts):
        key = asked.name, ",".join(sorted(asked.extras))
        holds = asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras))
        if holds and key not in found:
            found.add(key)
            brought(asked, found)
    return found


def linked(folder: Path, extras: str = "") -> Path:
    """Makes a folder that has l3rs, what `pip install l3rs[EXTRAS]` brings, and nothing else; see `python`."""
    folder.mkdir()
    (folder / "l3rs").symlink_to(ROOT / "l3rs")
    for name in {name for name, _ in brought(Requirement(f"l3rs[{extras}]"), set())} - {"l3rs"}:
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
    return folder


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with nothing of this checkout on its path."""
    clean = {k: v for k, v in os.environ.items() if k not in LEFT_OUT}
    environment = {**clean, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900)


def python(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the libraries of a linked folder alone: -S leaves out those that are installed."""
    (folder.parent / "empty").mkdir(exist_ok=True)
    return run(sys.executable, "-S", "-W", "error", *words, cwd=folder.parent / "empty", PYTHONPATH=str(folder), **env)


def sources(folder: Path) -> Path:
    """A copy of what the package is built from."""
    shutil.copytree(ROOT / "l3rs", folder / "source" / "l3rs", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    return folder / "source"


def build(folder: Path, *options: str, **env: str) -> dict[str, Path]:
    """Builds l3rs with the setuptools that is installed; gives the files by suffix."""
    command = (sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", folder / "dist", sources(folder))
    done = run(*command, cwd=folder, **env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {file.suffix: file for file in (folder / "dist").iterdir()}
