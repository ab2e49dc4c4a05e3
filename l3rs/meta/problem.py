"""The objective of meta-training: the evaluation loss after fine-tuning with a candidate's schedule, averaged over tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from l3rs.meta.nes import Problem
from l3rs.schedule import LearnedOptimizer
from l3rs.tasks import TaskConfig
from l3rs.unroll import Report, unroll
from l3rs.workbench import Workbench, workbench
from l3rs.workload import Workload


def fine_tune(learned: LearnedOptimizer, theta: Tensor, bench: Workbench, purpose: str, seed: int, steps: int) -> Report:
    """One run of the schedule that `theta` defines, on the task of this seed over the classes of this purpose."""
    tasks = bench.tasks(purpose)
    task = tasks.draw(seed, steps)
    network = bench.network_for(task.head_seed)
    return unroll(network, learned.build(theta, network.named_parameters(), steps), tasks.images, task)


class FineTuning(Problem):
    """EvoTorch's view of it: minimize the mean evaluation loss over this generation's tasks.

    Args:
        learned: what is meta-trained.
        workload: the network, and the images; tasks are over its meta-train classes.
        task: their size.
        penalty: the loss of a run that diverged; also the cap of every loss.
        workers: processes to evaluate in; 1 is this one.
    """

    def __init__(self, learned: LearnedOptimizer, workload: Workload, task: TaskConfig, penalty: float, workers: int = 1) -> None:
        self.learned, self.workload, self.task, self.penalty = learned, workload, task, penalty
        self.tasks: Sequence[tuple[int, int]] = ()  # (seed, steps) of this generation's
        self.diverged = 0
        super().__init__(
            "min",
            solution_length=len(learned.theta),
            initial_bounds=(-1.0, 1.0),
            dtype=torch.float32,
            num_actors=workers if workers > 1 else None,
            store_solution_stats=False,
        )

    # Common tasks reach the workers with each evaluation, and so do no seeds of theirs: which worker gets which candidate varies.
    def _make_sync_data_for_actors(self) -> dict[str, Any]:
        return {"tasks": list(self.tasks)}

    def _use_sync_data_from_main(self, received: dict[str, Any]) -> None:
        self.tasks = received["tasks"]

    def loss(self, theta: Tensor) -> float:
        """The objective of one candidate."""
        if not self.tasks:
            raise RuntimeError("no tasks were set for this generation")
        bench = workbench(self.workload, self.task)
        reports = [fine_tune(self.learned, theta, bench, "meta-train", seed, steps) for seed, steps in self.tasks]
        losses = [r.loss[steps] for r, (_, steps) in zip(reports, self.tasks, strict=True)]
        return sum(min(x, self.penalty) if math.isfinite(x) else self.penalty for x in losses) / len(losses)

    def _evaluate_batch(self, batch: Any) -> None:
        torch.set_num_threads(1) if self.is_remote else None
        batch.set_evals(torch.tensor([self.loss(theta.clone()) for theta in batch.values]))
