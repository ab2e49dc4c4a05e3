"""The objective of meta-training: the evaluation loss after fine-tuning with a candidate's schedule, averaged over tasks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from l3rs.finetuning.captured import Failed, Steps, side_by_side, succeeded
from l3rs.finetuning.lanes import AT_ONCE, Lanes
from l3rs.finetuning.tasks import HEAD_BATCHES, TaskConfig
from l3rs.finetuning.unroll import Report, unroll
from l3rs.finetuning.variety import META_PURPOSES, Setting
from l3rs.finetuning.workbench import Workbench, workbench
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS
from l3rs.meta.config import LOG_FLOOR, MetaTrainConfig
from l3rs.meta.gradient_lanes import GradientLane
from l3rs.meta.gradients import MetaGradient, meta_gradient
from l3rs.meta.nes import Problem
from l3rs.networks.layer_groups import layer_groups
from l3rs.optimizer.differentiable import DifferentiableL3RS
from l3rs.schedules.learned import Learned
from l3rs.schedules.schedule import LearnedSchedule

REPLACEMENTS = 3  # times in a row that dead processes are replaced before the run is given up
PATIENCE = 60.0  # seconds without a further process having started, after which those that have not are done without; five times that
# for the first, for a cluster may have to read all of torch from a slow disk
if find_spec("ray") is None:  # then this process is the only one
    LOST: tuple[type[Exception], ...] = ()
else:
    import ray
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

    LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)  # a process, or what it had found out
T = TypeVar("T")
Tasks = Sequence[tuple[int, int]]  # (seed, steps) of each


class MetaTrainingError(RuntimeError):
    """Meta-training cannot go on: most candidates failed, or its processes die or find no place. All earlier work is saved."""


def fine_tune(
    learned: Learned,
    theta: Tensor,
    bench: Workbench,
    purpose: str,
    seed: int,
    steps: int,
    precision: str = "float32",
    refresh: bool = False,
    head: str = "random",
    head_batches: int = HEAD_BATCHES,
    frozen: bool = False,
) -> Report:
    """One run of the schedule that `theta` defines, on the task of this seed over these classes; `frozen`: without the stem."""
    tasks, task, network = bench.ready(purpose, seed, steps, head, head_batches, precision)
    with stem_kept(network, frozen):
        optimizer = LEARNERS[learned.kind].build(learned, theta, network.named_parameters(), steps, guard=False)
        return unroll(network, optimizer, tasks.images, task, precision=precision, refresh=refresh)


@contextmanager
def stem_kept(network: nn.Module, frozen: bool) -> Iterator[None]:
    """Where `frozen`, the layers before the network's first stage need no gradient, for that long."""
    stem: list[nn.Parameter] = []
    if frozen:
        groups = layer_groups(network)
        stem = [network.get_parameter(str(name)) for name in groups.index[groups.depth == "stem"]]
    for p in stem:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in stem:
            p.requires_grad_(True)


class TaskGradient(NamedTuple):
    """The meta-gradient of one task, (n,), with its evaluation loss; zeros where the run or the gradient diverged, or met an error."""

    theta: Tensor
    loss: float
    diverged: bool
    error: str = ""


def shares(tasks: Tasks, processes: int) -> list[list[int]]:
    """Which tasks each process takes, by their places: the longest first, always to the one that has least to do."""
    taken: list[list[int]] = [[] for _ in range(processes)]
    for i in sorted(range(len(tasks)), key=lambda i: -tasks[i][1]):
        min(taken, key=lambda mine: sum(tasks[j][1] for j in mine)).append(i)
    return taken


@lru_cache(maxsize=8)
def remote_bench(workload: Workload, task: TaskConfig, device: str) -> Workbench:
    """Makes the workbench of a process that evaluates candidates, once: preparing it looks at every image file."""
    torch.set_num_threads(1)
    workload.prepare(META_PURPOSES, progress=False)  # on another node, decodes the images
    return workbench(workload, task, device)


