"""How long a run is, how often it is validated, and which baselines it has, where nobody says."""

from __future__ import annotations

import pytest

from l3rs.finetuning.baselines import tuned_learning_rate
from l3rs.own_images.config import OwnImagesConfig
from l3rs.own_images.plan import Plan, plan
from l3rs.own_images.rivals import COMPARED, UNTUNED, rivals, there
from l3rs.schedules.find import GENERALIST


@pytest.mark.parametrize(
    ("train", "held_out", "given", "planned"),
    [
        (16, 4, {}, Plan(100, 10)),  # few images: not less than 100 steps
        (1600, 400, {}, Plan(250, 25)),  # ten times through
        (16_000, 4_000, {}, Plan(500, 63)),  # many: not more than 500, and 8 validations of 4,000 images
        (64_000, 50_000, {}, Plan(500, 500)),  # one there always is
        (1600, 400, {"epochs": 3}, Plan(75, 8)),
        (1650, 400, {"epochs": 3}, Plan(78, 8)),  # not less than three times through: 77.3 batches
        (1600, 400, {"steps": 7}, Plan(7, 7)),
        (1600, 400, {"steps": 40, "every": 3}, Plan(40, 3)),
        (1600, 400, {"steps": 40, "every": 100}, Plan(40, 40)),
    ],
)
def test_a_plan_by_the_number_of_images(train: int, held_out: int, given: dict[str, int], planned: Plan) -> None:
    found = plan(train, held_out, 64 if train > 64 else 16, **given)
    assert found == planned


def test_validations_look_at_fewer_images_than_training() -> None:
    for train in (10, 100, 3_000, 100_000):
        for held_out in (2, 50, 2_000, 40_000):
            batch = min(64, train)
            found = plan(train, held_out, batch)
            assert found.validations <= 10
            assert found.validations == 1 or found.validations * held_out <= found.steps * batch


def test_a_grid_is_several_runs_of_one_rival_and_a_name_alone_has_a_rate_from_somewhere() -> None:
    grid, tuned, published = rivals(["adamw=1e-4,3e-4,1e-3", "adam", "fastai"], 100)
    assert [arm.name for arm in grid.arms] == ["adamw=0.0001", "adamw=0.0003", "adamw=0.001"]
    assert [rival.arms[0].source for rival in (grid, tuned, published)] == ["best of 3", "tuned on Icons25, at 100 steps", "published"]
    with pytest.raises(ValueError, match=r"once \(got adam=0\.001 twice\)"):
        rivals(["adam=1e-3", "adam=0.001,0.01"])


def test_a_rival_has_the_rate_that_was_tuned_for_the_head_that_it_begins_with() -> None:
    for begins, head in ((True, "start"), (False, "random")):
        (arm,) = OwnImagesConfig("x", compare=("adam-cosine",), head_start=begins).arms(10)[1].arms
        assert arm.lr == tuned_learning_rate("adam-cosine", 10, head=head)
    assert tuned_learning_rate("adam-cosine", 10, head="start") != tuned_learning_rate("adam-cosine", 10)


def test_untuned_rivals_are_those_whose_library_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {text.partition("=")[0] for text in UNTUNED} <= set(COMPARED)
    monkeypatch.setattr("l3rs.finetuning.baselines.recipe.find_spec", lambda name: None)
    here, left_out = there(UNTUNED)
    assert here == ["adamw=1e-3", "fastai", "autogluon"]
    assert [line.split(" is left out: it needs ")[0] for line in left_out] == ["prodigy", "schedule-free=0.0025"]
    with pytest.raises(ValueError, match="--compare has prodigy, which needs prodigyopt: pip install prodigyopt"):
        rivals(["prodigy"])


def test_at_home_the_schedule_is_the_one_that_fits_and_elsewhere_the_generalist() -> None:
    assert OwnImagesConfig("x").schedule == GENERALIST
    assert OwnImagesConfig("x", weights="icons").schedule == "auto"
    assert OwnImagesConfig("x", learned="icons-resnet34").schedule == "icons-resnet34"
