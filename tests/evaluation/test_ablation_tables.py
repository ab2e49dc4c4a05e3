"""Settings of meta-training compared, from rows that were made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from l3rs.evaluation.ablation_tables import START, ablation, contrast_table, contrasts, with_start
from l3rs.evaluation.cell_figures import forest
from l3rs.evaluation.figures import differences
from l3rs.evaluation.pages import MISSING
from l3rs.evaluation.sources import Sources
from l3rs.evaluation.study import Study
from l3rs.evaluation.tables import ablations
from l3rs.schedules.variants import NAMES as VARIANTS

ROOT = Path(__file__).parent.parent.parent

NAMES = {"the first": "a", "the second": "b"}


def rows(
    accuracy: Callable[[str, int, int], float], settings: Iterable[str] = "ab", seeds: int = 2, tasks: int = 4, steps: int = 20
) -> pd.DataFrame:
    """Of each setting, meta-training seed and task; the start has 0."""
    return pd.DataFrame(
        [
            {"setting": s, "meta_seed": seed, "generation": g, "steps": steps, "task": t, "accuracy": value, "loss": 1 - value}
            for s in settings
            for seed in range(seeds)
            for g in (0, 40)
            for t in range(tasks)
            for value in [accuracy(s, seed, t) if g else 0.0]
        ]
    )


def test_a_line_has_the_end_of_meta_training_and_averages_seeds() -> None:
    found = ablation(rows(lambda s, seed, t: 0.5 + 0.1 * seed + 0.2 * t, "a", tasks=2), NAMES, [20], "accuracy")
    assert found.loc["the first"].to_list() == ["0.650 ± 0.141", "2, 2"]
    assert found.loc["the second"].to_list() == [MISSING, MISSING]


def test_an_interval_is_for_tasks_and_for_seeds() -> None:
    """By hand: b is 10 points better, by 8 to 12 on the tasks; the seeds' means differ by 2 points in each setting."""
    gain = np.array([0.08, 0.12, 0.08, 0.12])
    made = rows(lambda s, seed, t: 0.5 + 0.05 * t + 0.02 * seed + (gain[t] if s == "b" else 0.0))
    (found,) = contrasts(made, "a", "accuracy").values()
    between = np.var([0.50, 0.52], ddof=1)  # of each setting, and so pooled
    of_tasks = gain.var(ddof=1) / 4
    freedom = (of_tasks + between) ** 2 / (of_tasks**2 / 3 + between**2 / 2)  # Welch and Satterthwaite; two seeds on each side
    half = student.ppf(0.975, freedom) * 100 * math.sqrt(of_tasks + between)
    assert found == pytest.approx((10, 10 - half, 10 + half))
    (loss,) = contrasts(made, "a", "loss").values()
    assert loss == pytest.approx(tuple(x / 100 for x in found))  # less of it is better


def test_in_a_start_luck_has_no_part() -> None:
    """By hand: the start is 10 points worse on all tasks; the seeds' means of a and b differ by 2 points."""
    made = rows(lambda s, seed, t: 0.4 if s == START else 0.5 + 0.02 * seed, ("a", "b", START))
    found = contrasts(made[(made.setting != START) | (made.meta_seed == 0)], "a", "accuracy")
    between = np.var([0.50, 0.52], ddof=1)  # pooled over the two that have seeds
    for setting, share in (("b", 1 / 2 + 1 / 2), (START, 1 / 2)):
        half = student.ppf(0.975, 2) * 100 * math.sqrt(between * share)
        assert found[setting, 20].high - found[setting, 20].mean == pytest.approx(half)


def test_the_variance_between_seeds_is_pooled_over_settings_by_their_number() -> None:
    """a has two seeds, c three, 2 and 4 points apart; b has one, and takes the noise from them."""
    apart, number = {"a": 0.02, "b": 0.0, "c": 0.04}, {"a": 2, "b": 1, "c": 3}
    made = rows(lambda s, seed, t: 0.5 + apart[s] * seed, "abc", seeds=3)
    made = made[made.meta_seed < made.setting.map(number)]
    between = (1 * np.var([0, 0.02], ddof=1) + 2 * np.var([0, 0.04, 0.08], ddof=1)) / 3
    found = contrasts(made, "a", "accuracy")
    for setting in "bc":
        half = student.ppf(0.975, 3) * 100 * math.sqrt(between * (1 / number[setting] + 1 / 2))
        assert found[setting, 20].high - found[setting, 20].mean == pytest.approx(half)


