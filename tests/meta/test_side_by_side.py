"""Meta-training with runs side by side, as on a GPU, finds on a CPU what it finds one run after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import quick

from l3rs.finetuning.lanes import Lanes
from l3rs.meta.descent import search_for
from l3rs.meta.problem import FineTuning
from l3rs.meta.train import meta_train, start


def problems(search: str) -> tuple[FineTuning, FineTuning]:
    """One run after the other, and two at once."""
    config = quick(search=search, meta_batch=2, refresh=True)
    alone, together = (FineTuning(start(config), config) for _ in range(2))
    together.lanes = Lanes(config.workload, config.task, "cpu", 2)
    for problem in (alone, together):
        problem.tasks = [(1, 3), (2, 2)]
    return alone, together


def test_a_generation_to_the_bit() -> None:
    alone, together = problems("nes")
    ends = []
    for problem in (alone, together):
        search = search_for(problem, problem.learned.theta / problem.scale, problem.config)
        search.step()
        ends.append((search.evaluations, search.center, problem.runs(problem.learned.theta, "meta-validation", [(5, 2), (6, 3)])))
    for a, b in zip(ends[0][:2], ends[1][:2], strict=True):
        assert torch.equal(a, b)
    assert ends[0][2] == ends[1][2]


def test_meta_gradients() -> None:
    """To rounding: the way back makes its graphs again."""
    alone, together = (problem.gradients(problem.learned.theta) for problem in problems("gradient"))
    for a, b in zip(alone, together, strict=True):
        assert not a.error
        assert not b.error
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert (a.theta - b.theta).norm() < 1e-3 * a.theta.norm()


def test_a_candidates_error_is_its_own() -> None:
    _, together = problems("nes")
    good = together.learned.theta
    found = list(together._at_once([good, good[:-1]]))
    assert found[0]()[1] is False
    with pytest.raises(ValueError, match="meta-parameters"):
        found[1]()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device is cuda, and torch sees no CUDA GPU here"):
        meta_train(quick(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
