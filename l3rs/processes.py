"""Processes: how many cores they may use, and how they end when the system or a person says so."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

CGROUPS = Path("/sys/fs/cgroup")
Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | signal.Handlers | None"  # of a signal


def cores(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """How many cores this process may use: those that it is bound to (taskset, Slurm), and no more than a container's quota.

    Args:
        cgroups: where control groups are mounted.
        own: which of them this process is in.
    """
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        bound = os.cpu_count() or 1
    return max(1, math.ceil(min([bound, *_quotas(cgroups, own)])))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Cores' worth of time that this process's control groups are given, from its own up to the root; of version 2 and of version 1."""
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
    """A handler of SIGTERM, from a person, a batch system or `timeout`: the process ends as it does on Ctrl-C.

    Only at the first of them: `timeout`, for one, sends two.
    """
    _terminated.set()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def exit_code() -> int:
    """What a process that met KeyboardInterrupt exits with, as a shell has it: by Ctrl-C, or by SIGTERM."""
    return 128 + (signal.SIGTERM if _terminated.is_set() else signal.SIGINT)


@contextmanager
def on_sigterm(handler: Handler) -> Iterator[None]:
    """Within it SIGTERM does this; after it again what it did before, whatever handler a library has put there meanwhile."""
    if threading.current_thread() is not threading.main_thread():  # others may not handle signals
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
    """Processes and threads that are started within it never see these signals, which a terminal or a batch system sends to a whole group.

    Only the one that starts them does, once they have started, and ends them in good order: half of them, nobody could.
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
        for number in came:  # which another thread has taken: the mask is of this one
            signal.raise_signal(number)


def heed_parent(_: int = 0) -> None:
    """In a process that was started where SIGTERM is unseen: ends it when that comes from its parent, which then waits for it."""

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
