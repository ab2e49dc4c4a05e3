"""Parameters stepped together: a portion at a time in C or, on CUDA, in Triton where that can be, else one by one in torch operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l3rs.learned.elements import ElementsKernel, refused
from l3rs.learned.mlp import MLP, Member, Rule, direction

if TYPE_CHECKING:
    from l3rs.learned.elements_triton import TritonElements

TOGETHER = 1 << 20  # elements in a portion, unless one parameter has more; what it needs beside the state is freed before the next
ON_CUDA = 1 << 24  # the same on CUDA, where each portion is seven launches


def kernel_for(device: str) -> type[ElementsKernel | TritonElements]:
    """The kernel of a type of device."""
    if device == "cpu":
        return ElementsKernel
    from l3rs.learned.elements_triton import TritonElements  # only where it is used: Triton takes a second

    return TritonElements


class Portions:
    """The parameters of an optimizer, in consecutive portions. Kernels are kept from step to step, as long as states stay where they are.

    Args:
        rule: of the optimizer.
        hidden: width of its MLP.
        fused: False takes torch operations throughout.
    """

    def __init__(self, rule: Rule, hidden: int, fused: bool | None = None) -> None:
        self.rule, self.hidden, self.fused = rule, hidden, fused
        self._kernels: dict[object, ElementsKernel | TritonElements] = {}

    def directions(self, members: Sequence[Member], mlps: Sequence[MLP]) -> Iterator[Tensor]:
        """Advances the states, and gives what each parameter's MLP makes of it, one after the other: see `direction`."""
        for start, stop, kernel in self._parts(members):
            some, theirs = members[start:stop], mlps[start:stop]
            if kernel is None:
                yield from (direction(m.state, m.g, m.p, mlp, self.rule) for m, mlp in zip(some, theirs, strict=True))
            else:
                found = kernel([m.g for m in some], [m.p for m in some], theirs)
                while found:
                    yield found.pop(0)

    def moments(self, members: Sequence[Member]) -> Tensor:
        """Of each parameter, (L, 9): the mean of p^2; mean and variance of r, then of each momentum."""
        measured = []
        for start, stop, kernel in self._parts(members):
            some = members[start:stop]
            if kernel is None:
                measured += [torch.stack(_moments(m)).to(members[0].p).unsqueeze(0) for m in some]
                continue
            sums = kernel.measure([m.g for m in some], [m.p for m in some])
            means = sums / torch.tensor([[float(m.p.numel())] for m in some], dtype=torch.float64, device=sums.device)
            means[:, 2::2] -= means[:, 1::2].square()  # E x^2 - (E x)^2 in double precision, of numbers in single: little is lost
            means[:, 2::2].clamp_(min=0)
            measured.append(means.to(members[0].p))
        return torch.cat(measured)

    def _parts(self, members: Sequence[Member]) -> Iterator[tuple[int, int, ElementsKernel | TritonElements | None]]:
        """Where portions start and stop, and the kernel of each, or None where the kernel cannot be used."""
        slow = [self.fused is False or refused(m.p, m.state, self.rule.by_matrix, m.g) for m in members]
        most = ON_CUDA if members and members[0].p.device.type == "cuda" else TOGETHER
        start, size = 0, 0
        for i, m in enumerate(members):
            if i > start and (slow[i] != slow[start] or size + m.p.numel() > most or m.p.device != members[start].p.device):
                yield start, i, None if slow[start] else self._kernel(members[start:i])
                start, size = i, 0
            size += m.p.numel()
        if members:
            yield start, len(members), None if slow[start] else self._kernel(members[start:])

    def _kernel(self, members: Sequence[Member]) -> ElementsKernel | TritonElements:
        shapes = tuple(tuple(m.p.shape) for m in members)  # in the key too: memory that was freed may be another state's now
        key = (shapes, tuple(t.data_ptr() for m in members for t in m.state.values()))
        if key not in self._kernels:
            if len(self._kernels) > 1000:  # of parameters that came and went
                self._kernels.clear()
            kernel = kernel_for(members[0].p.device.type)
            self._kernels[key] = kernel(shapes, [m.state for m in members], self.rule, self.hidden)
        return self._kernels[key]


def _moments(m: Member) -> list[Tensor]:
    found = [m.p.square().mean()]
    for x in (m.state["second"], *m.state["momentum"]):
        mean = x.mean()
        found += [mean, (x - mean).square_().mean()]
    return found
