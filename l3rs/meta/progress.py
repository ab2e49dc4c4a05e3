"""Live progress of a meta-training run: a bar, TensorBoard, and a picture of the curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tensorboardX import SummaryWriter
from tqdm import tqdm

from l3rs.plots import plot_curve


class Progress:
    """Shows each generation as it ends.

    Args:
        folder: of the run; TensorBoard's files go into `tensorboard/`, the picture is `curve.png`.
        name: of the schedule.
        generation, generations: where the run is, and where it ends.
        shown: whether the bar is.
    """

    def __init__(self, folder: Path, name: str, generation: int, generations: int, shown: bool) -> None:
        self.folder, self.name = folder, name
        self.bar = tqdm(total=generations, initial=generation, desc=name, unit="gen", disable=not shown)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=generation)
        self.validation: dict[str, str] = {}

    def generation(self, row: Mapping[str, float | int | str]) -> None:
        """Shows a row of the curve."""
        step = int(row["generation"])
        for name, value in row.items():
            if name not in ("generation", "steps") and value != "":
                self.board.add_scalar(name, float(value), step)
        if "validation_accuracy" in row:
            self.validation = {"val": f"{float(row['validation_accuracy']):.3f}"}
            plot_curve(pd.read_csv(self.folder / "curve.csv"), self.folder / "curve.png", f"{self.name}: meta-training")
        if step:
            shown = {"loss": "mean_loss", "best": "best_loss", "spread": "spread"}
            numbers = {short: f"{float(row[name]):.3f}" for short, name in shown.items()}
            rates = {
                "sigma": f"{float(row['sigma']):.2g}",
                "alpha": f"{float(row['lr']):.2g}",
                "steps/s": f"{row['inner_steps_per_second']}",
            }
            lost = {"lost": f"{int(row['diverged']) + int(row['failed'])}"} if int(row["diverged"]) + int(row["failed"]) else {}
            self.bar.set_postfix({**numbers, **self.validation, **rates, **lost})
            self.bar.update()

    def close(self) -> None:
        """Ends the bar and flushes TensorBoard's files."""
        self.bar.close()
        self.board.close()
