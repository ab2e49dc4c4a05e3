"""Live progress of a meta-training run: a bar, TensorBoard, and a picture of the curve."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from l3rs.plots import plot_curve

BOARD = find_spec("tensorboardX") is not None  # without it there are the bar and the picture
if BOARD:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar


class Progress:
    """Shows each generation as it ends.

    Args:
        folder: of the run; TensorBoard's files go into `tensorboard/`, the picture is `curve.png`.
        name: of the schedule.
        generation, generations: the last generation so far, and of the run.
        shown: whether to show the bar.
    """

    def __init__(self, folder: Path, name: str, generation: int, generations: int, shown: bool) -> None:
        self.folder, self.name = folder, name
        self.bar = tqdm(total=generations, initial=generation, desc=name, unit="gen", disable=not shown)
        self.validation: dict[str, str] = {}
        if not BOARD:
            return
        (folder / "tensorboard").mkdir(exist_ok=True)
        # Not tensorboardX's SummaryWriter: where its thread cannot write, as on a full disk, the run waits for it for ever.
        # It names its file by the second: two runs in one process and one second would share one.
        self.board = EventsWriter(str(folder / "tensorboard" / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        self._write(generation + 1, session_log=SessionLog(status=SessionLog.START))  # hides later ones of a run that was stopped

    def _write(self, step: int, **what: Any) -> None:
        """Writes an event of TensorBoard, with the time of day."""
        self.board.write_event(Event(wall_time=time.time(), step=step, **what))

    def generation(self, row: Mapping[str, float | int | str]) -> None:
        """Shows a row of the curve."""
        step = int(row["generation"])
        if BOARD:
            for name, value in row.items():
                if name not in ("generation", "steps") and value != "":
                    self._write(step, summary=scalar(name, float(value)))
            self.board.flush()
        if "validation_accuracy" in row:
            self.validation = {"val": f"{float(row['validation_accuracy']):.3f}"}
            plot_curve(pd.read_csv(self.folder / "curve.csv"), self.folder / "curve.png", f"{self.name}: meta-training")
        if step:
            shown = {"loss": "mean_loss", "best": "best_loss", "spread": "spread"}
            numbers = {short: f"{float(row[name]):.3f}" for short, name in shown.items()}
            rates = {
                "sigma": f"{float(row['sigma']):.2g}",
                "lr": f"{float(row['lr']):.2g}",
                "steps/s": f"{row['inner_steps_per_second']}",
            }
            lost = {"lost": f"{int(row['diverged']) + int(row['failed'])}"} if int(row["diverged"]) + int(row["failed"]) else {}
            self.bar.set_postfix({**numbers, **self.validation, **rates, **lost})
            self.bar.update()

    def close(self) -> None:
        """Ends the bar and flushes TensorBoard's files."""
        self.bar.close()
        if BOARD:
            with suppress(OSError):  # all is flushed, or an error has told of it
                self.board.close()
