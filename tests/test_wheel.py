"""The wheel: one for every Python, whole, and enough for the main job in an empty folder; and a pure one where nothing can be compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from environments import ROOT, build, run, sources

pytestmark = pytest.mark.slow
KERNELS = {"l3rs/optimizer/kernels/_step.so", "l3rs/learned/_elements.so"}
compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def install(folder: Path, *what: str | Path) -> Path:
    """Installs l3rs in a new virtual environment, beside the libraries that the tests run with; gives the folder of its commands."""
    venv.create(folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-index", "--no-deps", "--ignore-installed")
    done = run(*pip, "--no-build-isolation", *what, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def inside(wheel: Path) -> set[str]:
    """The files of the package in a wheel."""
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("l3rs/")}


def committed() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "l3rs"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout")
    return set(listed.stdout.split())


@compiler
def test_one_wheel_for_every_python(tmp_path: Path) -> None:
    files = build(tmp_path)
    assert sorted(files) == [".gz", ".whl"]
    done = run(sys.executable, "-m", "twine", "check", "--strict", *files.values(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert files[".whl"].name.split("-")[2:4] == ["py3", "none"]
    assert not files[".whl"].name.endswith("-any.whl")
    assert inside(files[".whl"]) == committed() | KERNELS

    commands = install(tmp_path / "venv", files[".whl"])
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(commands / "python", "-c", "import l3rs; print(l3rs.__file__)", cwd=empty)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "venv"), done.stderr
    assert "native kernel" in run(commands / "l3rs", "info", cwd=empty).stdout
    done = run(commands / "l3rs", "finetune", "--tasks", "1", "--steps", "10", cwd=empty)
    assert done.returncode == 0, done.stderr
    assert {"curves.csv", "finetune.png", "runs.csv"} <= {file.name for file in (empty / "l3rs-out").iterdir()}


def test_a_pure_wheel_where_nothing_can_be_compiled(tmp_path: Path) -> None:
    wheel = build(tmp_path, "--wheel", CC="false")[".whl"]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert inside(wheel) == committed()
    commands = install(tmp_path / "venv", wheel)
    done = run(commands / "l3rs", "info", cwd=tmp_path)
    assert "Step on CPU: torch operations." in done.stdout, done.stderr


@compiler
def test_an_editable_installation_builds_the_kernels_beside_their_sources(tmp_path: Path) -> None:
    source = sources(tmp_path)
    commands = install(tmp_path / "venv", "--editable", source)
    assert {str(file.relative_to(source)) for file in source.rglob("*.so")} == KERNELS
    done = run(commands / "python", "-c", "import l3rs; print(l3rs.__file__)", cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(source), done.stderr
    assert "native kernel" in run(commands / "l3rs", "info", cwd=tmp_path).stdout
