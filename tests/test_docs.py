"""The documentation: every page is in the navigation, links lead somewhere, the code on the pages runs, the site builds and loads nothing
from elsewhere. What `>>>` blocks print is compared by pytest itself, as it collects the pages."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import yaml

from l3rs.cli import parser_of
from l3rs.cli.meta_train import config_of
from l3rs.cli.options import values_of
from l3rs.finetuning.workload import Workload

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FIGURES = ROOT / "evaluate" / "results" / "figures"
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
PAGES = sorted(DOCS.rglob("*.md"))
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, or of the README as `../README.md`, in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def without_code(page: Path) -> str:
    """The text of a page outside its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def files_in(nav: Any) -> Iterator[str]:
    """The pages in a navigation."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from files_in(entry)


def start(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(words, cwd=cwd, env=ENV, capture_output=True, text=True, check=False, timeout=500)


def run(*words: str, cwd: Path) -> str:
    """What a command prints; it succeeds."""
    done = start(*words, cwd=cwd)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_navigation_has_every_page_and_no_other() -> None:
    assert sorted(files_in(NAV)) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", without_code(page)) if not re.match(r"\w+:|#", t)]
    assert [t for t in targets if not (page.parent / t.partition("#")[0]).exists()] == []
    if page != ROOT / "README.md":  # what the site does not have, it cannot link to
        assert [t for t in targets if not (page.parent / t).resolve().is_relative_to(DOCS)] == []


def test_every_how_to_page_has_a_test_that_names_it() -> None:
    (how_to,) = (entry["How to"] for entry in NAV if "How to" in entry)
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    assert [page for page in files_in(how_to) if blocks(page, "(?:sh|python)") and f'"{page}"' not in tests] == []


def test_the_start_is_that_of_the_readme() -> None:
    (install,) = blocks("start.md", "sh")
    assert f"```sh\n{install}```" in (ROOT / "README.md").read_text()


def test_the_readme_fits_on_a_screen_or_two() -> None:
    text = without_code(ROOT / "README.md")
    assert len(text.split()) <= 900
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) <= 4  # three of results, and where to go next
    results = [table for table in tables if "L3RS minus" in table]
    assert len(results) == 2
    assert all(len(table.splitlines()) <= 2 + 6 for table in results)  # a head, a rule, and six rows
    assert len(blocks("../README.md", "sh")) == 2  # .ci/run takes them from here: set-up, and tests


def test_the_readmes_snippet_runs_as_it_stands(tmp_path: Path) -> None:
    """In a fresh process and an empty folder: the loss begins far below that of guessing among 25 classes, and falls."""
    (snippet,) = blocks("../README.md", "python")
    losses = [float(line) for line in run(sys.executable, "-c", snippet, cwd=tmp_path).splitlines()]
    assert len(losses) == 25
    assert losses[0] < 1  # 3.2 without the head start
    assert losses[-1] < 0.2


@pytest.mark.parametrize("page", ["index.md", "start.md", "plain-loop.md", "head-start.md"])
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), namespace)


def dry_run(command: str, tmp_path: Path) -> str:
    """Does all of a command but the work: options are read and checked against what they are for. Gives what it was."""
    words = [word if word != "cuda" or torch.cuda.is_available() else "cpu" for word in shlex.split(command)]
    if words[:2] == ["l3rs", "meta-train"]:
        config_of(parser_of("meta-train").parse_args(words[2:]))
    elif words[:2] == ["l3rs", "cache"]:
        Workload(**values_of(Workload, vars(parser_of("cache").parse_args(words[2:]))))
    elif words[:2] == ["ray", "start"]:
        from ray.scripts.scripts import start as start_node

        start_node.make_context("start", words[2:])
    else:
        assert words[0] == "python"
        extra = {
            "evaluate/run.py": ["--plan"],
            "evaluate/tables.py": ["--cells", "B"],
            "evaluate/report.py": ["--cells", "B"],
            "evaluate/meta_plan.py": [],
            "evaluate/tune.py": ["--plan"],
            "pretrain/backbone.py": ["--print_config"],
            "pretrain/zoo.py": ["--help"],
            "datasets/efficientnet_lite.py": ["--help"],
            "datasets/cifar10.py": ["--help"],
        }
        done = start(sys.executable, *words[1:], *extra[words[1]], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    return " ".join(words[:2])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository's scripts and configs, whose configs may be changed."""
    for folder in ("pretrain", "datasets", "evaluate", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.slow
def test_the_commands_that_reproduce_the_paper_are_right(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have the options that they name, and files that are there."""
    monkeypatch.chdir(checkout)
    commands = [line for block in blocks("reproduce.md", "sh") for line in block.splitlines()]
    done = [dry_run(command, checkout) for command in commands]
    for what in ("l3rs meta-train", "python pretrain/backbone.py", "python evaluate/report.py"):
        assert done.count(what) == 2, what
    assert (done.count("python evaluate/run.py"), done.count("python evaluate/tune.py")) == (5, 3)
    assert (checkout / "tables.md").stat().st_size > 1000
    assert (checkout / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_meta_training_on_a_cluster_as_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal runs on a cluster of two nodes, started as the `ray` commands would; these and the large run are dry runs."""
    from ray.cluster_utils import Cluster

    page = "cluster.md"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    head, node, first, second, large, evaluation = (block.strip() for block in blocks(page, "sh"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        for command in (first, second):
            words = shlex.split(command.replace("HOST:6379", cluster.address))
            run(sys.executable, "-m", "l3rs.cli", *words[1:], cwd=tmp_path)
    finally:
        cluster.shutdown()
    curve = (tmp_path / "runs" / "rehearsal" / "curve.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in curve[1:]] == [0, 1, 2, 3]
    assert [dry_run(command, tmp_path) for command in (head, node, large)] == ["ray start", "ray start", "l3rs meta-train"]
    (tmp_path / "evaluate").symlink_to(ROOT / "evaluate")
    assert dry_run(evaluation, tmp_path) == "python evaluate/run.py"


@pytest.mark.parametrize("picture", sorted(file.name for file in (DOCS / "pictures").glob("*.png") if (FIGURES / file.name).exists()))
def test_a_picture_of_the_report_is_the_same_on_the_pages(picture: str) -> None:
    assert (DOCS / "pictures" / picture).read_bytes() == (FIGURES / picture).read_bytes()


@pytest.mark.slow
def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    run(sys.executable, str(DOCS / "pictures" / "draw.py"), "--tasks", "1", "--steps", "10", "--out", str(tmp_path), cwd=tmp_path)
    drawn = sorted(file.name for file in tmp_path.glob("*.png"))
    assert drawn == sorted(set(re.findall(r"pictures/([\w-]+\.png)", (DOCS / "idea.md").read_text())))
    assert all(matplotlib.image.imread(tmp_path / name).std() > 0.05 for name in drawn)


@pytest.mark.slow
def test_the_site_builds_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Neither fonts nor scripts nor pictures: it works without a network."""
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"), cwd=ROOT)
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) == len(PAGES) + 1  # and 404.html
    loaded = r"""<(?:script|img|iframe)[^>]*\ssrc="([^"]*)"|<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href="([^"]*)\""""
    for page in pages:
        found = [a or b for a, b in re.findall(loaded, page.read_text())]
        assert found
        assert [address for address in found if re.match(r"(https?:)?//", address)] == [], page
    assert json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())["docs"]
