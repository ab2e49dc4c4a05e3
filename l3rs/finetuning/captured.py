"""Work on one device that is done again and again: as a CUDA graph where there is a GPU, as it is on a CPU; and several runs side by side.

A small network's step is some hundred small kernels. A CPU thread takes longer to launch them than a GPU to run them. A graph is launched
as a whole; and as small kernels do not fill a GPU, several runs share it, each on a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
WARM_UPS = 2  # before a capture, in which libraries choose their kernels and take their memory
Steps = Generator[None, None, T]  # a run that has launched a step at each `next`


class Captured:
    """Work that does the same at every call, to tensors that stay where they are, and that asks the device nothing.

    On a CPU a call does the work. On CUDA, `capture` records it, and a call then launches the recording.

    Args:
        work: what to do.
        device: of the tensors.
        beside: captured work of the same stream, whose memory is shared; its results are lost only where nobody holds them.
    """

    def __init__(self, work: Callable[[], object], device: torch.device, beside: Captured | None = None) -> None:
        self.work, self.device, self.beside = work, device, beside
        self.graph: Any = None

    def capture(self, warm_ups: int = WARM_UPS) -> None:
        """Records the work, after doing it `warm_ups` times, on the current stream, which must not be the default one; on a CPU, nothing.

        Recording does not do the work.
        """
        if self.device.type != "cuda":
            return
        for _ in range(warm_ups):
            self.work()
        graph = torch.cuda.CUDAGraph()
        shared = self.beside.graph if self.beside is not None else None
        pool = {} if shared is None else {"pool": shared.pool()}
        graph.capture_begin(capture_error_mode="thread_local", **pool)
        try:
            self.work()
        finally:
            graph.capture_end()
        self.graph = graph

    def __call__(self) -> None:
        if self.graph is None:
            self.work()
        else:
            self.graph.replay()


class OnStream:
    """What works on a stream of its own, on CUDA; and on the CPU as usual."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.stream is not None:  # what is there already is made by another stream
            self.stream.wait_stream(torch.cuda.current_stream(device))

    def at_work(self) -> AbstractContextManager[Any]:
        """Within it, launches go to the stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


L = TypeVar("L", bound=OnStream)


class Failed(Generic[T]):
    """The error of a job, in place of what it would have found."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def finish(device: torch.device) -> None:
    """Waits until all that was launched is done, before memory that it may use is given up."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def succeeded(found: Iterable[T | Failed[T]]) -> list[T]:
    """What was found, of jobs that may have failed; raises the first error."""
    results: list[T] = []
    for one in found:
        if isinstance(one, Failed):
            raise one.error
        results.append(one)
    return results


def side_by_side(lanes: Sequence[L], jobs: Iterable[Callable[[L], Steps[Callable[[], T]]]]) -> list[T | Failed[T]]:
    """Does all jobs, on whichever lane is free, a step of each lane in turn.

    Args:
        lanes: each does one job at a time.
        jobs: each takes a lane, launches a step at each `next`, and returns a function that reads what was found; it is called once all is
            launched, so that nothing waits for the device before.

    Returns:
        What was found, in the order of the jobs.
    """
    waiting = enumerate(jobs)
    active: dict[int, tuple[int, Steps[Callable[[], T]]]] = {}
    ended: dict[int, tuple[L, Callable[[], T] | Failed[T]]] = {}
    more = True
    while more or active:
        for place, lane in enumerate(lanes):
            if place not in active:
                following = next(waiting, None)
                if following is None:
                    more = False
                    continue
                active[place] = following[0], following[1](lane)
            number, steps = active[place]
            try:
                with lane.at_work():
                    next(steps)
                continue
            except StopIteration as end:
                ended[number] = lane, end.value
            except Exception as error:  # one job's error must not end the others
                ended[number] = lane, Failed(error)
            del active[place]
    return list(_read(ended))


def _read(ended: dict[int, tuple[L, Callable[[], T] | Failed[T]]]) -> Iterator[T | Failed[T]]:
    for number in sorted(ended):
        lane, found = ended[number]
        try:
            with lane.at_work():  # which waits for its stream
                result = found if isinstance(found, Failed) else found()
        except Exception as error:
            result = Failed(error)
        yield result
