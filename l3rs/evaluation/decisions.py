"""Records a schedule's decisions along runs as rows: lambda and mu of every layer at every step, and the time features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from l3rs.controller.features import TimeFeatures, feature_names
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import unroll
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.networks.layer_groups import layer_groups
from l3rs.optimizer.l3rs import L3RS
from l3rs.schedules.schedule import LearnedSchedule

KINDS = ("convolution", "scale", "shift", "head")  # of the layers of ResNets
KEY = ["schedule", "horizon", "task_seed", "step", "layer"]
DIGITS = 4  # significant ones of lambda, length and mu: enough for pictures, and a third of the file's size


def record(
    learned: LearnedSchedule,
    steps: int,
    task_seed: int,
    purpose: str = "meta-test",
    workload: Workload | None = None,
    size: TaskConfig | None = None,
) -> pd.DataFrame:
    """Records the decisions of one fine-tuning run: a row a step and layer.

    Args:
        learned: the schedule.
        steps: K.
        task_seed: of the task.
        purpose: of the classes in the split.
        workload: network and images; None is the shipped network on Icons.
        size: of the task; None is the usual one.

    Returns:
        Columns of `KEY`, `kind` and `depth` of `layer_groups`, and of `L3RS.decisions`.
    """
    bench = workbench(workload, size)
    tasks = bench.tasks(purpose)
    task = tasks.draw(task_seed, steps)
    network = bench.network_for(task.head_seed)
    optimizer = L3RS(network.named_parameters(), steps, learned)
    taken: list[pd.DataFrame] = []
    optimizer.register_step_post_hook(lambda *_: taken.append(optimizer.decisions()))
    unroll(network, optimizer, tasks.images, task)
    rows = pd.concat(dict(enumerate(taken, 1)), names=["step", "layer"]).map(lambda x: float(f"{x:.{DIGITS}g}")).astype("float32")
    rows = rows.reset_index().join(layer_groups(network), on="layer")
    rows = rows.assign(schedule=learned.name, horizon=steps, task_seed=task_seed)
    return rows[[*KEY, "kind", "depth", *(c for c in rows if c not in (*KEY, "kind", "depth"))]]


def time_features(learned: LearnedSchedule, horizons: Sequence[int]) -> pd.DataFrame:
    """Computes the time features before every step of runs of these lengths: `schedule`, `horizon`, `step`, `feature`, `value`."""

    def of(total: int) -> Iterator[pd.DataFrame]:
        features = TimeFeatures([total], learned.config, torch.device("cpu"))
        names = [name for name in feature_names(learned.config) if "_time/" in name]
        for step in range(1, total + 1):
            values = features(torch.tensor([float(step - 1)]))[0].tolist()
            yield pd.DataFrame({"schedule": learned.name, "horizon": total, "step": step, "feature": names, "value": values})

    return pd.concat([table for total in horizons for table in of(total)], ignore_index=True)
