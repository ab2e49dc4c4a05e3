"""Processes: the cores that they may use, and what signals do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from l3rs.processes import cores, exit_code, on_sigterm, terminate, unseen

ROOT = Path(__file__).parent.parent


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores, of which this process is bound to 16."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),  # a core and a half
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000"}, 16),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # of a group that it is in with others
        ("4:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu,cpuacct:/host\n", {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4),  # in Docker
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("3:memory:/a\n", {"memory/a/cpu.max": "100000 100000"}, 16),
        ("0::/\n", {"cpu.max": "something else"}, 16),
        ("", {}, 16),
    ],
)
def test_cores_are_those_that_may_be_used(own: str, files: dict[str, str], expected: int, many: None, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert cores(tmp_path / "groups", tmp_path / "own") == expected


def test_where_there_are_no_control_groups_all_cores_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores(tmp_path, tmp_path / "none") == 64


def test_nobody_counts_the_cores_of_the_machine_or_measures_by_a_clock_that_may_be_set() -> None:
    """All ask `cores`, and durations are of `time.perf_counter`; TensorBoard's events have the time of day."""
    said = {}
    for folder in ("l3rs", "evaluate", "pretrain", "datasets"):
        for file in (ROOT / folder).rglob("*.py"):
            found = re.findall(r"os\.cpu_count\(\)|\btime\.time\(\)|\bdatetime\.now\(", file.read_text())
            said |= {str(file.relative_to(ROOT)): found} if found else {}
    assert said == {"l3rs/processes.py": ["os.cpu_count()"], "l3rs/meta/progress.py": ["time.time()"]}


def test_sigterm_ends_as_ctrl_c_does_and_only_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with on_sigterm(terminate):
        assert exit_code() == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # `timeout` sends two
        assert exit_code() == 143
    assert signal.getsignal(signal.SIGTERM) == before
    with on_sigterm(terminate):
        assert exit_code() == 130


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """As in a terminal: tests in the background of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_signal_comes_after_what_it_must_not_interrupt() -> None:
    said = []

    def at_work() -> None:
        with unseen(signal.SIGINT):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            said.append("whole")

    with pytest.raises(KeyboardInterrupt):
        at_work()
    assert said == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with unseen(signal.SIGINT):  # and without one nothing happens
        pass


def test_a_process_heeds_its_parent_alone() -> None:
    code = (
        "import os, signal, time\nfrom l3rs.processes import heed_parent, unseen\n"
        "with unseen(signal.SIGINT, signal.SIGTERM):\n"
        "    child = os.fork()\n"
        "    if not child:\n        heed_parent()\n        time.sleep(60)\n        os._exit(1)\n"
        "print(child, flush=True)\ninput()\nprint(os.waitpid(child, os.WNOHANG)[0])\nos.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        for number in (signal.SIGTERM, signal.SIGINT):  # from another process
            os.kill(child, number)
        time.sleep(0.3)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.read().split() == ["0", "0"]  # it was there still, and ended well
