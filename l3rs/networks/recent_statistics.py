"""BatchNorm's statistics at the weights that a run has come to, for evaluations along it and at its end, without a further forward pass.

Running statistics lag behind the weights: with a momentum of 0.1 a third of what they hold after 10 steps is of the pretrained network.
`torch.optim.swa_utils.update_bn` measures them anew, with a pass over some 20 batches. Here they are the mean over the last few training
batches, whose statistics follow from what each has made of the running ones: with momentum m, batch = (after - (1 - m) before) / m. Where
a forward pass goes through a layer n times, (1 - m)^n takes the place of 1 - m.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _BatchNorm

from l3rs.networks.batch_norms import batch_norms

Statistics = dict[str, Tensor]
HALF = (torch.float16, torch.bfloat16)
LEAST = 0.99e-4  # share of a batch in the running statistics, below which a batch told from them is mostly their rounding
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


Copies = list[tuple[Tensor, Tensor, Tensor]]  # mean, variance and count of batches, of each


class _Pass(NamedTuple):
    """What a forward pass has made of the running statistics: momenta by name; each one's mean, variance and count of batches around it."""

    momenta: dict[str, float | None]
    before: Copies
    after: Copies

    def statistics(self) -> Statistics:
        """Of its batch. A layer that the pass did not come through has none."""
        found: Statistics = {}
        counts = [
            (later - earlier).to(self.before[0][-1].device) for (*_, earlier), (*_, later) in zip(self.before, self.after, strict=True)
        ]
        each = zip(self.momenta.items(), self.before, self.after, torch.stack(counts).tolist(), strict=True)  # one wait for the device
        for (name, momentum), (*before, _), (*after, later), times in each:
            share = times / int(later) if momentum is None and times else 1 - (1 - (momentum or 0)) ** times
            for which, old, new in zip(BUFFERS, before, after, strict=False):
                if share >= LEAST:
                    found[f"{name}.{which}".removeprefix(".")] = (new - (1 - share) * old) / share
        return found


def follows(norm: _BatchNorm) -> bool:
    """Whether batches go into its statistics, and can be told from them."""
    return norm.training and _can_be_told(norm)


def _can_be_told(norm: _BatchNorm) -> bool:
    counted = norm.running_mean is not None and norm.num_batches_tracked is not None
    return counted and norm.momentum != 0 and cast(Tensor, norm.running_mean).dtype not in HALF


def _layer(buffer: str) -> str:
    """The name of a buffer's layer."""
    return buffer.rpartition(".")[0]


def _copies(norms: dict[str, _BatchNorm]) -> Copies:
    """Of each one's mean, variance and count of batches; all of a kind in one launch."""
    buffers = [[cast(Tensor, getattr(norm, which)) for norm in norms.values()] for which in BUFFERS]
    with torch.no_grad():
        return list(zip(*(torch._foreach_mul(some, 1) for some in buffers), strict=True))


