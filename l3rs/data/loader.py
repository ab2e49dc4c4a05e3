"""Loading images in processes that end in good order, and that do not outgrow the shared memory they hand batches over in."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from l3rs.processes import heed_parent, unseen

SHARED = Path("/dev/shm")
AHEAD = 2  # batches that each process makes ahead, as torch has it


class Loader(DataLoader[Any]):
    """A DataLoader whose processes leave Ctrl-C and SIGTERM to the one that started them."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.worker_init_fn = self.worker_init_fn or heed_parent
        with unseen(signal.SIGINT, signal.SIGTERM):
            return super().__iter__()


def workers_that_fit(workers: int, batch: int, loaders: int = 1, shared: Path = SHARED) -> int:
    """As many of these processes as there is shared memory for, where containers may have next to none; says so where it is fewer.

    A process that writes beyond it is killed, and torch then waits for it for ever.

    Args:
        workers: processes that are wanted for each loader.
        batch: bytes of one.
        loaders: how many there are at a time.
        shared: where shared memory is.
    """
    try:
        free = os.statvfs(shared)
    except OSError:  # not Linux
        return workers
    fit = free.f_bavail * free.f_frsize // (loaders * (AHEAD + 1) * batch)
    if fit < workers:
        said = f"{shared} has room for the batches of {fit} processes that decode, not of {workers}; docker run --shm-size gives more"
        print(f"l3rs: {said}", file=sys.stderr)
    return min(workers, fit)
