"""BatchNorm's statistics at the last weights, for validation and at the end."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from l3rs.networks import recent_statistics
from l3rs.networks.batch_norms import batch_norms


class RecentStatistics(Callback):
    """Validates, and ends, with BatchNorm's statistics of the last training batches, see `l3rs.RecentStatistics`.

    Running ones lag behind the weights. Training does not change. The module's `state_dict`, and so every checkpoint, holds the recent
    statistics, as they were validated; the running ones are beside them, for a resume. A module without BatchNorm stays as it is. Where
    weights are averaged, statistics of the last batches are those of other weights: Lightning's `WeightAveraging` is refused beside it.

    Args:
        last, share: as in `l3rs.RecentStatistics`.
        network: the name in the module of what holds all BatchNorm and is called once a batch; None finds it.

    Raises:
        ValueError: as `l3rs.RecentStatistics`; there is no such network, or weights are averaged; or, after the first batch, it was not
            called.
    """

    def __init__(self, last: int = 20, share: float = 0.2, network: str | None = None) -> None:
        recent_statistics.RecentStatistics(nn.Identity(), last, share).close()  # checks them
        self.last, self.share, self.network = last, share, network
        self._recent: recent_statistics.RecentStatistics | None = None
        self._lent = ExitStack()
        self._saved: dict[str, Any] = {}  # of a run to go on with, or of one that is over
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._saved = {}  # of an earlier run; that of a resumed one comes with its state, later

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "RecentStatistics has those of the weights of the last steps, and WeightAveraging evaluates other weights: leave one out"
            )
        self._prefix = self._find(pl_module) if self.network is None else self.network
        network = dict(pl_module.named_modules()).get(self._prefix)
        if network is None:
            raise ValueError(f"network is {self.network!r}, and {type(pl_module).__name__} has no module of this name")
        self._recent = recent_statistics.RecentStatistics(network, self.last, self.share)
        if self._saved:
            self._recent.load_state_dict(self._saved)
            buffers = dict(pl_module.named_buffers())
            for name, value in self._saved["running"].items():
                buffers[name].copy_(value)
            self._saved = {}
        self._hook = pl_module.register_state_dict_post_hook(partial(self._put_among_weights))  # type: ignore[no-untyped-call]

    def _find(self, pl_module: pl.LightningModule) -> str:
        """The innermost module that holds all BatchNorm and has a forward pass."""
        norms = [name.split(".")[:-1] for name, m in pl_module.named_modules() if isinstance(m, _BatchNorm)]
        common = norms[0] if norms else []
        for parts in norms[1:]:
            common = [a for i, a in enumerate(common) if parts[: i + 1] == common[: i + 1]]
        modules = dict(pl_module.named_modules())
        while common and isinstance(modules[".".join(common)], (nn.ModuleList, nn.ModuleDict)):
            common = common[:-1]
        return ".".join(common)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if not outputs and pl_module.automatic_optimization:
            return  # the training step left this batch out
        if self._recent and not self._recent.taken and any(map(recent_statistics.follows, batch_norms(pl_module))):
            where = f"{type(pl_module).__name__}{'.' if self._prefix else ''}{self._prefix}"
            raise ValueError(f"{where} was not called in the training step: give RecentStatistics the name of the network that is")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._recent and not trainer.sanity_checking:
            self._lent.enter_context(self._recent.applied())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lent.close()

    def _in_module(self, name: str) -> str:
        """What a buffer of the network is called in the module."""
        return f"{self._prefix}.{name}" if self._prefix else name

    def _put_among_weights(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        """Of the module's `state_dict`; a hook of callbacks would not see a checkpoint of weights only."""
        if self._recent:
            state |= {prefix + self._in_module(name): value for name, value in self._recent.means().items()}

    def state_dict(self) -> dict[str, Any]:
        if not self._recent:
            return dict(self._saved)
        running = dict(self._recent.network.named_buffers())
        return self._recent.state_dict() | {"running": {self._in_module(name): running[name].clone() for name in self._recent.means()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        """The network has the recent statistics; the running ones are kept for a checkpoint that is saved only now."""
        self._lent.close()
        if self._recent:
            self._saved = self.state_dict()
            self._recent.apply()
            self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        """Gives back what is lent, and follows the network no more."""
        self._lent.close()
        if self._hook:
            self._hook.remove()
            self._hook = None
        if self._recent:
            self._recent.close()
            self._recent = None