class RecentStatistics:
    """Follows a network's training, and gives its BatchNorm the statistics of the last batches.

    In a `with`, the network has them at the end. In between, `applied` lends them to an evaluation. Training sees nothing of it: it
    normalizes by the batch, and the running statistics go on. A network without BatchNorm stays as it is, and so does BatchNorm that is
    frozen, from the start or at the end of a run, that does not count its batches (`num_batches_tracked`), or whose statistics are too
    coarse to tell a batch from: of half precision, or where a batch's share is below 1e-4, as with `momentum=None` after 10,000 batches.
    Each process of several has those of its own batches.

    Args:
        network: whose forward passes in training mode are counted, one for each batch.
        last: average over at most this many batches [choice].
        share: that part of the run so far is averaged, one batch at least: the first steps move the weights far [choice].

    Raises:
        ValueError: `last` is below 1, or `share` is not above 0 and at most 1.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        >>> with RecentStatistics(network) as recent:
        ...     for _ in range(10):
        ...         _ = network(torch.randn(8, 3))  # and a step
        ...     with recent.applied():
        ...         _ = network.eval()(torch.randn(2, 3))  # an evaluation on the way
    """

    def __init__(self, network: nn.Module, last: int = 20, share: float = 0.2) -> None:
        if last < 1:
            raise ValueError(f"last must be at least 1 batch (got {last})")
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1 (got {share})")
        self.network, self.last, self.share = network, last, share
        self.taken = 0
        self._batches: deque[Statistics | _Pass] = deque(maxlen=last)
        self._followed: frozenset[str] | None = None  # names of the layers that the last pass went into; None is after a resume
        self._passing: tuple[dict[str, _BatchNorm], Copies] | None = None  # of the forward pass that is under way
        self._counts = {norm: cast(Tensor, norm.num_batches_tracked).clone() for norm in batch_norms(network) if _can_be_told(norm)}
        self._hooks = [network.register_forward_pre_hook(self._before), network.register_forward_hook(self._after)]

    # -- in training -------------------------------------------------------------------------------------------------------------------

    @_disable_dynamo  # a network that compiles itself would be compiled anew for each batch
    def _before(self, *_: Any) -> None:
        self._passing = None
        if self.network.training:
            followed = {name: norm for name, norm in self.network.named_modules() if isinstance(norm, _BatchNorm) and follows(norm)}
            if followed:
                self._passing = followed, _copies(followed)
            else:
                self._batches.clear()  # the weights now train against the running ones, which have been frozen

    @_disable_dynamo
    def _after(self, *_: Any) -> None:
        if self._passing:
            followed, before = self._passing
            self._followed = frozenset(followed)
            self._batches.append(_Pass({name: norm.momentum for name, norm in followed.items()}, before, _copies(followed)))
            self.taken += 1
            self._passing = None

    # -- in use ------------------------------------------------------------------------------------------------------------------------

    def means(self) -> Statistics:
        """The means over the last batches, (C,), by the buffers' names; none before the first batch in training mode."""
        number = min(len(self._batches), max(1, round(self.share * self.taken)))
        batches = self._statistics(number)
        followed = self._followed if self._followed is not None else frozenset(map(_layer, batches[-1] if batches else ()))
        names = dict.fromkeys(name for batch in batches for name in batch if _layer(name) in followed)
        of = {name: [batch[name] for batch in batches if name in batch] for name in names}
        means = {name: torch.stack(found).mean(0) for name, found in of.items()}
        return {name: mean.clamp_min(0) if name.endswith("running_var") else mean for name, mean in means.items()}

    def _statistics(self, number: int) -> list[Statistics]:
        """Of the last `number` batches. It waits for the device, as training does not."""
        found: list[Statistics] = []
        for i in range(len(self._batches) - number, len(self._batches)):
            batch = self._batches[i]
            found.append(batch.statistics() if isinstance(batch, _Pass) else batch)
            self._batches[i] = found[-1]
        return found

    def apply(self) -> None:
        """Puts them in the place of the running statistics, for good. Before the first batch it does nothing, as `applied`."""
        buffers = dict(self.network.named_buffers())
        for name, value in self.means().items():
            buffers[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lends them to the network; afterwards it has its running statistics, to the bit."""
        buffers = dict(self.network.named_buffers())
        before = {name: buffers[name].clone() for name in self.means()}
        self.apply()
        try:
            yield
        finally:
            for name, value in before.items():
                buffers[name].copy_(value)

    def close(self) -> None:
        """Follows the network no more."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> RecentStatistics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if kind is not None:
            return
        if not self.taken and any(bool(norm.num_batches_tracked != count) for norm, count in self._counts.items()):
            warnings.warn(
                f"RecentStatistics saw no forward pass of {type(self.network).__name__}, and its BatchNorm did: call the network itself, "
                "not its forward(), and give the compiled one where it is compiled; BatchNorm keeps its running statistics",
                stacklevel=2,
            )
        self.apply()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after a resume."""
        return {"taken": self.taken, "batches": [dict(batch) for batch in self._statistics(len(self._batches))]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        buffers = dict(self.network.named_buffers())
        self.taken = int(state["taken"])
        self._batches = deque(({n: t.to(buffers[n].device) for n, t in batch.items()} for batch in state["batches"]), maxlen=self.last)
