"""Tables and figures from rows that were made up, so that what must come out is known."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import random_schedule, small_network
from PIL import Image

from l3rs.evaluation.cell_figures import ahead, meta_training, profiles, progress
from l3rs.evaluation.cell_tables import Cell, against_best, interquartile_means, means, others_of, outcomes, paired
from l3rs.evaluation.cells import EvaluationConfig
from l3rs.evaluation.cost_tables import break_even, meta_training_seconds, step_tables, tuning_cost
from l3rs.evaluation.decision_figures import decision_pictures, trust
from l3rs.evaluation.decisions import time_features
from l3rs.evaluation.pages import MISSING, Picture
from l3rs.evaluation.speedups import in_words, speedup_of, speedups, steps_to_match
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import CELL_FIELDS
from l3rs.networks.create import resnet
from l3rs.networks.layer_groups import layer_groups
from l3rs.stats import performance_profile, runs_to_break_even, speedup

ARMS = (Arm("L3RS", "l3rs", learned="nowhere"), Arm("Adam constant 1e-3", "adam", 1e-3), Arm("Adam cosine tuned", "adam-cosine"))
CONFIG = EvaluationConfig("A", ARMS, {10: 4, 100: 4})


def rows(change: dict[tuple[str, int, int], float] | None = None, without: tuple[tuple[str, int, int], ...] = ()) -> pd.DataFrame:
    """Four tasks of each arm and horizon: L3RS is 0.1 better than Adam at 10 steps, and as good at 100."""
    level = {("L3RS", 10): 0.7, ("L3RS", 100): 0.8, ("Adam constant 1e-3", 10): 0.6, ("Adam constant 1e-3", 100): 0.8}
    level |= {("Adam cosine tuned", h): level["Adam constant 1e-3", h] - 0.05 for h in (10, 100)}
    found: list[dict[str, Any]] = []
    for arm in ARMS:
        for horizon in CONFIG.horizons:
            for task in range(4):
                if (arm.name, horizon, task) in without:
                    continue
                accuracy = (change or {}).get((arm.name, horizon, task), level[arm.name, horizon] + 0.01 * task)
                found.append(
                    {
                        "cell": "A",
                        "arm": arm.name,
                        "lr": CONFIG.rate(arm, horizon),
                        "learned": "",
                        "head": "random",
                        "meta_seed": 0,
                        "horizon": horizon,
                    }
                    | {"steps": horizon, "task_seed": task, "accuracy": accuracy, "loss": 1 - accuracy, "seconds": 0.1 * horizon}
                )
    return pd.DataFrame(found, columns=list(CELL_FIELDS))


def cell(**changes: Any) -> Cell:
    return Cell(CONFIG, "configs/evaluate/A.yaml", rows(**changes), "A made-up cell")


def check(picture: Picture) -> None:
    """That it is drawn, small, and described by its numbers."""
    assert Image.open(io.BytesIO(picture.png)).size[0] > 500
    assert len(picture.png) < 150 * 1024
    assert any(c.isdigit() for c in picture.alt)


def test_a_known_difference_comes_out() -> None:
    table = cell().outcomes("accuracy")
    found = paired(CONFIG, table, "accuracy", "L3RS")
    assert found.loc["Adam constant 1e-3"].to_list() == ["+10.0 (10.0 to 10.0); 100%, n=4", "+0.0 (0.0 to 0.0); 50%, n=4"]
    assert means(CONFIG, table).loc["Adam cosine tuned", "10 steps"] == "0.565 ± 0.013 (lr 0.01)"
    assert interquartile_means(CONFIG, table).loc["L3RS", "10 steps"] == "0.715"
    line = against_best({"A": cell()}).loc["A, 10 steps, L3RS"]
    assert line.to_list() == ["0.715", "0.615", "Adam constant 1e-3", "+10.0 (10.0 to 10.0)", "100%", "4"]


def test_how_far_ahead_it_is_of_the_best_other() -> None:
    picture = ahead({"A": cell(), "B": cell(change={("Adam constant 1e-3", 100, 0): 1.0})}, "Ahead", "", ())
    check(picture)
    assert "A, L3RS +10 at 10, +0 at 100; B, L3RS +10 at 10, -5 at 100." in picture.alt  # in B Adam's first task is 20 points better
    assert picture.figure is not None
    (axes,) = picture.figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-20", "-5", "-2", "-1", "0", "1", "2", "5", "10"]
    places = axes.transData.transform([(x, 0.0) for x in (-10, -5, 0, 0.5, 1)])[:, 0]
    assert places[3] - places[2] == pytest.approx(places[4] - places[3])  # linear near 0,
    assert places[1] - places[0] < places[2] - places[1]  # and not beyond
    nothing = Cell(CONFIG, "A.yaml", rows()[:0], "Empty")
    assert ahead({"A": nothing}, "Ahead", "", ("a command",)).figure is None


def test_a_diverged_run_counts_as_a_loss() -> None:
    diverged = cell(change={("L3RS", 10, 0): math.nan})
    accuracy, loss = (paired(CONFIG, diverged.outcomes(measure), measure, "L3RS") for measure in ("accuracy", "loss"))
    assert accuracy.loc["Adam constant 1e-3", "10 steps"].startswith("-7.5 (")  # (-60 + 3 times 10) / 4 points
    assert accuracy.loc["Adam constant 1e-3", "10 steps"].endswith("75%, n=4")
    assert loss.loc["Adam constant 1e-3", "10 steps"] == "diverged; 75%, n=4"
    assert means(CONFIG, diverged.outcomes("loss")).loc["L3RS", "10 steps"] == "diverged"
    assert means(CONFIG, diverged.outcomes("accuracy")).loc["L3RS", "10 steps"].startswith("0.540 ± ")
    assert "L3RS from 0.185 at 100 steps" in progress(diverged, "Figure", "loss").alt  # no axis has room for the mean at 10


def test_pairs_are_tasks_that_both_have() -> None:
    some = cell(without=(("L3RS", 10, 0), ("Adam constant 1e-3", 10, 1)))
    assert paired(CONFIG, some.outcomes("accuracy"), "accuracy", "L3RS").loc["Adam constant 1e-3", "10 steps"].endswith("n=2")
    assert means(CONFIG, some.outcomes("accuracy")).loc["L3RS", "10 steps"].endswith("(n=3)")


def test_what_is_missing_names_its_command() -> None:
    lacking = cell(without=tuple(("L3RS", h, t) for h in (10, 100) for t in range(4)))
    assert means(CONFIG, lacking.outcomes("accuracy")).loc["L3RS"].to_list() == [MISSING, MISSING]
    away = "# L3RS needs the file nowhere: see docs/reproduce.md"
    assert lacking.commands() == (away, "python evaluate/run.py --config configs/evaluate/A.yaml")
    tuned = cell(without=tuple(("Adam cosine tuned", h, t) for h in (10, 100) for t in range(4)))
    assert tuned.commands() == ("python evaluate/run.py --config configs/evaluate/A.yaml",)
    assert cell().commands() == ()
    nothing = Cell(CONFIG, "A.yaml", rows()[:0], "Empty")
    for picture in (progress(nothing, "Figure", "accuracy"), speedups(nothing, "Figure", "loss"), profiles(nothing, "Figure")):
        assert picture.figure is None
        assert picture.commands == (away, "python evaluate/run.py --config A.yaml")
    assert against_best({"A": nothing}).loc["A"].to_list() == [MISSING] * 6
    untuned = EvaluationConfig("A", (Arm("Celo2", "celo2", learned="nowhere"),), {10: 1})
    assert Cell(untuned, "A.yaml", rows(), "").commands() == (
        "# Celo2 needs the file nowhere: see docs/learned-optimizers.md",
        "python evaluate/tune.py --names celo2",
        "python evaluate/run.py --config A.yaml",
    )
    started = EvaluationConfig("A", tuple(Arm(f"Celo2 {i}", "celo2", learned="nowhere", head="start") for i in (1, 2)), {10: 1})
    assert Cell(started, "A.yaml", rows(), "").commands()[1] == "python evaluate/tune.py --head start --names celo2"


def test_an_arm_with_a_random_head_is_not_compared_with_head_starts() -> None:
    ours = {head: Arm(head, "l3rs", learned="nowhere", head=head) for head in ("random", "start")}
    others = (Arm("Adam", "adam"), Arm("Adam with head start", "adam", head="start"))
    assert others_of(ours["random"], (*ours.values(), *others)) == ["Adam"]
    assert others_of(ours["start"], (*ours.values(), *others)) == ["Adam", "Adam with head start"]


def test_the_first_arm_is_what_others_are_compared_with() -> None:
    head = Arm("L3RS head", "l3rs", learned="nowhere", head_only=True)
    assert cell().reference == "L3RS"
    assert Cell(EvaluationConfig("A", (head, ARMS[0]), {10: 1}), "", rows(), "").reference == "L3RS head"
    assert Cell(EvaluationConfig("A", (ARMS[1], ARMS[0]), {10: 1}), "", rows(), "").reference is None


def test_rows_of_other_weights_are_left_out() -> None:
    config = EvaluationConfig("A", (Arm("L3RS", "l3rs", learned="icons-generalist"),), {10: 4})
    assert outcomes(rows().assign(learned="icons-generalist 000000000000"), config, "accuracy").empty


def test_speedup_is_the_steps_to_the_same_accuracy() -> None:
    table = cell().outcomes("accuracy")
    found = speedup_of(table, "accuracy", "L3RS", "Adam constant 1e-3")
    assert found[10] == pytest.approx((math.sqrt(10),) * 3)  # 0.7 lies half way from 0.6 at 10 to 0.8 at 100, in log steps
    assert found[100][0] == pytest.approx(1)
    assert speedup_of(table, "accuracy", "L3RS", "Adam cosine tuned")[100][0] == math.inf
    short = table.drop(columns=[("Adam cosine tuned", 100)])
    assert list(speedup_of(short, "accuracy", "L3RS", "Adam cosine tuned")) == [10]  # no run of it says whether 100 steps are enough
    seldom = table.copy()
    seldom.loc[seldom.index[1:], ("Adam constant 1e-3", 100)] = math.nan  # one of four tasks
    assert speedup_of(seldom, "accuracy", "L3RS", "Adam constant 1e-3") == {10: (math.inf,) * 3}
    assert speedup_of(cell().outcomes("loss"), "loss", "L3RS", "Adam constant 1e-3")[10][0] == pytest.approx(math.sqrt(10))


def test_speedup_has_an_interval_and_ignores_what_did_not_run() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, (50, 2))
    behind = np.array([-0.1, 0.1]) + noise
    middle, low, high = speedup(10, [math.log(10), math.log(100)], behind)
    assert 1 < low < middle < high < 10
    behind[1:, 1] = math.nan  # all that is left of the second length is one task
    assert speedup(10, [math.log(10), math.log(100)], behind)[2] == math.inf
    assert math.isnan(speedup(10, [math.log(10)], behind[:1, :1])[1])


def test_a_profile_is_a_share_of_tasks() -> None:
    assert performance_profile([0.2, 0.4, 0.6, 0.0], [0.0, 0.4, 0.7]).tolist() == [1.0, 0.5, 0.0]


def test_figures_of_a_cell_are_drawn() -> None:
    shown = progress(cell(), "Figure 3A", "accuracy")
    assert "L3RS from 0.715 at 10 steps to 0.815 at 100" in shown.alt
    fast = speedups(cell(), "Figure 3F", "accuracy")
    assert "Adam constant 1e-3 3.2 times (3.2 to 3.2) at 10, 1.0 times (1.0 to 1.0) at 100" in fast.alt
    assert "Adam cosine tuned 5.6 times (5.6 to 5.6) at 10, never at 100" in fast.alt
    assert steps_to_match(cell(), "accuracy").loc["Adam cosine tuned"].to_list() == ["5.6 times (5.6 to 5.6)", "never"]
    assert in_words(1.5, 1.25, math.inf) == "1.5 times (1.2 to never)"
    assert in_words(math.inf, 3.0, math.inf) == "never (3.0 at least)"
    assert "L3RS 0.715 at 10" in profiles(cell(), "Profile").alt
    check(fast)


def test_meta_training_pays_for_itself_by_the_formula() -> None:
    assert runs_to_break_even(100, 30) == 4
    assert runs_to_break_even(-1, 30) == 0
    assert runs_to_break_even(100, 0) == math.inf
    tuning = pd.DataFrame(
        [
            {"optimizer": o, "lr": lr, "steps": s, "task_seed": 0, "seconds": 5.0}
            for o in ("adam", "adam-cosine")
            for lr in (1, 3)
            for s in (10, 100)
        ]
    )
    assert tuning_cost(tuning, "adam", 100) == (10.0, 2)  # evaluations along one run
    assert tuning_cost(tuning, "adam-cosine", 100) == (20.0, 2)
    schedule = random_schedule(small_network(), specialist=False)
    schedule.training.update({"config": {"workers": 2}, "seconds": 50.0})
    assert meta_training_seconds(schedule) == 100
    table = break_even(
        schedule, tuning, {"adam": 2.0, "l3rs": 3.0}, {"adam": 2.0}, {"adam": "Adam", "adam-cosine": "cosine"}, 100, ("run",)
    )
    assert table.frame.loc["Adam", ["N, tuned each time", "N, tuned once"]].to_list() == ["100", "90"]  # 100 / (2x2 - 3), (100 - 10) / 1
    assert table.frame.loc["cosine", "N, tuned once"] == MISSING
    assert table.commands == ("run",)


def test_costs_show_the_newest_rows_and_what_is_missing() -> None:
    row = {"network": "resnet34-w16", "parameters": 10**6, "device": "x", "threads": 2, "q25_ms": 1.0, "q75_ms": 2.0}
    rows = (("2026-02-02", 9.0, "x"), ("2026-02-03", 3.0, "x"), ("2026-02-02", 8.0, "x"), ("2026-02-01", 1.0, "a GPU"))  # of several files
    step = pd.DataFrame(
        row | {"date": date, "device": device, "arm": "l3rs", "median_ms": ms, "ratio_to_fused_adam": 1.5, "state_words": 2.0}
        for date, ms, device in rows
    )
    other = row | {"date": "2026-02-02", "device": "a GPU", "arm": "velo", "median_ms": 1.0, "ratio_to_fused_adam": 1.0, "state_words": 5.0}
    step = pd.concat([step, pd.DataFrame([other])], ignore_index=True)
    share = pd.DataFrame(columns=["arm", "network", "pixels", "training_step_ms", "optimizer_ms", "share"])
    full, narrow, training = step_tables(step, share)
    assert narrow.frame.loc["L3RS"].to_list() == ["2.0000", "", "3.0", "1.0 to 2.0", "1.50"]
    assert full.frame.loc["L3RS"].to_list() == narrow.frame.loc["VeLO"].to_list() == [MISSING] * 5  # on this device
    assert full.commands
    assert training.commands


def test_decisions_are_drawn_from_their_rows() -> None:
    network = resnet(18, 4, num_classes=3)
    layers = layer_groups(network)
    assert layers.kind.to_list()[:3] == ["convolution", "scale", "shift"]
    assert layers.kind.to_list()[-2:] == ["head", "head"]
    made = [
        {"schedule": "s", "horizon": 20, "task_seed": t, "step": k, "layer": layer, "kind": kind, "depth": depth}
        | {"lambda": 1 / k, "length": 1.0, "mu_sgd": k / 20, "mu_adam": 1 - k / 20}
        for t in (0, 1)
        for k in range(1, 21)
        for layer, (depth, kind) in layers.iterrows()
    ]
    drawn = {p.name: p for p in decision_pictures(pd.DataFrame(made), time_features(random_schedule(network), [20]))}
    assert list(drawn) == ["Figure 4", "Figure 5", "Figure 8", "Figure 9"]
    assert all(p.figure is not None and any(c.isdigit() for c in p.alt) for p in drawn.values())
    check(drawn["Figure 5"])
    assert "convolution: lambda from 1 to 0.05, mu_adam from 0.95 to 0.00" in drawn["Figure 4"].alt
    assert all(p.figure is None and p.commands == ("python evaluate/decisions.py",) for p in decision_pictures(None, None))


def test_trust_is_drawn_for_each_other_optimizer() -> None:
    made = [
        {"setting": f"SGD, Adam, {name}", "meta_seed": seed, "kind": kind, "step": k, "mu_other": start / k + 0.1 * seed}
        for name, start in (("Muon", 0.6), ("Celo2-base", 0.2))
        for seed in (0, 1)
        for kind in ("convolution", "head")
        for k in (1, 2, 3)
    ]
    picture = trust("Trust", pd.DataFrame(made), ())
    check(picture)
    assert [axes.get_ylabel() for axes in picture.figure.axes] == ["mu of Muon", "mu of Celo2-base"]  # type: ignore[union-attr]
    muon, celo = "from 0.65 to 0.25 (0.60 to 0.20 and 0.70 to 0.30)", "from 0.25 to 0.12 (0.20 to 0.07 and 0.30 to 0.17)"
    assert f"Muon, convolution: {muon}; Muon, head: {muon}; Celo2-base, convolution: {celo}; Celo2-base, head: {celo}." in picture.alt
    assert trust("Trust", None, ("do this",)).figure is None


def test_the_meta_training_curve_says_where_it_went() -> None:
    curve = pd.DataFrame({"generation": range(3), "mean_loss": [1.0, 0.9, 0.8]})
    curve = curve.assign(validation_accuracy=[0.5, math.nan, 0.75], validation_loss=[1.0, math.nan, 0.5])
    picture = meta_training("Figure 6", "made up", curve, ())
    assert "from generation 0 to 2 meta-validation accuracy goes from 0.500 to 0.750" in picture.alt.lower()
    assert meta_training("Figure 6", "made up", None, ("a command",)).commands == ("a command",)
