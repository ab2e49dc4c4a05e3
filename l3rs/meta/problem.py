"""The objective of meta-training: the evaluation loss after fine-tuning with a candidate's schedule, averaged over tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayActorError
from torch import Tensor

from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.nes import Problem
from l3rs.schedule import LearnedOptimizer
from l3rs.unroll import Report, unroll
from l3rs.workbench import Workbench, workbench

REPLACEMENTS = 3  # times in a row that dead processes are replaced before the run is given up
T = TypeVar("T")
Tasks = Sequence[tuple[int, int]]  # (seed, steps) of each


def fine_tune(
    learned: LearnedOptimizer, theta: Tensor, bench: Workbench, purpose: str, seed: int, steps: int, precision: str = "float32"
) -> Report:
    """One run of the schedule that `theta` defines, on the task of this seed over the classes of this purpose."""
    tasks = bench.tasks(purpose)
    task = tasks.draw(seed, steps)
    network = bench.network_for(task.head_seed)
    return unroll(network, learned.build(theta, network.named_parameters(), steps), tasks.images, task, precision=precision)


class FineTuning(Problem):
    """EvoTorch's view of it: minimize the mean loss over this generation's tasks.

    Beside its loss a candidate is given whether a run of it diverged, and whether one raised an error; both count as the penalty.
    Processes that die are replaced, and their candidates evaluated again: a candidate's loss is a function of it and the tasks, so
    the result is the same.

    Args:
        learned: what is meta-trained.
        config: workload, tasks, objective and penalty.
        workers: processes to evaluate in; 1 is this one.
    """

    def __init__(self, learned: LearnedOptimizer, config: MetaTrainConfig, workers: int = 1) -> None:
        self.learned, self.config = learned, config
        self.tasks: Tasks = ()  # of this generation
        self.replaced = 0  # processes, so far
        gpus = config.gpus_per_actor
        super().__init__(
            "min",
            solution_length=len(learned.theta),
            initial_bounds=(-1.0, 1.0),
            dtype=torch.float32,
            eval_data_length=2,
            num_actors=workers if workers > 1 or config.ray_address or gpus else None,
            num_gpus_per_actor=gpus or None,
            subbatch_size=1,  # whichever process is free takes the next candidate
            store_solution_stats=False,
        )

    # Common tasks reach the workers with each evaluation, and so do no seeds of theirs: which worker gets which candidate varies.
    def _make_sync_data_for_actors(self) -> dict[str, Any]:
        return {"tasks": list(self.tasks)}

    def _use_sync_data_from_main(self, received: dict[str, Any]) -> None:
        self.tasks = received["tasks"]

    def _bench(self) -> Workbench:
        if self.is_remote:
            torch.set_num_threads(1)
            self.config.workload.prepare(("meta-train", "meta-validation"), progress=False)  # on a node of its own, decodes the images
        return workbench(self.config.workload, self.config.task, "cuda" if self.config.gpus_per_actor else "cpu")

    def loss(self, theta: Tensor) -> tuple[float, bool]:
        """The objective of one candidate, and whether a run of it diverged."""
        if not self.tasks:
            raise RuntimeError("no tasks were set for this generation")
        bench, c = self._bench(), self.config
        losses = []
        for seed, steps in self.tasks:
            report = fine_tune(self.learned, theta, bench, "meta-train", seed, steps, c.precision)
            finite = math.isfinite(report.loss[steps])
            mean = sum(report.train_losses) / len(report.train_losses)
            losses.append((report.loss[steps] if c.objective == "final" else mean) if finite else math.nan)
        diverged = any(math.isnan(x) for x in losses)
        return sum(c.penalty if math.isnan(x) else min(x, c.penalty) for x in losses) / len(losses), diverged

    def _evaluate_batch(self, batch: Any) -> None:
        rows = []
        for theta in batch.values:
            try:
                loss, diverged = self.loss(theta.clone())
                rows.append((loss, float(diverged), 0.0))
            except Exception:  # what one candidate meets must not end the run; many failures do, see `meta_train`
                rows.append((self.config.penalty, 0.0, 1.0))
        found = torch.tensor(rows)
        batch.set_evals(found[:, :1], eval_data=found[:, 1:])

    def evaluate(self, x: Any) -> None:
        """Evaluates candidates on all processes."""
        self._surviving(lambda: super(FineTuning, self).evaluate(x))

    def runs(self, theta: Tensor, purpose: str, tasks: Tasks) -> list[tuple[float, float]]:
        """(accuracy, loss) of one candidate on each of `tasks`, NaN where it diverged, made on all processes."""
        if not self._num_actors:
            return self._share(theta, purpose, tasks, 1)
        parts: list[list[tuple[float, float]]] = self._surviving(
            lambda: self.all_remote_problems()._share(theta, purpose, tasks, self._num_actors)
        )
        return [parts[i % len(parts)][i // len(parts)] for i in range(len(tasks))]

    def _share(self, theta: Tensor, purpose: str, tasks: Tasks, processes: int) -> list[tuple[float, float]]:
        """What `runs` gives, of the tasks that fall to this one of so many processes."""
        bench, c = self._bench(), self.config
        mine = tasks[self.actor_index or 0 :: processes]
        reports = [(steps, fine_tune(self.learned, theta, bench, purpose, seed, steps, c.precision)) for seed, steps in mine]
        return [(r.accuracy[steps], r.loss[steps]) for steps, r in reports]

    def _surviving(self, work: Callable[[], T]) -> T:
        for _ in range(REPLACEMENTS):
            try:
                return work()
            except RayActorError:
                self.replaced += 1
                self.stop()
                # A node that is gone has taken its cores along, and actors that find none would wait for ever.
                self._num_actors: int = max(1, min(int(self._num_actors), cores_of_cluster()))
        return work()

    def stop(self) -> None:
        """Ends the processes; the next evaluation starts new ones."""
        if self.is_main and self._actors is not None:
            self.kill_actors()


def cores_of_cluster() -> int:
    """The CPU cores of the Ray cluster that this process has joined."""
    return int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
