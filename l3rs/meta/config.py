"""The settings of meta-training. [paper] marks the paper's values, [choice] ours."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from l3rs.controller.config import L3RSConfig
from l3rs.directions import DIRECTIONS
from l3rs.finetuning.tasks import HEAD_BATCHES, TaskConfig, check_head
from l3rs.finetuning.unroll import PRECISIONS
from l3rs.finetuning.variety import Setting, Variety, ZooConfig
from l3rs.finetuning.workload import Workload, flat, from_flat
from l3rs.learners import LEARNERS, Start, refuse_unused
from l3rs.text import first_line

SEARCHES = ("nes", "gradient", "both")
DEVICES = ("cpu", "cuda")
DISTRIBUTIONS, OBJECTIVES, CENTER_OPTIMIZERS = ("uniform", "log-uniform"), ("final", "log", "mean", "error"), ("adam", "sgd")
LOG_FLOOR = 0.05  # nats, of the objective `log`: a loss far below it is as good as none [choice]
LONGEST = 200  # bytes of a name; file systems take 255 with what is added to it


@dataclass(frozen=True)
class NESConfig:
    """Natural evolution strategies.

    Attributes:
        population: candidates a generation, in antithetic pairs [choice].
        sigma: standard deviation of the noise at generation 0 [choice].
        hidden_noise: factor of noise and learning rate on meta-parameters that lead from no described unit to the output, and on all
            meta-parameters of other optimizers, see `l3rs.controller.initial.noise_scale` [choice; a power of 2 rounds nothing].
        sigma_half_life: generations in which sigma halves [paper: 500, for far longer runs].
        lr: learning rate of the centre at generation 0 [choice].
        lr_half_life: generations in which lr halves [paper: 500].
        optimizer: optimizer of the centre, `adam` or `sgd` [choice].
        seed: seed of the noise, the tasks and the first controller; at least 0 and below 2^32.
    """

    population: int = 16
    sigma: float = 0.1
    hidden_noise: float = 0.25
    sigma_half_life: float = 60.0
    lr: float = 0.04
    lr_half_life: float = 60.0
    optimizer: str = "adam"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.population < 2 or self.population % 2:
            raise ValueError(f"population must be even and at least 2, since candidates come in pairs (got {self.population})")
        for name in ("sigma", "hidden_noise", "sigma_half_life", "lr", "lr_half_life"):
            if not getattr(self, name) > 0:  # neither is NaN
                raise ValueError(f"{name} must be positive (got {getattr(self, name)})")
        for name in ("sigma", "hidden_noise", "lr"):
            if math.isinf(getattr(self, name)):
                raise ValueError(f"{name} must be finite (got {getattr(self, name)})")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2^32 (got {self.seed})")
        if self.optimizer not in CENTER_OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(CENTER_OPTIMIZERS)} (got {self.optimizer!r})")


@dataclass(frozen=True)
class GradientConfig:
    """Descent along meta-gradients, by Adam [choice: all of it].

    Attributes:
        lr: learning rate at the start; it falls to 0 along a cosine.
        clip: largest norm of a task's gradient.
        checkpoint_from: runs of at least this many steps keep no graphs: less memory, one more forward-backward pass a step.
        share: part of the generations that `both` descends before evolution strategies go on.
        insignificant: layers whose possible change of the loss is below this share of the largest pass nothing back in that step, see
            `l3rs.meta.gradients.meta_gradient`.
    """

    lr: float = 3e-3
    clip: float = 1.0
    checkpoint_from: int = 128
    share: float = 0.5
    insignificant: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite (got {getattr(self, name)})")
        if self.checkpoint_from < 1:
            raise ValueError(f"checkpoint_from must be at least 1 (got {self.checkpoint_from})")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1 (got {self.share})")
        if not 0 <= self.insignificant < 1:
            raise ValueError(f"insignificant must be at least 0 and below 1 (got {self.insignificant})")


@dataclass(frozen=True)
class MetaTrainConfig:
    """One meta-training run.

    Attributes:
        workload: the network and the images, by default the shipped network on Icons.
        name: name of the schedule and its file; by default the split and the model.
        generations: updates of the search.
        search: `nes`, evolution strategies [paper]; `gradient`, descent along meta-gradients; `both`, first that and then evolution.
        optimizer: what to meta-train, `l3rs` or another learned optimizer.
        start: for L3RS, a schedule to start from, by name, path or Hub id, which gives the form of `schedule` too; for another learned
            optimizer, files of published meta-parameters. By default it starts anew.
        lr: learning rate of another learned optimizer, see `LearnedWeights`; None is 1, and 0.03 for Celo2 [choice].
        specialist: learns an embedding or an MLP for each layer by name, for one network; a generalist fits any network.
        steps: shortest and longest run; the length K of each task is drawn between them, ends included [choice: 10 to 100].
        steps_distribution: `uniform` [paper] or `log-uniform`, which dwells on short runs.
        meta_batch: tasks a generation; all candidates see the same ones [choice].
        objective: what is minimized: `final`, the evaluation loss after K steps [paper]; `mean`, the training loss averaged over the
            run; `error`, the share of the evaluation batch that is classified wrong after K steps; `log`, the logarithm of `final`, a
            little above 0 kept: easy and hard tasks then weigh alike, whatever loss another optimizer would have had [choice].
        refresh: gives BatchNorm the statistics of the last training batches before each evaluation, in the place of running ones [paper].
        head: every run begins with a `random` head [paper], or with one in closed form, `start`, see `l3rs.head_start`.
        head_batches: a head start looks at no more than this many batches of the run [choice].
        penalty: the loss that counts for a run that diverged, and the cap of every loss [choice].
        precision: of forward and backward pass, `float32` or `bfloat16` (autocast); meta-parameters and updates are float32.
        validate_every: generations between meta-validations.
        validation_steps: lengths of the runs of a meta-validation.
        validation_tasks: tasks at each of `validation_steps`, the same every time.
        finalists: best-validated generations to compare again at the end.
        final_tasks: further meta-validation tasks to compare them on, at each of `validation_steps`.
        workers: processes, one thread each; 0 takes one for each core, of the whole cluster. With device cuda, candidates at once.
        ray_address: address of a Ray cluster to run on; None is this machine.
        gpus_per_actor: share of a GPU for each process; 0 runs on CPU.
        device: `cpu`, or `cuda`: one process makes all runs on one GPU, several at once, without Ray.
        zoo: networks and sizes of tasks to draw from, in the place of `workload` and `task`.
        schedule, nes, gradient, task: see `L3RSConfig`, `NESConfig`, `GradientConfig` and `TaskConfig`.
    """

    workload: Workload = field(default_factory=Workload)
    name: str = ""
    generations: int = 150
    search: str = "nes"
    optimizer: str = "l3rs"
    start: tuple[str, ...] = ()
    lr: float | None = None
    specialist: bool = True
    steps: tuple[int, int] = (10, 100)
    steps_distribution: str = "uniform"
    meta_batch: int = 1
    objective: str = "final"
    refresh: bool = False
    head: str = "random"
    head_batches: int = HEAD_BATCHES
    penalty: float = 20.0
    precision: str = "float32"
    validate_every: int = 10
    validation_steps: tuple[int, ...] = (10, 25, 50, 100)
    validation_tasks: int = 4
    finalists: int = 3
    final_tasks: int = 8
    workers: int = 0
    ray_address: str | None = None
    gpus_per_actor: float = 0.0
    device: str = "cpu"
    schedule: L3RSConfig = field(default_factory=L3RSConfig)
    nes: NESConfig = field(default_factory=NESConfig)
    gradient: GradientConfig = field(default_factory=GradientConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    zoo: ZooConfig = field(default_factory=ZooConfig)

    def __post_init__(self) -> None:
        low, high = self.steps
        if not 1 <= low <= high:
            raise ValueError(f"steps must be two whole numbers of at least 1, the smaller first (got {list(self.steps)})")
        choices = {
            "search": SEARCHES,
            "optimizer": tuple(LEARNERS),
            "steps_distribution": DISTRIBUTIONS,
            "objective": OBJECTIVES,
            "precision": PRECISIONS,
            "device": DEVICES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)} (got {getattr(self, name)!r})")
        for name in ("generations", "meta_batch", "validate_every", "validation_tasks", "finalists", "final_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 (got {getattr(self, name)})")
        for name in ("workers", "gpus_per_actor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0 (got {getattr(self, name)})")
        if self.device == "cuda" and (self.ray_address or self.gpus_per_actor):
            raise ValueError("device cuda is one process on one GPU: give neither ray_address nor gpus_per_actor with it")
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"penalty must be positive and finite (got {self.penalty})")
        if not self.validation_steps or min(self.validation_steps) < 1:
            raise ValueError(f"validation_steps must be one or more numbers of at least 1 (got {list(self.validation_steps)})")
        if "/" in self.name or "\\" in self.name:
            raise ValueError(f"name must have no slash, since a file is called after it (got {self.name!r})")
        if not self.name.isprintable() or len(self.name.encode()) > LONGEST:
            raise ValueError(f"name must be printable and at most {LONGEST} bytes, since a file is called after it (got {self.name!r})")
        if re.fullmatch(r"(state|theta)-\d+", self.name):
            raise ValueError(f"name must not be that of a state or of a generation of the run's folder (got {self.name!r})")
        check_head(self.head, self.head_batches)
        LEARNERS[self.optimizer].check(self.beginning)
        if self.head == "random" and self.head_batches != HEAD_BATCHES:
            raise ValueError(f"head_batches has no effect with head random: leave it out (got {self.head_batches})")
        if self.search == "nes":
            refuse_unused(self.gradient, "search nes", "gradient.")
        else:
            self._check_gradients()
        if self.zoo.file is None:
            refuse_unused(self.zoo, "no zoo.file", "zoo.")
        else:
            self._check_zoo()

    def _check_gradients(self) -> None:
        """Raises ValueError for what has no meta-gradient, and for what the search takes no notice of."""
        if self.search == "gradient":
            refuse_unused(GradientConfig(share=self.gradient.share), "search gradient", "gradient.")
        elif self.descends >= self.generations:
            raise ValueError(
                f"generations and gradient.share must leave evolution at least one generation with search both (got {self.generations} and "
                f"{self.gradient.share:g}, which is {self.descends} to descend)"
            )
        differentiable = tuple(name for name, learner in LEARNERS.items() if learner.differentiable)
        wanted = {"optimizer": differentiable, "objective": ("final", "log"), "precision": ("float32",)}
        for name, values in wanted.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be {' or '.join(values)} with search {self.search} (got {getattr(self, name)})")
        unknown = [name for name in self.schedule.directions if name not in DIRECTIONS]
        if unknown:
            raise ValueError(f"schedule.directions must be built in with search {self.search} (got {unknown[0]!r})")

    def _check_zoo(self) -> None:
        """Raises ValueError for what fits one network alone."""
        if LEARNERS[self.optimizer].by_layer and self.specialist:
            raise ValueError("specialist must be false with a zoo: a specialist knows one network's layers by name")
        if self.device != "cpu":
            raise ValueError(f"device must be cpu with a zoo (got {self.device})")
        refuse_unused(self.workload, "a zoo")
        refuse_unused(self.task, "a zoo", "task.")
        assert self.variety is not None  # it has been read

    @property
    def descends(self) -> int:
        """Generations of descent with search `both`, before evolution."""
        return max(1, round(self.gradient.share * self.generations))

    @cached_property
    def variety(self) -> Variety | None:
        """The zoo, read; None is one workload."""
        return None if self.zoo.file is None else Variety(self.zoo, self.head)

    def setting(self, purpose: str, seed: int) -> Setting:
        """What the task of this seed over the classes of this purpose is."""
        return Setting(self.workload, self.task, self.head) if self.variety is None else self.variety.setting(purpose, seed)

    def seed_for(self, seed: int, place: int) -> int:
        """The seed of a task that has this place among many: next to `seed`, so that each network of a zoo has its turn."""
        return seed if self.variety is None else self.variety.seed_for(seed, place)

    @classmethod
    def of(cls, **values: Any) -> MetaTrainConfig:
        """Makes a config from flat values, as on a command line or in a YAML file: the workload's fields stand beside the others."""
        return from_flat(cls, **values)

    def flat(self) -> dict[str, Any]:
        """Gives the flat values back, as JSON has them."""
        return flat(self)

    @property
    def beginning(self) -> Start:
        """The settings of the start."""
        return Start(self.schedule, self.specialist, self.start, self.lr, self.nes.seed)


def read_config(path: str | Path, **values: Any) -> MetaTrainConfig:
    """Reads a YAML file, as in `configs/meta_train`; `values` replace its own. Raises ValueError or TypeError."""
    import jsonargparse  # only now: the settings themselves need no parser

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Workload, as_group=False)
    parser.add_class_arguments(MetaTrainConfig, as_group=False, skip={"workload"})
    try:
        read = parser.instantiate(parser.parse_path(str(path)))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{path} is no config of meta-training: {first_line(error)}") from None
    return MetaTrainConfig.of(**{**vars(read), **values})