def test_each_use_has_its_own_reference_and_its_own_luck() -> None:
    """By hand: the seeds' means are 2 points apart, and 20 where schedules are used otherwise; b is 10 points better, and 5 there."""

    def accuracy(s: str, seed: int, t: int) -> float:
        otherwise = s.endswith(", otherwise")
        return 0.5 + (0.2 if otherwise else 0.02) * seed - 0.3 * otherwise + ((0.05 if otherwise else 0.1) if s.startswith("b") else 0.0)

    found = contrasts(rows(accuracy, ("a", "b", "a, otherwise", "b, otherwise")), "a", "accuracy", ("", ", otherwise"))
    assert set(found) == {("b", 20), ("a, otherwise", 20), ("b, otherwise", 20)}
    for setting, mean, apart in (("b", 10, 2), ("b, otherwise", 5, 20)):  # two seeds on each side
        half = student.ppf(0.975, 2) * np.std([0, apart], ddof=1)
        assert found[setting, 20] == pytest.approx((mean, mean - half, mean + half))
    half = student.ppf(0.975, 1) * np.std([0, 18], ddof=1) / math.sqrt(2)  # a in both uses, seed by seed: 30 points worse, and 12
    assert found["a, otherwise", 20] == pytest.approx((-21, -21 - half, -21 + half))


def test_intervals_hold_what_is_true_nineteen_times_in_twenty() -> None:
    """Settings that are the same, with noise of tasks and of seeds: 0 is outside in about one of twenty."""
    outside, rng = [], np.random.default_rng(0)
    for _ in range(60):
        luck, noise = rng.normal(0, 0.02, (12, 2)), rng.normal(0, 0.03, (12, 2, 10))
        letters = "abcdefghijkl"
        made = rows(lambda s, seed, t, luck=luck, noise=noise: luck[ord(s) - 97, seed] + noise[ord(s) - 97, seed, t], letters, tasks=10)
        outside += [c.low > 0 or c.high < 0 for c in contrasts(made, "a", "accuracy").values()]
    assert len(outside) == 660
    assert 0.005 < np.mean(outside) < 0.08


def test_what_a_difference_says() -> None:
    steps = {10: 0.2, 50: 0.0, 90: -0.2}
    made = pd.concat([rows(lambda s, seed, t, g=g: 0.5 + 0.001 * (seed + t) + (g if s == "b" else 0), steps=h) for h, g in steps.items()])
    table = contrast_table(contrasts(made, "a", "accuracy"), {"the second": "b", "the third": "c"}, "accuracy")
    assert table.loc["the second", "verdict"] == "better at 10; worse at 90"
    assert table.loc["the second", "50 steps"] == "+0.0 (-0.3 to 0.3)"
    assert set(table.loc["the third"]) == {MISSING}
    same = contrast_table(contrasts(rows(lambda s, seed, t: 0.01 * seed), "a", "loss"), {"the second": "b"}, "loss")
    assert same.loc["the second"].to_list() == ["+0.000 (-0.030 to 0.030)", "within the noise"]


def test_without_a_second_seed_nothing_is_said() -> None:
    table = contrast_table(contrasts(rows(lambda s, seed, t: 0.1 * (s == "b"), seeds=1), "a", "accuracy"), {"b": "b"}, "accuracy")
    assert table.loc["b"].to_list() == ["+10.0", MISSING]


def test_the_start_may_be_compared_too() -> None:
    """It is that of one seed, and adds nothing to the noise between seeds."""
    made = rows(lambda s, seed, t: 0.5 + 0.02 * seed)
    found = contrasts(with_start(made, "a"), "a", "accuracy")
    assert found[START, 20].mean == pytest.approx(-51)
    assert found["b", 20] == contrasts(made, "a", "accuracy")["b", 20]
    assert ablation(with_start(made, "a"), {START: START}, [20], "accuracy").loc[START].to_list() == ["0.000 ± 0.000", "1, 4"]
    assert with_start(made[:0], "a").empty


