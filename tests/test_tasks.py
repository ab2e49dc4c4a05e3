"""Tasks are pure functions of what they are drawn from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l3rs.data import load_icons
from l3rs.data.icons import icons_split
from l3rs.tasks import TaskConfig, TaskDistribution, task_seed

IMAGES, SPLIT = load_icons(), icons_split()
KNOWN_TASK = ([87, 226, 300, 37], 796655293)
KNOWN_SUMS = (3249355, 3197316)


def tasks(purpose: str = "meta-train", **config: int) -> TaskDistribution:
    return TaskDistribution(IMAGES, SPLIT.classes[purpose], TaskConfig(**config))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 60), classes=st.integers(2, 40), size=st.integers(1, 32))
def test_a_task_is_well_formed(seed: int, steps: int, classes: int, size: int) -> None:
    d = tasks(classes=classes, batch_size=size, evaluation_size=16)
    task = d.draw(seed, steps)
    torch.manual_seed(seed)  # global state has no part in it
    again = d.draw(seed, steps)
    for a, b in ((task.classes, again.classes), (task.batches, again.batches), (task.evaluation, again.evaluation)):
        assert torch.equal(a, b)
    assert task.batches.shape == (steps, size)
    assert len(set(task.classes.tolist())) == classes
    assert not IMAGES.validation[task.batches].any()
    assert IMAGES.validation[task.evaluation].all()
    assert len(set(task.evaluation.tolist())) == 16
    labels = task.labels(IMAGES, task.batches.flatten())
    assert 0 <= labels.min() <= labels.max() < classes
    assert (task.labels(IMAGES, task.evaluation) >= 0).all()
    assert task.crops is None
    assert all(len(set(b.tolist())) == size for b in task.batches)  # without replacement


def test_a_shorter_task_is_the_beginning_of_a_longer_one() -> None:
    short, long = tasks().draw(3, 10), tasks().draw(3, 80)
    assert torch.equal(short.batches, long.batches[:10])
    assert torch.equal(short.evaluation, long.evaluation)
    assert short.head_seed == long.head_seed


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    assert torch.equal(tasks(batch_size=64).draw(3, 5).evaluation, tasks(batch_size=32).draw(3, 5).evaluation)


def test_tasks_differ_between_seeds_and_splits() -> None:
    one = tasks().draw(0, 2)
    assert not torch.equal(one.batches, tasks().draw(1, 2).batches)
    assert one.head_seed != tasks("meta-test").draw(0, 2).head_seed


def test_a_known_task_stays_what_it_is() -> None:
    """Rows and checkpoints refer to tasks by seed: what a seed means must not change."""
    task = tasks().draw(0, 3)
    assert (task.classes[:4].tolist(), task.head_seed) == KNOWN_TASK
    assert (int(task.batches.sum()), int(task.evaluation.sum())) == KNOWN_SUMS


def test_task_seeds_are_functions_of_their_key() -> None:
    assert task_seed(0, 1, 2) == task_seed(0, 1, 2) != task_seed(0, 2, 1)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 200 classes; there are 100"):
        tasks(classes=200)
    with pytest.raises(ValueError, match="wants 5000 validation images"):
        tasks(evaluation_size=5000).draw(0, 1)
    with pytest.raises(ValueError, match="steps is 0"):
        tasks().draw(0, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        tasks(batch_size=0)
    with pytest.raises(ValueError, match="no such class in icons: 'unicorn'"):
        TaskDistribution(IMAGES, ("unicorn",))
