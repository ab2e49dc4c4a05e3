"""Processes that talk through gloo: a piece of work on each rank, and what each of them found."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before torchvision, which the work may import)

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from multiprocessing.pool import Pool
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

Work = Callable[[int, Path], dict[str, Tensor]]
LONGEST = 300  # seconds; work that cannot be imported in a process is never begun


@contextmanager
def processes(number: int) -> Iterator[list[Pool]]:
    """One for each rank, which it keeps: torch remembers by process which part of a tensor is its own."""
    with ExitStack() as stack:
        yield [stack.enter_context(mp.get_context("spawn").Pool(1)) for _ in range(number)]


def run_on(ranks: Sequence[Pool], work: Work, folder: Path) -> list[dict[str, Tensor]]:
    started = [process.apply_async(_start, (rank, work, folder, len(ranks))) for rank, process in enumerate(ranks)]
    for one in started:
        one.get(timeout=LONGEST)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(ranks))]


def _start(rank: int, work: Work, folder: Path, ranks: int) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet = {"init_method": f"file://{folder / 'rendezvous'}", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks, **meet)
    try:
        torch.save(work(rank, folder), folder / f"{rank}.pt")
    finally:
        # A rank that leaves closes its connections, and one that still waits for its last message may lose it.
        (folder / f"{rank}.done").touch()
        while not all((folder / f"{other}.done").exists() for other in range(ranks)):
            time.sleep(0.01)
        dist.destroy_process_group()
