"""How the cost of a step is measured."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import nn

from l3rs.evaluation.step_costs import FIELDS, LEARNED_FIELDS, SHARE_FIELDS, arms, interleaved, other_learned, share, step_alone
from l3rs.learned import portions
from l3rs.learned.elements import refused
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


def test_without_its_kernel_a_learned_optimizer_takes_the_same_step_and_the_others_keep_theirs() -> None:
    network = nn.Linear(30, 20)
    makers = [partial(other_learned, "celo2", network, kernel=kernel) for kernel in (True, False)]
    ends, asked = [], []
    for make in makers:
        optimizer = make()
        optimizer.register_step_pre_hook(lambda *_: asked.append(portions.refused is refused))  # type: ignore[attr-defined]
        optimizer.step(loss=1.0)
        assert portions.refused is refused  # type: ignore[attr-defined]
        ends.append([p.detach() for group in optimizer.param_groups for p in group["params"]])
    assert asked == [True, False]
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_the_share_is_the_optimizers_part_of_a_whole_step() -> None:
    rows = share(partial(resnet34, 4), "tiny", 32, 2, "cpu", batch=4)
    assert [row["arm"] for row in rows] == ["adam-fused", "l3rs"]
    for row in rows:
        assert set(row) == set(SHARE_FIELDS)
        assert 0 < row["share"] < 1
        assert 0 < row["optimizer_ms"] < row["training_step_ms"]
