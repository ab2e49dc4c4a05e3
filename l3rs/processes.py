"""Processes: their cores, their end on Ctrl-C or SIGTERM, and commands with a limit of time."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

CGROUPS = Path("/sys/fs/cgroup")
Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | signal.Handlers | None"  # of a signal


def cores(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Counts the cores that this process may use: those it is bound to (taskset, Slurm), up to a container's quota.

    Args:
        cgroups: mount point of control groups.
        own: lists the groups of this process.
    """
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        bound = os.cpu_count() or 1
    return max(1, math.ceil(min([bound, *_quotas(cgroups, own)])))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Yields the quotas of this process's control groups in cores, from its own up to the root; of versions 2 and 1."""
    try:
        groups = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except OSError:  # not Linux
        return
    for controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = cgroups / controllers if controllers else cgroups
        for group in (mount / path.strip("/"), *(mount / p for p in Path(path.strip("/")).parents)):
            try:
                if controllers:
                    quota, period = ((group / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
                else:
                    quota, period = (group / "cpu.max").read_text().split()
                if quota != "max" and int(quota) > 0:  # -1 is none
                    yield int(quota) / int(period)
            except (OSError, ValueError):  # the root has none
                continue


_terminated = threading.Event()


def terminate(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM, from a person, a batch system or `timeout`, like Ctrl-C.

    It heeds only the first: `timeout`, for one, sends two.
    """
    _terminated.set()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def exit_code() -> int:
    """The exit code after a KeyboardInterrupt, as in a shell: of Ctrl-C, or of SIGTERM."""
    return 128 + (signal.SIGTERM if _terminated.is_set() else signal.SIGINT)


@contextmanager
def on_sigterm(handler: Handler) -> Iterator[None]:
    """Handles SIGTERM with `handler`, and restores the old handler afterwards, even if a library has set another."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    if handler is terminate:
        _terminated.clear()
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def unseen(*signals: signal.Signals) -> Iterator[None]:
    """Hides these signals from processes and threads that start within it; a terminal or a batch system sends them to a whole group.

    Only their parent sees the signals, once all have started, and ends them in good order.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in signals} if main else {}
    try:
        yield
    finally:
        for which, handler in handlers.items():
            signal.signal(which, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in came:  # another thread took it: the mask is this thread's
            signal.raise_signal(number)


def heed_parent(_: int = 0) -> None:
    """Ends this process, started within `unseen(SIGTERM)`, when its parent sends SIGTERM."""

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def run_limited(command: Sequence[str], seconds: float, log: Path) -> int | None:
    """Runs a command in a process group of its own, of which nothing is left afterwards.

    Args:
        seconds: after which the group is killed, whatever it does.
        log: takes what the command writes.

    Returns:
        Its exit code, negative if a signal ended it; None if its time was up.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # nothing is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
