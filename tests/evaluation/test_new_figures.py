"""Who wins where, calibration and images seen, from rows that were made up."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pytest

from l3rs.evaluation.calibration import calibration_picture, calibration_table, multiplied
from l3rs.evaluation.cell_tables import Cell
from l3rs.evaluation.cells import EvaluationConfig
from l3rs.evaluation.images_seen import images_picture
from l3rs.evaluation.pages import MISSING
from l3rs.evaluation.winners import winner_picture, winner_table, winners
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import CELL_FIELDS
from l3rs.finetuning.tasks import TaskConfig

TASKS = 4


def cell(name: str, levels: Mapping[tuple[str, int], float], batch: int = 64, **arms: Arm) -> Cell:
    """A cell whose arms have these accuracies at these lengths; each task is 0.01 better than the one before."""
    known = {"L3RS": Arm("L3RS", "l3rs", learned="nowhere"), "Adam": Arm("Adam", "adam", 1e-3), "SGD": Arm("SGD", "sgd-cosine", 0.1)} | arms
    names = dict.fromkeys(arm for arm, _ in levels)
    config = EvaluationConfig(
        name, tuple(known[n] for n in names), dict.fromkeys((h for _, h in levels), TASKS), task=TaskConfig(batch_size=batch)
    )
    rows = [
        {
            "cell": name,
            "arm": arm,
            "lr": config.rate(known[arm], h),
            "learned": "",
            "head": "random",
            "meta_seed": 0,
            "horizon": h,
            "steps": h,
        }
        | {"task_seed": t, "accuracy": level + 0.01 * t, "loss": 1 - level}
        for (arm, h), level in levels.items()
        for t in range(TASKS)
    ]
    return Cell(config, f"configs/evaluate/{name}.yaml", pd.DataFrame(rows, columns=list(CELL_FIELDS)), "A made-up cell")


def test_the_winner_of_each_cell_and_length_is_named_with_its_margin() -> None:
    other = Arm("L3RS two", "l3rs", learned="elsewhere")
    levels = {("L3RS", 10): 0.7, ("L3RS two", 10): 0.75, ("Adam", 10): 0.6, ("SGD", 10): 0.65, ("L3RS", 50): 0.7, ("Adam", 50): 0.8}
    first = cell("A", levels, **{"L3RS two": other})
    second = cell("B", {("L3RS", 10): 0.5, ("Adam", 10): 0.5})
    found = winners(first)
    assert {h: (w.best, w.level) for h, w in found.items()} == {10: ("L3RS two", False), 50: ("Adam", False)}
    assert found[10].margin == pytest.approx((10, 10, 10))  # over SGD
    table = winner_table({"A": first, "B": second})
    assert table.loc["A"].to_list() == ["L3RS two +10.0 (10.0 to 10.0)", "Adam +10.0 (10.0 to 10.0)"]
    assert table.loc["B"].to_list() == ["level: L3RS +0.0 (0.0 to 0.0)", ""]
    picture = winner_picture({"A": first, "B": second}, "Winners", "", ())
    assert "A L3RS two by 10.0 at 10, Adam by 10.0 at 50; B L3RS by 0.0 at 10." in picture.alt
    (axes,) = picture.figure.axes  # type: ignore[union-attr]
    colours = [patch.get_facecolor()[:3] for patch in axes.patches]
    assert len(set(colours)) == 3  # won, lost, level
    nothing = first._replace(rows=first.rows[:0])
    assert winner_table({"A": nothing}).loc["A"].to_list() == [MISSING, MISSING]
    assert winner_picture({"A": nothing}, "Winners", "", ("make",)).figure is None


def test_calibration_compares_multipliers_of_the_same_schedule() -> None:
    arms = {
        "L3RS x3": Arm("L3RS x3", "l3rs", 3.0, learned="nowhere"),
        "L3RS x0.3": Arm("L3RS x0.3", "l3rs", 0.3, learned="nowhere"),
        "another": Arm("another", "l3rs", 0.1, learned="elsewhere"),
    }
    made = cell("net", {("L3RS", 10): 0.7, ("L3RS x3", 10): 0.5, ("L3RS x0.3", 10): 0.75, ("another", 10): 0.9, ("Adam", 10): 0.6}, **arms)
    assert multiplied(made) == {0.3: "L3RS x0.3", 1.0: "L3RS", 3.0: "L3RS x3"}
    assert multiplied(cell("net", {("L3RS", 10): 0.7, ("Adam", 10): 0.6})) == {}
    table = calibration_table({"net": made})
    assert table["10 steps"].to_dict() == {
        "net, against lr 0.3": "-5.0 (-5.0 to -5.0), n=4",
        "net, against lr 3": "+20.0 (20.0 to 20.0), n=4",
    }
    picture = calibration_picture({"net": made}, "Calibration", "", ())
    assert "net, 10 steps, 0.765 at 0.3, 0.715 at 1, 0.515 at 3" in picture.alt


def test_a_multiplier_may_have_run_at_some_lengths_alone() -> None:
    """At the others there is nothing to compare, and nothing is drawn."""
    shorter = {"L3RS x3": Arm("L3RS x3", "l3rs", 3.0, learned="nowhere", horizons=(10,))}
    made = cell("net", {("L3RS", 10): 0.7, ("L3RS", 25): 0.8, ("L3RS x3", 10): 0.5}, **shorter)
    assert multiplied(made) == {1.0: "L3RS", 3.0: "L3RS x3"}
    assert calibration_picture({"net": made}, "Calibration", "", ()).alt == "Accuracy by lr: net, 10 steps, 0.715 at 1, 0.515 at 3."


def test_every_network_that_is_drawn_is_in_the_legend_and_a_lone_multiplier_is_not_drawn() -> None:
    """Also a network that has no multipliers in the last panel."""
    short = {"L3RS x3": Arm("L3RS x3", "l3rs", 3.0, learned="nowhere", horizons=(10,))}
    whole = {"L3RS x3": Arm("L3RS x3", "l3rs", 3.0, learned="nowhere")}
    levels = {("L3RS", 10): 0.7, ("L3RS", 25): 0.8, ("L3RS x3", 10): 0.5}
    cells = {"one": cell("one", levels, **short), "two": cell("two", {**levels, ("L3RS x3", 25): 0.6}, **whole)}
    picture = calibration_picture(cells, "Calibration", "", ())
    assert "one, 25 steps" not in picture.alt
    last = picture.figure.axes[-1]  # type: ignore[union-attr]
    assert [text.get_text() for text in last.get_legend().get_texts()] == ["one", "two"]
    assert len(last.lines) == 1


def test_images_seen_are_steps_times_the_batch() -> None:
    small = cell("small", {("L3RS", 10): 0.6, ("L3RS", 100): 0.7, ("Adam", 10): 0.5, ("Adam", 100): 0.6}, batch=16)
    large = cell("large", {("L3RS", 10): 0.8, ("Adam", 10): 0.7, ("SGD", 10): 0.75}, batch=256)  # SGD is not in both
    picture = images_picture({"large": large, "small": small}, "Images seen", ())
    assert "L3RS in batches of 16 0.615 after 160 images, 0.715 after 1,600 images" in picture.alt
    assert "Adam in batches of 256 0.715 after 2,560 images" in picture.alt
    steps, images = picture.figure.axes  # type: ignore[union-attr]
    assert [line.get_xdata().tolist() for line in steps.lines] == [[10, 100], [10, 100], [10], [10]]
    assert [line.get_xdata().tolist() for line in images.lines] == [[160, 1600], [160, 1600], [2560], [2560]]
    assert images_picture({"small": small}, "Images seen", ("make",)).figure is None