class FineTuning(Problem):
    """The problem that EvoTorch solves: minimize the mean loss over this generation's tasks.

    Solutions are meta-parameters divided by `scale`. So equal noise on all solutions is stronger on some meta-parameters.

    A candidate's evaluation is its loss, whether a run diverged, and whether one raised an error; both count as the penalty. The problem
    replaces processes that die, and evaluates their candidates again. A loss depends on the candidate and the tasks alone, so the result
    is the same.

    Args:
        learned: the schedule to meta-train.
        config: workload, tasks, objective and penalty.
        workers: processes to evaluate in; 1 is this process.
    """

    form: type[DifferentiableL3RS] = DifferentiableL3RS  # of the steps that meta-gradients go through

    def __init__(self, learned: Learned, config: MetaTrainConfig, workers: int = 1) -> None:
        self.learned, self.config = learned, config
        self.scale = LEARNERS[learned.kind].noise_scale(learned, config.nes.hidden_noise)
        self.tasks: Tasks = ()  # of this generation
        self.replaced = 0  # times that processes were, so far
        self.met = ""  # the last error that a candidate met in this process, in this generation
        gpus = config.gpus_per_actor
        super().__init__(
            "min",
            solution_length=len(learned.theta),
            initial_bounds=(-1.0, 1.0),
            dtype=torch.float32,
            eval_data_length=2,
            num_actors=workers if workers > 1 or config.ray_address or gpus else None,
            num_gpus_per_actor=gpus or None,
            actor_config={"num_cpus": 1},  # a core each: of actors that ask for none, Ray puts several on one node while others idle
            subbatch_size=1,  # whichever process is free takes the next candidate
            store_solution_stats=False,
        )

    # Tasks reach the workers with each evaluation. Workers have no seeds of their own: which of them gets a candidate varies.
    def _make_sync_data_for_actors(self) -> dict[str, Any]:
        return {"tasks": list(self.tasks)}

    def _use_sync_data_from_main(self, received: dict[str, Any]) -> None:
        self.tasks, self.met = received["tasks"], ""

    @property
    def processes(self) -> int:
        """The number of processes that evaluate candidates."""
        return max(1, self._num_actors)

    def _bench(self, setting: Setting) -> Workbench:
        c = self.config
        return (remote_bench if self.is_remote else workbench)(setting.workload, setting.task, "cuda" if c.gpus_per_actor else c.device)

    @cached_property
    def lanes(self) -> Lanes | None:
        """On a GPU of this process, what makes several runs at once."""
        c = self.config
        return Lanes(c.workload, c.task, c.device, c.workers or AT_ONCE, c.precision, self._ready) if c.device == "cuda" else None

    def _ready(self, bench: Workbench, purpose: str, seed: int, steps: int) -> nn.Module:
        """The network of a task, with the head that runs begin with."""
        c = self.config
        return bench.ready(purpose, seed, steps, c.head, c.head_batches, c.precision)[2]

    def loss(self, theta: Tensor) -> tuple[float, bool]:
        """Returns the objective of one candidate, and whether a run diverged."""
        return self._objective([self._fine_tuned(theta, "meta-train", *task) for task in self.tasks])

    def _objective(self, reports: Sequence[Report]) -> tuple[float, bool]:
        """The same, of a candidate's runs on all tasks."""
        if not self.tasks:
            raise RuntimeError("no tasks were set for this generation")
        c, losses = self.config, []
        for report, (_, steps) in zip(reports, self.tasks, strict=True):
            loss = {
                "final": report.loss[steps],
                "log": report.loss[steps],
                "mean": sum(report.train_losses) / len(report.train_losses),
                "error": 1 - report.accuracy[steps],
            }[c.objective]
            losses.append(loss if math.isfinite(report.loss[steps]) else math.nan)
        diverged = any(math.isnan(x) for x in losses)
        return sum(self._counted(x) for x in losses) / len(losses), diverged

    def _counted(self, loss: float) -> float:
        """What a loss counts for; NaN is of a run that diverged."""
        capped = self.config.penalty if math.isnan(loss) else min(loss, self.config.penalty)
        return math.log(capped + LOG_FLOOR) if self.config.objective == "log" else capped

    def _fine_tuned(self, theta: Tensor, purpose: str, seed: int, steps: int) -> Report:
        c, setting = self.config, self.config.setting(purpose, seed)
        bench = self._bench(setting)
        return fine_tune(
            self.learned, theta, bench, purpose, seed, steps, c.precision, c.refresh, setting.head, c.head_batches, setting.frozen
        )

    def _evaluate_batch(self, batch: Any) -> None:
        rows = []
        thetas = [theta.clone() * self.scale for theta in batch.values]
        for candidate in self._at_once(thetas) if self.lanes is not None else (partial(self.loss, theta) for theta in thetas):
            try:
                loss, diverged = candidate()
                rows.append((loss, float(diverged), 0.0))
            except Exception as error:  # one candidate's error must not end the run; many do, see `meta_train`
                self.met = f"{type(error).__name__}: {error}"
                rows.append((self._counted(math.nan), 0.0, 1.0))
        found = torch.tensor(rows)
        batch.set_evals(found[:, :1], eval_data=found[:, 1:])

    def _at_once(self, thetas: Sequence[Tensor]) -> Iterator[Callable[[], tuple[float, bool]]]:
        """Makes the runs of all candidates side by side, task by task; each gives its loss, or raises what it met."""
        assert self.lanes is not None
        runs = [(theta, seed, steps) for seed, steps in self.tasks for theta in thetas]
        found = self.lanes.reports(self.learned, runs, "meta-train", self.config.refresh)
        for i in range(len(thetas)):
            yield partial(lambda mine: self._objective(succeeded(mine)), found[i :: len(thetas)])

    def evaluate(self, x: Any) -> None:
        """Evaluates candidates on all processes."""
        self.met = ""
        self._surviving(lambda: super(FineTuning, self).evaluate(x))

    def error(self) -> str:
        """Returns an error of a candidate of this generation, from any process; empty if there was none."""
        if self._actors is None:
            return self.met
        met: list[str] = self._surviving(lambda: self.all_remote_problems().error())
        return next(filter(None, met), "")

    def runs(self, theta: Tensor, purpose: str, tasks: Tasks) -> list[tuple[float, float]]:
        """Evaluates one candidate on each of `tasks`, on all processes: (accuracy, loss), NaN if it diverged."""
        if not self._num_actors:
            return self._share(theta, purpose, tasks, 1)
        parts: list[list[tuple[float, float]]] = self._surviving(
            lambda: self.all_remote_problems()._share(theta, purpose, tasks, self._num_actors)
        )
        return [parts[i % len(parts)][i // len(parts)] for i in range(len(tasks))]

    def _share(self, theta: Tensor, purpose: str, tasks: Tasks, processes: int) -> list[tuple[float, float]]:
        """The part of `runs` that falls to this process."""
        mine = tasks[self.actor_index or 0 :: processes]
        if self.lanes is not None:
            made = succeeded(self.lanes.reports(self.learned, [(theta, *task) for task in mine], purpose, self.config.refresh))
            return [(r.accuracy[steps], r.loss[steps]) for (_, steps), r in zip(mine, made, strict=True)]
        reports = [(steps, self._fine_tuned(theta, purpose, seed, steps)) for seed, steps in mine]
        return [(r.accuracy[steps], r.loss[steps]) for steps, r in reports]

    def gradients(self, theta: Tensor) -> list[TaskGradient]:
        """The meta-gradient of each of this step's tasks at `theta`, (n,), in their order, made on all processes."""
        self.met = ""
        if self.lanes is not None:
            return self._gradients_at_once(theta)
        if not self._num_actors:
            return [self._gradient(theta, *task) for task in self.tasks]
        parts: list[list[tuple[int, TaskGradient]]] = self._surviving(  # how many there are is known once they have been started
            lambda: self.all_remote_problems()._share_of_gradients(theta, list(self.tasks), int(self._num_actors))
        )
        found = dict(pair for part in parts for pair in part)
        self.met = next((task.error for task in found.values() if task.error), "")
        return [found[i] for i in range(len(self.tasks))]

    @cached_property
    def gradient_lanes(self) -> list[GradientLane]:
        """The same networks, for meta-gradients."""
        assert self.lanes is not None
        learned, c = cast(LearnedSchedule, self.learned), self.config
        return [GradientLane(learned, lane.network, c.refresh, insignificant=c.gradient.insignificant) for lane in self.lanes.lanes]

    def _gradients_at_once(self, theta: Tensor) -> list[TaskGradient]:
        """The meta-gradients of all tasks, side by side."""
        lanes = self.lanes
        assert lanes is not None

        def job(seed: int, steps: int) -> Callable[[GradientLane], Steps[Callable[[], MetaGradient]]]:
            def on(lane: GradientLane) -> Steps[Callable[[], MetaGradient]]:
                ready = lanes.begin(lane.network, "meta-train", seed, steps)
                return lane.run(theta, ready, lanes.load("meta-train", seed, steps))

            return on

        return [self._told(theta, one) for one in side_by_side(self.gradient_lanes, (job(*task) for task in self.tasks))]

    def _told(self, theta: Tensor, found: MetaGradient | Failed[MetaGradient]) -> TaskGradient:
        """What a task's meta-gradient counts for: what one task meets must not end the run; many failures do, see `meta_train`."""
        if isinstance(found, Failed):
            self.met = f"{type(found.error).__name__}: {found.error}"
            return TaskGradient(torch.zeros_like(theta), self._counted(math.nan), False, self.met)
        slope = 1 / (found.loss + LOG_FLOOR) if self.config.objective == "log" else 1.0
        diverged = not (math.isfinite(found.loss) and found.theta.isfinite().all())  # a long run's gradient can be beyond float32
        return TaskGradient(torch.zeros_like(theta) if diverged else found.theta.cpu() * slope, self._counted(found.loss), diverged)

    def _share_of_gradients(self, theta: Tensor, tasks: Tasks, processes: int) -> list[tuple[int, TaskGradient]]:
        """What `gradients` gives, of the tasks that fall to this one of all processes, with their places."""
        self.met = ""
        return [(i, self._gradient(theta, *tasks[i])) for i in shares(tasks, processes)[self.actor_index or 0]]

    def _gradient(self, theta: Tensor, seed: int, steps: int) -> TaskGradient:
        try:
            return self._told(theta, self.through(theta, "meta-train", seed, steps))
        except Exception as error:
            return self._told(theta, Failed(error))

    def through(self, theta: Tensor, purpose: str, seed: int, steps: int, back: bool = True) -> MetaGradient:
        """One run of the differentiable step on a task over the classes of this purpose, there and `back`."""
        c, setting = self.config, self.config.setting(purpose, seed)
        tasks, task, network = self._bench(setting).ready(purpose, seed, steps, setting.head, c.head_batches, c.precision)
        device = next(network.parameters()).device
        with stem_kept(network, setting.frozen):
            return meta_gradient(
                replace(cast(LearnedSchedule, self.learned), theta=theta),
                network,
                lambda k: tuple(t.to(device) for t in task.batch(tasks.images, k)),  # type: ignore[arg-type, return-value]
                steps,
                tuple(t.to(device) for t in task.held_out(tasks.images)),  # type: ignore[arg-type]
                c.refresh,
                checkpoint=steps >= c.gradient.checkpoint_from,
                insignificant=c.gradient.insignificant,
                form=self.form,
                back=back,
                seed=task.seed,
            )

    def _surviving(self, work: Callable[[], T], replacements: int = REPLACEMENTS) -> T:
        try:
            return work()
        except LOST as error:
            self.stop()
            if not replacements:
                raise MetaTrainingError(
                    f"processes died {REPLACEMENTS + 1} times in a row, at last with {type(error).__name__}: {error}. All earlier work is "
                    "saved. If memory is short, give fewer workers"
                ) from error
            self.replaced += 1
            # A node that is gone has taken its cores along.
            self._num_actors: int = max(1, min(int(self._num_actors), places(self.config.gpus_per_actor)))
        return self._surviving(work, replacements - 1)

    def _parallelize(self) -> None:
        """Starts the processes, unless they run. It goes on without those that find no core in time."""
        while self.is_main and self._num_actors and self._actors is None:
            super()._parallelize()
            actors: list[Any] = self.actors
            waiting, started = [actor.get.remote("actor_index") for actor in actors], 0
            while waiting:
                ready, waiting = ray.wait(waiting, timeout=PATIENCE if started else 5 * PATIENCE)
                if not ready:
                    break
                started += 1
            if not waiting:
                return
            self.stop()
            if not started:
                raise MetaTrainingError(f"none of {self._num_actors} processes found a free core, or GPU, in {5 * PATIENCE:g} seconds")
            warnings.warn(f"{len(waiting)} of {self._num_actors} processes found no free core, or GPU; going on without", stacklevel=2)
            self._num_actors = started

    def stop(self) -> None:
        """Ends the processes; the next evaluation starts new ones."""
        if self.is_main and self._actors is not None:
            self.kill_actors()


def places(gpus_per_actor: float) -> int:
    """Counts the processes that fit the Ray cluster: its cores, or shares of its GPUs if these are fewer."""
    found = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cores = int(found.get("CPU", 1))
    return min(cores, int(found.get("GPU", 0) / gpus_per_actor + 1e-6)) if gpus_per_actor else cores