def test_a_diverged_run_has_no_interval() -> None:
    made = rows(lambda s, seed, t: math.nan if (s, seed, t) == ("b", 0, 0) else 0.5)
    assert contrast_table(contrasts(made, "a", "loss"), {"b": "b"}, "loss").loc["b"].to_list() == ["diverged", MISSING]
    worst = contrasts(made, "a", "accuracy")["b", 20].mean
    assert worst == pytest.approx(-100 * 0.25 / 4)  # counted as nothing right: half of one task's two seeds


def test_the_reference_is_not_compared_and_may_lack() -> None:
    made = rows(lambda s, seed, t: 0.5)
    assert set(contrasts(made, "a", "accuracy")) == {("b", 20)}
    assert contrasts(made, "z", "accuracy") == contrasts(made[:0], "a", "accuracy") == {}


def test_the_picture_has_a_line_a_setting_and_says_it_in_words() -> None:
    made = pd.concat([rows(lambda s, seed, t: 0.5 + 0.01 * seed + 0.1 * (s == "b"), "abc", steps=h) for h in (10, 50)])
    found = contrasts(made, "a", "accuracy")
    picture = forest("Settings", "about", found, {"the second": "b", "the third": "c", "the fourth": "d"})
    (axes,) = picture.figure.axes  # type: ignore[union-attr]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["the second", "the third"]
    assert axes.get_legend_handles_labels()[1] == ["10 steps", "50 steps"]
    said = "the second +10 at 10, +10 at 50; the third +0 at 10, +0 at 50"
    assert picture.alt == f"Differences in points of accuracy, with steps of the runs: {said}."
    assert forest("Settings", "about", {}, {"the second": "b"}, ("do this",)).figure is None


def test_rows_of_all_variants_fill_the_tables_of_the_paper_and_lacking_ones_have_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources(ROOT, ROOT / "runs")
    study = sources.study("ablations")
    whole = rows(lambda s, seed, t: 0.5 + 0.01 * seed, study.names)
    command = "python evaluate/study.py --config configs/ablations.yaml"
    some = whole[whole.setting.isin(["SGD, Adam", *list(VARIANTS.values())[:1]])]
    for there, filled, wanted in ((whole, True, None), (whole[:0], False, command), (some, False, f"{command} --only 'SGD, Adam, Muon' ")):
        monkeypatch.setattr(Study, "measured", lambda self, root, there=there: there)
        made = {table.name: table for _, table in ablations(sources)}
        for name in ("Table 2", "Table 3", "Table 4", "Table 4, beyond the paper"):
            assert (made[name].frame == MISSING).any(axis=None) != filled
            assert bool(made[name].commands) != filled
            assert (f"{name}, paired" in made) == (filled or (name == "Table 2" and there is some))
        drawn = [picture for section, picture in differences(sources) if section == "Ablations"]
        assert [bool(picture.commands) for picture in drawn] == [not filled] * 4
        if filled:
            assert [len(made[f"Table {i}, paired"].frame) for i in (2, 3, 4)] == [11, 5, 3]  # each has the reference
        else:
            assert f"{made['Table 4, beyond the paper'].commands[0]} ".startswith(wanted)
            assert drawn[-1].commands == made["Table 4, beyond the paper"].commands


def test_a_study_has_its_configs() -> None:
    """Of the paper's variants and of its own settings, at one cost; a setting that is asked for is named in the command."""
    study = Study.read(ROOT / "configs" / "ablations.yaml")
    configs = {name: study.config(name, 1) for name in study.names}
    assert len(set(map(repr, configs.values()))) == len(configs) == 22
    assert {(c.nes.seed, c.generations, c.meta_batch, c.workers, c.workload.width) for c in configs.values()} == {(1, 40, 2, 1, 8)}
    assert configs["SGD, Adam, Celo2-base"].schedule.directions == ("sgd", "adam", "celo2-base")
    assert not configs["global, SGD"].specialist
    assert study.command(study.names) == "python evaluate/study.py --config configs/ablations.yaml"
    assert study.command(["SGD, Adam"]) == "python evaluate/study.py --config configs/ablations.yaml --only 'SGD, Adam'"
