"""How the cost of a step is measured."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import nn

from l3rs.evaluation.step_costs import FIELDS, LEARNED_FIELDS, SHARE_FIELDS, arms, interleaved, other_learned_optimizers, share, step_alone
from l3rs.learned.weights import KINDS
from l3rs.networks.create import resnet34


def test_every_arm_has_a_row_beside_fused_adam() -> None:
    makers = {name: arms()[name] for name in ("adam-fused", "l3rs")}
    rows = step_alone(4, 2, "cpu", makers, {"late": arms()["sgd-fused"]})
    assert [row["arm"] for row in rows] == ["adam-fused", "l3rs", "late"]
    assert all(set(row) == set(FIELDS) for row in rows)
    assert rows[0]["ratio_to_fused_adam"] == 1
    assert [int(row["state_words"]) for row in rows] == [2, 2, 0]  # two moments, and SGD has none
    measured = step_alone(4, 2, "cpu", makers, memory=True)
    assert all(set(row) == set(LEARNED_FIELDS) for row in measured)


def test_arms_take_turns() -> None:
    class Noted(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            order.append(self)

    order: list[torch.optim.Optimizer] = []
    optimizers = {name: Noted([nn.Parameter(torch.zeros(1))]) for name in "ab"}
    seconds = interleaved(optimizers, 4, "turns")
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4}
    timed = order[6:]  # three steps of each do not count
    assert all(x is not y for x, y in pairwise(timed))


def test_every_other_learned_optimizer_is_timed_with_its_kernel_and_without() -> None:
    network = nn.Linear(30, 20)
    made = {name: make(network) for name, make in other_learned_optimizers().items() if name != "adam-fused"}
    assert {name for name, optimizer in made.items() if optimizer.fused is False} == {f"{kind}-torch" for kind in KINDS}  # type: ignore[attr-defined]
    for optimizer in made.values():
        optimizer.step(loss=1.0)  # type: ignore[call-arg]
    assert all(p.isfinite().all() for optimizer in made.values() for group in optimizer.param_groups for p in group["params"])


def test_the_share_is_the_optimizers_part_of_a_whole_step() -> None:
    rows = share(partial(resnet34, 4), "tiny", 32, 2, "cpu", batch=4)
    assert [row["arm"] for row in rows] == ["adam-fused", "l3rs"]
    for row in rows:
        assert set(row) == set(SHARE_FIELDS)
        assert 0 < row["share"] < 1
        assert 0 < row["optimizer_ms"] < row["training_step_ms"]
