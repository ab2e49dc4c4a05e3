"""What L3RS decides, for every logger and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import STEP_OUTPUT

from l3rs.networks.layer_groups import layer_groups
from l3rs.optimizer.l3rs import L3RS
from l3rs.plots import plot_decisions

POINTS = 200  # of a picture's curves, at most about this many


class L3RSMonitor(Callback):
    """Logs what L3RS decides, and draws it when training ends.

    Layers are grouped by `layer_groups`. To every logger go, every `log_every_n_steps` of the trainer, `lambda/DEPTH/KIND`, the geometric
    mean over the group's layers, and `mu_NAME/DEPTH/KIND`, their mean, for each direction. `l3rs.png`, in the folder of the first logger or
    in `default_root_dir`, shows them against the step; it covers the whole run, also when that was resumed. Of several L3RS, all layers are
    shown, by the clock of the first.

    Attributes:
        decisions: what was recorded, a row a step and group: `step` (from 1), `depth`, `kind`, `lambda`, `mu_NAME`.

    Raises:
        ValueError: when training starts, the optimizer is not L3RS.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._taken = 0

    @property
    def decisions(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._taken = _l3rs_of(trainer)[0].param_groups[0]["step"]
        self._rows = [row for row in self._rows if row["step"] <= self._taken]  # of the run that goes on; of no other
        self._groups = layer_groups(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        group = _l3rs_of(trainer)[0].param_groups[0]
        if group["step"] == self._taken or not trainer.is_global_zero:  # no step: gradients accumulate, or a scaler skipped it
            return
        self._taken = step = group["step"]
        last, between = group["total_steps"], trainer.log_every_n_steps  # type: ignore[attr-defined]
        to_log = bool(between) and step % between == 0 and bool(trainer.loggers)
        to_draw = step in (1, last) or step % max(1, last // POINTS) == 0
        if not to_log and not to_draw:
            return
        rows = self._by_group(_l3rs_of(trainer))
        if to_draw:
            self._rows += [{"step": step, **row} for row in rows]
        if to_log:
            metrics = {f"{what}/{r['depth']}/{r['kind']}": r[what] for r in rows for what in r if what not in ("depth", "kind")}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step - 1)  # as Lightning counts what is logged in `training_step`

    def _by_group(self, optimizers: Sequence[L3RS]) -> list[dict[str, Any]]:
        """The last step's decisions: a row a group, in the order of the network."""
        decided = pd.concat([o.decisions() for o in optimizers if o.param_groups[0]["step"]])
        table = decided.drop(columns="length").join(self._groups)
        table["lambda"] = np.log(table["lambda"])
        mean = table.groupby(["depth", "kind"], sort=False).mean().reset_index()
        mean["lambda"] = np.exp(mean["lambda"])
        return [{str(column): value for column, value in row.items()} for row in mean.to_dict("records")]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # asked by all ranks: the first one's is broadcast
        if self._rows and trainer.is_global_zero:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.draw(Path(folder))

    def draw(self, folder: Path) -> None:
        """Draws what was recorded as `l3rs.png` in a folder."""
        plot_decisions(self.decisions, folder / "l3rs.png")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self._rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = list(state_dict["rows"])


def _l3rs_of(trainer: pl.Trainer) -> list[L3RS]:
    found = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, L3RS)]
    if not found:
        raise ValueError(f"L3RSMonitor shows what L3RS decides, and the optimizer is {type(trainer.optimizers[0]).__name__}")
    return found
