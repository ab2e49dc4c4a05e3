"""What no controller of one length of runs can beat by much: lambda and mu themselves, learned for each layer and step.

The gradients are those of meta-training, through the same unroll. A table in the place of the controller decides: it sees nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from l3rs.controller.decide import Decision, Meta, meta_shapes, unflatten
from l3rs.finetuning.tasks import task_seed
from l3rs.finetuning.unroll import Report
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.problem import FineTuning
from l3rs.optimizer.differentiable import DifferentiableL3RS
from l3rs.schedules.schedule import LearnedSchedule

UNUSED = -3.0  # nats, the logit of a direction that the start of a table does not have


class FromTable(DifferentiableL3RS):
    """The step of L3RS with log lambda and the logits of mu from a table, (K, L, 1 + P), in the place of the controller.

    The directions' hyperparameters are meta-parameters as before.
    """

    def __init__(self, learned: LearnedSchedule, network: Mapping[str, Tensor], total_steps: int) -> None:
        super().__init__(learned, network, total_steps)
        table = (total_steps, len(self.layer_sizes), 1 + len(self.config.directions))
        self.meta_shapes = {"table": table} | {name: shape for name, shape in self.meta_shapes.items() if "/" in name}

    def features(self, meta: Meta, averages: Tensor, *seen: Tensor | int | None) -> tuple[Tensor, Tensor]:
        return averages.new_zeros(0), averages  # it sees nothing

    def decide(self, meta: Meta, features: Tensor, taken: int | Tensor) -> Decision:
        logits = meta["table"][taken]
        return Decision(logits[:, 0].exp(), logits[:, 1:].softmax(dim=1))


class Tables(FineTuning):
    """Meta-training of tables: `learned.theta` is a table of `as_table`; runs are of one length."""

    form = FromTable

    def __init__(self, learned: LearnedSchedule, config: MetaTrainConfig) -> None:
        super().__init__(learned, config)
        self.scale = torch.ones(len(learned.theta))

    def _fine_tuned(self, theta: Tensor, purpose: str, seed: int, steps: int) -> Report:
        found = self.through(theta, purpose, seed, steps, back=False)
        return Report(found.train_losses, {steps: found.accuracy}, {steps: found.loss})


def as_table(learned: LearnedSchedule, config: MetaTrainConfig, steps: int, seeds: Iterable[int], directions: tuple[str, ...]) -> Tensor:
    """The decisions of a schedule as a table, averaged in logarithms over runs of meta-train tasks, and its directions' hyperparameters.

    Args:
        learned: the schedule.
        config: workload, head and statistics of the runs.
        steps: K.
        seeds: one for each run.
        directions: of the table, those of the schedule first; others begin with a share of exp(`UNUSED`) of an equal one, and with their
            usual hyperparameters.

    Returns:
        (n,), in the order of `FromTable.meta_shapes`.
    """
    mine = learned.config.directions
    if directions[: len(mine)] != mine:
        raise ValueError(f"directions must begin with those of the schedule, {', '.join(mine)} (got {', '.join(directions)})")
    decided: list[Tensor] = []

    class Recorded(DifferentiableL3RS):
        def decide(self, meta: Meta, features: Tensor, taken: int | Tensor) -> Decision:
            decision = super().decide(meta, features, taken)
            decided.append(torch.cat([decision.lam.log().unsqueeze(1), decision.mu.log()], dim=1))
            return decision

    problem = FineTuning(learned, config)
    problem.form = Recorded
    for seed in seeds:
        problem.through(learned.theta, "meta-train", task_seed(seed), steps, back=False)
    logits = torch.stack(decided).unflatten(0, (-1, steps)).mean(dim=0)
    others = logits.new_full((*logits.shape[:2], len(directions) - len(mine)), UNUSED - math.log(len(mine)))
    known = unflatten(learned.theta, meta_shapes(learned.config, learned.layers))
    wanted = meta_shapes(with_directions(learned, directions).config, learned.layers)
    hyperparameters = [known.get(name, logits.new_zeros(())).flatten() for name in wanted if "/" in name]
    return torch.cat([torch.cat([logits, others], dim=2).flatten(), *hyperparameters])


def with_directions(learned: LearnedSchedule, directions: tuple[str, ...]) -> LearnedSchedule:
    """The form of a schedule with other directions; its meta-parameters are not of that form."""
    return replace(learned, config=replace(learned.config, directions=directions))
