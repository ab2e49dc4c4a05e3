"""Loads images in processes that end in good order, and that fit the shared memory through which they hand over batches."""

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
AHEAD = 2  # batches that each process makes ahead, torch's default


class Loader(DataLoader[Any]):
    """A DataLoader whose processes leave Ctrl-C and SIGTERM to their parent."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.worker_init_fn = self.worker_init_fn or heed_parent
        with unseen(signal.SIGINT, signal.SIGTERM):
            return super().__iter__()


def workers_that_fit(workers: int, batch: int, loaders: int = 1, shared: Path = SHARED) -> int:
    """Limits the processes of a loader to the shared memory, which containers may lack, and says so on stderr.

    A process that writes beyond it is killed, and torch would wait for it for ever.

    Args:
        workers: processes wanted for each loader.
        batch: bytes of a batch.
        loaders: number of loaders at a time.
        shared: folder of the shared memory.
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
