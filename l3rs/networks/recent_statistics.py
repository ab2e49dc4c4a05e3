"""BatchNorm's statistics at the weights that a run has come to, for evaluations along it and at its end, without a further forward pass.

Running statistics lag behind the weights: with a momentum of 0.1 a third of what they hold after 10 steps is of the pretrained network.
`torch.optim.swa_utils.update_bn` measures them anew, with a pass over some 20 batches. Here they are the mean over the last few training
batches, whose statistics follow from what each has made of the running ones: with momentum m, batch = (after - (1 - m) before) / m.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = dict[str, Tensor]


class RecentStatistics:
    """Follows a network's training, and gives its BatchNorm the statistics of the last batches.

    In a `with`, the network has them at the end. In between, `applied` lends them to an evaluation. Training sees nothing of it: it
    normalizes by the batch, and the running statistics go on. A network without BatchNorm stays as it is, and so does BatchNorm that is
    frozen, from the start or at the end of a run. Each process of several has those of its own batches.

    Args:
        network: whose forward passes in training mode are counted, one for each batch.
        last: so many batches are averaged at most [choice].
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
        self._batches: deque[Statistics] = deque(maxlen=last)
        self._kept: list[Tensor] = []
        self._hooks = [network.register_forward_pre_hook(self._before), network.register_forward_hook(self._after)]

    # -- in training -------------------------------------------------------------------------------------------------------------------

    def _trained(self) -> tuple[list[str], list[Tensor], list[float]]:
        """The running statistics that this batch goes into, by name, and its share of them."""
        names, buffers, shares = [], [], []
        for name, norm in self.network.named_modules():
            if isinstance(norm, _BatchNorm) and norm.training and norm.running_mean is not None and norm.momentum != 0:
                share = 1 / (int(cast(Tensor, norm.num_batches_tracked)) + 1) if norm.momentum is None else norm.momentum
                names += [f"{name}.{kept}".removeprefix(".") for kept in ("running_mean", "running_var")]
                buffers += [norm.running_mean, cast(Tensor, norm.running_var)]
                shares += [share, share]
        return names, buffers, shares

    @_disable_dynamo  # a network that compiles itself would be compiled anew for each batch
    def _before(self, *_: Any) -> None:
        self._kept = []
        if self.network.training:
            self._names, self._buffers, self._shares = self._trained()
            if self._names:
                self._kept = list(torch._foreach_mul(self._buffers, [1 - share for share in self._shares]))
            else:
                self._batches.clear()  # the weights now train against the running ones, which have been frozen

    @_disable_dynamo
    def _after(self, *_: Any) -> None:
        if self._kept:
            with torch.no_grad():
                batch = torch._foreach_sub(self._buffers, self._kept)
                torch._foreach_div_(batch, self._shares)
            self._batches.append(dict(zip(self._names, batch, strict=True)))
            self.taken += 1
            self._kept = []

    # -- in use ------------------------------------------------------------------------------------------------------------------------

    def means(self) -> Statistics:
        """The means over the last batches, (C,), by the buffers' names; none before the first batch in training mode."""
        number = min(len(self._batches), max(1, round(self.share * self.taken)))
        batches = list(self._batches)[-number:] if number else []
        names = batches[-1] if batches else ()
        of = {name: [batch[name] for batch in batches if name in batch] for name in names}
        means = {name: torch.stack(found).mean(0) for name, found in of.items()}
        return {name: mean.clamp_min(0) if name.endswith("running_var") else mean for name, mean in means.items()}

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
        if kind is None:
            self.apply()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after a resume."""
        return {"taken": self.taken, "batches": [dict(batch) for batch in self._batches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        buffers = dict(self.network.named_buffers())
        self.taken = int(state["taken"])
        self._batches = deque(({n: t.to(buffers[n].device) for n, t in batch.items()} for batch in state["batches"]), maxlen=self.last)
