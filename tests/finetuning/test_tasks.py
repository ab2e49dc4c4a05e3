"""Tasks are pure functions of what they are drawn from."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import image_set
from hypothesis import given, settings
from hypothesis import strategies as st

from l3rs.data import ImageSet, load_icons
from l3rs.data.icons import icons_split
from l3rs.finetuning.tasks import Task, TaskConfig, TaskDistribution, check_sizes, task_seed

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


def augmented() -> ImageSet:
    """Twelve classes of 24 train and 8 validation images, 40 px, of which a network sees 32, mirrored at random."""
    return image_set(classes=12, each=32, height=40, width=40, side=32, mirror=True)


def some_tasks(classes: int = 5, size: int = 16, images: ImageSet | None = None) -> TaskDistribution:
    images = augmented() if images is None else images
    return TaskDistribution(images, images.classes, TaskConfig(classes, size, 8))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 40), classes=st.integers(2, 12), size=st.integers(1, 32), cut=st.booleans())
def test_a_task_on_images_of_ones_own_is_well_formed(seed: int, steps: int, classes: int, size: int, cut: bool) -> None:
    images = augmented() if cut else replace(augmented(), side=None, mirror=False)
    task = some_tasks(classes, size, images).draw(seed, steps)
    of_task = torch.isin(images.labels, task.classes)
    assert set(task.labels(images, torch.nonzero(of_task).flatten()).tolist()) == set(range(classes))
    assert (task.labels(images, torch.nonzero(~of_task).flatten()) == -1).all()
    assert of_task[task.batches].all()
    assert of_task[task.evaluation].all()
    assert not images.validation[task.batches].any()
    assert images.validation[task.evaluation].all()
    per_epoch = 24 * classes // size
    for epoch in task.batches.split(per_epoch):  # no image twice before most have been seen
        assert len(set(epoch.flatten().tolist())) == epoch.numel()
    assert (task.crops is None) == (not cut)
    if task.crops is not None:
        assert task.crops.shape == (steps, size, 3)
        assert (task.crops >= 0).all()
        assert (task.crops <= torch.tensor([8, 8, 1])).all()
    longer = some_tasks(classes, size, images).draw(seed, steps + 7)
    assert torch.equal(longer.batches[:steps], task.batches)
    assert torch.equal(longer.evaluation, task.evaluation)
    if task.crops is not None and longer.crops is not None:
        assert torch.equal(longer.crops[:steps], task.crops)


def test_a_batch_is_what_its_indices_and_crops_say() -> None:
    images = augmented()
    task = some_tasks().draw(1, 3)
    assert task.crops is not None
    inputs, labels = task.batch(images, 2)
    assert torch.equal(inputs, images.inputs(task.batches[2], task.crops[2]))
    assert inputs.shape == (16, 3, 32, 32)
    assert images.labels[task.batches[2]].tolist() == task.classes[labels].tolist()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (images.mean, images.std))
    inputs, labels = task.held_out(images)
    torch.testing.assert_close(inputs, (images.pixels[task.evaluation][..., 4:36, 4:36] / 255 - mean) / std)
    assert images.labels[task.evaluation].tolist() == task.classes[labels].tolist()


def test_every_crop_and_both_sides_of_the_mirror_are_drawn() -> None:
    crops = some_tasks().draw(0, 400).crops
    assert crops is not None
    for column, choices in zip(crops.flatten(0, 1).T, (9, 9, 2), strict=True):
        counts = torch.bincount(column, minlength=choices)
        assert len(counts) == choices
        assert counts.min() > 0.8 * 6400 / choices
        assert counts.max() < 1.2 * 6400 / choices


def test_augmentation_changes_no_choice_of_images() -> None:
    plain = some_tasks(images=replace(augmented(), side=None, mirror=False)).draw(6, 9)
    assert torch.equal(some_tasks().draw(6, 9).batches, plain.batches)


def test_images_of_no_class_are_never_drawn() -> None:
    images = augmented()
    broken = torch.arange(0, len(images.labels), 5)
    images.labels[broken] = -1
    for seed in range(10):
        task = some_tasks(images=images).draw(seed, 12)
        assert not torch.isin(task.batches, broken).any()
        assert not torch.isin(task.evaluation, broken).any()
        assert (task.labels(images, broken) == -1).all()


def digest(task: Task) -> str:
    assert task.crops is not None
    tensors = (task.classes, task.batches, task.evaluation, task.crops)
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors) + bytes(str(task.head_seed), "ascii")).hexdigest()


def digest_of(seed: int) -> str:
    return digest(some_tasks().draw(seed, 20))


def test_a_task_is_the_same_in_any_process() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(digest_of, reversed(range(6))))
    assert there[::-1] == [digest_of(seed) for seed in range(6)]
    assert len(set(there)) == 6


def test_a_task_of_a_set_as_large_as_imagenet_is_drawn_in_no_time() -> None:
    number = 500 * 1300
    images = ImageSet(
        name="large",
        pixels=torch.zeros(1, dtype=torch.uint8).expand(number, 3, 73, 73),
        labels=torch.arange(500).repeat_interleave(1300),
        classes=tuple(f"n{i:08d}" for i in range(500)),
        validation=torch.arange(number) % 1300 < 50,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        side=64,
        mirror=True,
    )
    d = TaskDistribution(images, images.classes)
    d.draw(0, 100)
    seconds = []
    for seed in range(1, 12):
        started = time.process_time()  # not of the wall: other processes may have the cores
        d.draw(seed, 100)
        seconds.append(time.process_time() - started)
    assert sorted(seconds)[5] < 0.05


def test_sizes_that_are_too_small_for_a_task_are_named() -> None:
    task = TaskConfig(classes=3, batch_size=10, evaluation_size=6)
    enough = dict.fromkeys("abc", (4, 2))
    check_sizes(enough, task, "it")
    check_sizes({}, task, "it")
    with pytest.raises(ValueError, match="it has 2 classes, and a task has 3: give it more, or draw tasks of fewer classes"):
        check_sizes(dict.fromkeys("ab", (4, 2)), task, "it")
    check_sizes(enough | {"d": (2, 9)}, task, "it")  # three classes have at least 10 train images, whichever they are
    with pytest.raises(ValueError, match=r"1 classes of it have fewer than 4 train images, .*: d \(1\); leave"):
        check_sizes(enough | {"d": (1, 9)}, task, "it")
    with pytest.raises(ValueError, match=r"2 classes of it have fewer than 2 validation images, .*: d \(1\), e \(0\); leave"):
        check_sizes(enough | {"d": (4, 1), "e": (4, 0)}, task, "it")
    with pytest.raises(ValueError, match=r"c9 \(0\) and 5 more; leave"):
        check_sizes({f"c{i}": (0, 2) for i in range(15)}, task, "it")


def test_any_task_of_classes_that_passed_the_check_can_be_drawn() -> None:
    images = image_set(classes=4, each=8)
    config = TaskConfig(classes=3, batch_size=18, evaluation_size=6)
    check_sizes({c: (len(a), len(b)) for c, (a, b) in zip(images.classes, images.by_class, strict=True)}, config, "it")
    for seed in range(20):
        TaskDistribution(images, images.classes, config).draw(seed, 2)


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
    with pytest.raises(ValueError, match=r"steps must be at least 1 \(got 0\)"):
        tasks().draw(0, 0)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1 \(got 0\)"):
        tasks(batch_size=0)
    with pytest.raises(ValueError, match="no such class in icons: 'unicorn'"):
        TaskDistribution(IMAGES, ("unicorn",))
