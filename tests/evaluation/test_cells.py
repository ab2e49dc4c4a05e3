"""Meta-evaluation: what is planned, what a run leaves behind, and that nothing is made twice."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from l3rs.evaluation.cells import (
    EvaluationConfig,
    Planned,
    Rows,
    check_made_with,
    check_weights,
    identity_of,
    missing,
    plan,
    rows_of,
    shared,
)
from l3rs.evaluation.sources import read_cells
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import CELL_FIELDS, Failure, attempt, execute, execute_all, execute_on_ray
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report
from l3rs.finetuning.workload import Workload
from l3rs.schedules.seal import CheckpointError

ROOT = Path(__file__).parent.parent.parent
SMALL = Workload(model="resnet18", width=4, from_scratch=True)
TASK = TaskConfig(classes=5, batch_size=8, evaluation_size=20)
ADAM, COSINE = Arm("Adam 1e-3", "adam", 1e-3), Arm("cosine", "adam-cosine", 1e-2)


def cell(*arms: Arm, **changes: Any) -> EvaluationConfig:
    return EvaluationConfig(changes.pop("cell", "test"), arms, **{"horizons": {2: 3, 4: 2}, "workload": SMALL, "task": TASK, **changes})


def test_every_arm_runs_every_horizon_on_as_many_tasks_the_longest_first() -> None:
    planned = plan(cell(COSINE, Arm("L3RS", "l3rs", learned="icons-generalist", horizons=(2,))))
    assert [p.run.steps for p in planned] == [4, 4, 2, 2, 2, 2, 2, 2]
    assert [(p.run.arm.name, p.run.steps, p.run.task_seed) for p in planned if p.run.arm.ours] == [("L3RS", 2, seed) for seed in range(3)]
    assert {p.run.lr for p in planned if p.run.arm.ours} == {1.0}


def test_shorter_runs_of_a_constant_arm_are_the_beginnings_of_the_longest() -> None:
    planned = plan(cell(ADAM))
    assert [(p.run.steps, p.run.evaluate_at, p.finals, p.run.task_seed) for p in planned] == [
        (4, (2, 4), (4, 2), 0), (4, (2, 4), (4, 2), 1), (2, (2,), (2,), 2)
    ]  # fmt: skip
    apart = replace(planned[0].run, steps=2, evaluate_at=())
    whole, short = execute(planned[0].run), execute(apart)
    assert whole.accuracy[2] == short.accuracy[2]
    assert whole.loss[2] == short.loss[2]


def test_a_tuned_arm_takes_the_learning_rate_of_each_horizon() -> None:
    planned = plan(cell(Arm("tuned", "adam-cosine"), horizons={10: 1, 100: 1}))
    assert {p.run.steps: p.run.lr for p in planned} == {10: 0.01, 100: 0.003}


def test_an_optimizer_may_be_told_a_wrong_length() -> None:
    """A cosine that expects 8 steps and is stopped after 4 is where one of 8 steps is after 4, if both learn on the same batches."""
    (told,) = plan(cell(replace(COSINE, total_steps=2.0), horizons={4: 1}))
    (true,) = plan(cell(COSINE, horizons={4: 1}))
    assert (told.run.steps, told.run.total_steps, true.run.total_steps) == (4, 8, 4)
    assert execute(told.run).loss != execute(true.run).loss
    assert execute(replace(true.run, arm=replace(true.run.arm, total_steps=2.0))).loss == execute(told.run).loss
    l3rs = Arm("L3RS", "l3rs", learned="icons-generalist")
    (told,), (true,) = (plan(cell(arm, horizons={4: 1})) for arm in (replace(l3rs, total_steps=2.0), l3rs))
    assert execute(told.run).loss != execute(true.run).loss


def test_recent_statistics_change_what_is_evaluated_and_not_the_run() -> None:
    (plain,), (recent,) = (plan(cell(replace(COSINE, recent=is_so), horizons={4: 1})) for is_so in (False, True))
    once, often = (execute(replace(recent.run, evaluate_at=at)) for at in ((), (0, 1, 2)))
    assert execute(plain.run).train_losses == once.train_losses == often.train_losses
    assert once.loss[4] == often.loss[4] != execute(plain.run).loss[4]
    (row,) = rows_of(recent, once)
    assert (row["head"], row["refresh"], row["recent"]) == ("random", False, True)


def test_a_row_of_another_head_is_another_run(tmp_path: Path) -> None:
    (random,), (start,) = (plan(cell(replace(COSINE, head=head), horizons={4: 1})) for head in ("random", "start"))
    rows = Rows(tmp_path)
    rows.append(list(rows_of(random, execute(random.run))))
    assert missing([random], rows.read()) == []
    assert missing([start], rows.read()) == [start]


def test_refreshed_statistics_change_what_is_evaluated_and_not_the_run() -> None:
    (plain,) = plan(cell(COSINE, horizons={4: 1}))
    (refreshed,) = plan(cell(replace(COSINE, refresh=True), horizons={4: 1}))
    once, often = (execute(replace(refreshed.run, evaluate_at=at)) for at in ((), (0, 1, 2)))
    assert execute(plain.run).train_losses == once.train_losses == often.train_losses
    assert once.loss[4] == often.loss[4] != execute(plain.run).loss[4]
    assert often.loss[0] == execute(replace(plain.run, evaluate_at=(0,))).loss[0]  # there were no batches yet


def test_a_run_leaves_a_row_for_each_evaluation() -> None:
    (planned,) = plan(cell(COSINE, horizons={4: 1}, curve=(1, 3, 8)))
    rows = list(rows_of(planned, attempt(planned.run)))
    assert [(r["horizon"], r["steps"]) for r in rows] == [(4, 1), (4, 3), (4, 4)]
    assert all(set(r) <= set(CELL_FIELDS) for r in rows)
    last = rows[-1]
    assert 0 <= last["accuracy"] <= 1
    assert last["seconds"] > 0
    assert 10 < last["peak_mib"] < 20_000
    assert "seconds" not in rows[0]  # it is that of the whole run
    assert (last["cell"], last["arm"], last["optimizer"], last["lr"], last["learned"]) == ("test", "cosine", "adam-cosine", 1e-2, "")


def test_rows_of_a_constant_arm_say_which_lengths_they_end() -> None:
    planned = plan(cell(ADAM, horizons={2: 1, 4: 1}, curve=(1,)))[0]
    found = Report(accuracy={1: 0.1, 2: 0.2, 4: 0.4}, loss={1: 3.0, 2: 2.0, 4: 1.0})
    assert [(r["horizon"], r["steps"], r["accuracy"]) for r in rows_of(planned, found)] == [
        (4, 1, 0.1),
        (2, 2, 0.2),
        (4, 2, 0.2),
        (4, 4, 0.4),
    ]


def test_a_run_that_diverges_stays_a_run_that_diverged() -> None:
    planned = plan(cell(Arm("far too fast", "sgd-cosine", 1e30), horizons={4: 1}))[0]
    (row,) = rows_of(planned, attempt(planned.run))
    assert math.isnan(row["accuracy"])
    assert math.isnan(row["loss"])
    assert "error" not in row


def test_a_run_that_fails_is_a_row_with_its_error_and_the_others_go_on() -> None:
    good, bad = (p.run for p in plan(cell(COSINE, horizons={2: 2})))
    bad = replace(bad, purpose="nobody's")
    found = dict(execute_all([good, bad], 1, attempt))
    assert isinstance(found[good], Report)
    assert isinstance(found[bad], Failure)
    planned = plan(cell(COSINE, horizons={2: 2}))[1]
    (row,) = rows_of(planned, found[bad])
    assert "KeyError" in row["error"]
    assert math.isnan(row["accuracy"])


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_rows() -> None:
    good, other = (p.run for p in plan(cell(COSINE, horizons={2: 2})))
    bad = replace(other, purpose="nobody's")
    try:
        found = dict(execute_on_ray([good, bad], "local"))
    finally:
        ray.shutdown()
    report = found[good]
    assert isinstance(report, Report)
    assert report.loss == execute(good).loss
    assert isinstance(found[bad], Failure)


def fake(planned: Planned) -> list[dict[str, Any]]:
    steps = planned.run.evaluate_at or (planned.run.steps,)
    return list(rows_of(planned, Report(accuracy=dict.fromkeys(steps, 0.5), loss=dict.fromkeys(steps, 1.0))))


def test_what_is_there_is_not_made_again_whichever_file_it_is_in(tmp_path: Path) -> None:
    config = cell(ADAM, COSINE)
    planned = plan(config)
    assert missing(planned, Rows(tmp_path).read()) == planned
    first, second = Rows(tmp_path), Rows(tmp_path / "committed")
    first.append(fake(planned[0]))
    second.append(fake(planned[1]))
    both = Rows(tmp_path, tmp_path / "committed")
    assert missing(planned, both.read()) == planned[2:]
    both.append(fake(planned[0]))  # twice, by two machines
    assert both.read().equals(Rows(tmp_path, tmp_path / "committed").read())
    assert len(both.read()) == len(fake(planned[0])) + len(fake(planned[1]))
    for change in ({"lr": 1e-4}, {"head": "start"}):
        other = replace(config, arms=(replace(ADAM, **change),))  # type: ignore[arg-type]
        assert missing(plan(other), both.read()) == plan(other)


def test_rows_say_which_head_and_statistics_they_are_of(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    (planned,) = plan(cell(replace(COSINE, head="start", refresh=True), horizons={2: 1}))
    rows.append(fake(planned))
    there = rows.read()
    assert there[["head", "refresh"]].to_numpy().tolist() == [["start", True]]
    assert missing([planned], there) == []


def test_a_row_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    planned, rows = plan(cell(ADAM)), Rows(tmp_path)
    for p in planned:
        rows.append(fake(p))
    whole = rows.read()
    rows.shard.write_bytes(rows.shard.read_bytes()[:-9])
    assert rows.read().equals(whole[:-1])
    (tmp_path / "empty.csv").write_bytes(b"cell,ar")
    assert rows.read().equals(whole[:-1])
    assert missing(planned, rows.read()) == planned[-1:]


def test_a_run_that_another_cell_has_made_is_copied(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    for p in plan(replace(cell(ADAM, COSINE), cell="other")):
        rows.append(fake(p))
    there = rows.read()
    mine = cell(
        replace(ADAM, name="Adam", horizons=(2,), source="somewhere"), replace(COSINE, lr=1e-3), replace(COSINE, name="r", refresh=True)
    )
    copied = shared(mine, plan(mine), replace(cell(ADAM, COSINE), cell="other"), there)
    ours = there[(there.arm == ADAM.name) & (there.horizon == 2)]
    assert len(ours) == 3
    assert copied[["accuracy", "loss", "lr", "task_seed"]].equals(ours[["accuracy", "loss", "lr", "task_seed"]])
    assert set(copied[["cell", "arm"]].itertuples(index=False, name=None)) == {("test", "Adam")}
    assert {p.run.arm.name for p in missing(plan(mine), copied)} == {"cosine", "r"}
    for elsewhere in ({"purpose": "meta-train"}, {"task": replace(TASK, batch_size=4)}, {"workload": replace(SMALL, width=8)}):
        assert shared(mine, plan(mine), replace(cell(ADAM, COSINE), cell="other", **elsewhere), there).empty  # type: ignore[arg-type]
    other = replace(cell(ADAM, COSINE), cell="other")
    for change in ({"error": "full"}, {"made_with": "stale-stale"}, {"weights": "0123456789ab"}):
        assert shared(mine, plan(mine), other, there.assign(**change)).empty


def test_rows_survive_compaction(tmp_path: Path) -> None:
    rows, planned = Rows(tmp_path / "csv"), plan(cell(ADAM, COSINE))
    for p in planned:
        rows.append(fake(p))
    (tmp_path / "parquet").mkdir()
    count = rows.compact(tmp_path / "parquet" / "rows.parquet")
    found = Rows(tmp_path / "parquet").read()
    assert len(found) == count == len(rows.read())
    assert missing(planned, found) == []
    again = Rows(tmp_path / "parquet", tmp_path / "csv").read()  # of both, without repetitions
    assert len(again) == count


def test_of_a_run_that_failed_and_was_made_again_the_second_counts(tmp_path: Path) -> None:
    (planned,) = plan(cell(COSINE, horizons={4: 1}))
    good = fake(planned)
    rows = pd.DataFrame([*({**row, "error": "no memory", "accuracy": math.nan} for row in good), *good]).reindex(columns=list(CELL_FIELDS))
    rows.to_parquet(tmp_path / "rows.parquet")
    found = Rows(tmp_path).read()
    assert found.accuracy.tolist() == [row["accuracy"] for row in good]
    assert Rows(tmp_path).compact(tmp_path / "rows.parquet") == len(good)


def test_rows_of_another_schedule_of_the_same_name_are_other_rows(tmp_path: Path) -> None:
    assert identity_of("adam", "auto") == ""
    assert identity_of("l3rs", "icons-resnet34").startswith("icons-resnet34 ")
    assert identity_of("l3rs", "icons-resnet34") != identity_of("l3rs", "icons-generalist")
    with pytest.raises(CheckpointError, match="learned must name a schedule"):
        identity_of("l3rs", "auto")
    planned = plan(cell(Arm("L3RS", "l3rs", learned="icons-generalist"), horizons={2: 1}))
    rows = pd.DataFrame(fake(planned[0])).reindex(columns=list(CELL_FIELDS))
    assert missing(planned, rows) == []
    assert missing(planned, rows.assign(learned="icons-generalist 000000000000")) == planned


def test_rows_of_a_config_that_was_edited_are_refused(tmp_path: Path) -> None:
    config = cell(COSINE, workload=Workload())
    rows = pd.DataFrame([row for p in plan(config) for row in fake(p)]).reindex(columns=list(CELL_FIELDS))
    check_made_with(config, rows)
    check_made_with(replace(config, arms=(COSINE, ADAM), horizons={2: 1, 6: 1}), rows)  # more arms, and other lengths
    check_made_with(replace(config, workload=replace(config.workload, cache="elsewhere")), rows)
    for change in (
        {"task": replace(TASK, classes=6)},
        {"purpose": "meta-validation"},
        {"workload": Workload(weights="glyphs")},
        {"workload": Workload(split="glyphs")},
    ):
        with pytest.raises(ValueError, match=r"test has rows of another network, other images or tasks: cosine, [24] steps; give the cell"):
            check_made_with(replace(config, **change), rows)  # type: ignore[arg-type]
    for field, value in {"refresh": True, "head_only": True, "total_steps": 2.0, "recent": True}.items():
        with pytest.raises(ValueError, match="test has rows of cosine with other settings, of head_only, refresh"):
            check_made_with(replace(config, arms=(replace(COSINE, **{field: value}),)), rows)
    for unknown in ("", math.nan):
        with pytest.raises(ValueError, match="test has rows of another network"):
            check_made_with(config, rows.assign(made_with=unknown))
    check_made_with(replace(config, arms=()), rows)
    with pytest.raises(ValueError, match="test has rows of another network"):
        check_made_with(replace(config, arms=(), purpose="meta-validation"), rows)


def test_rows_of_a_schedule_that_is_not_there_are_no_others_for_it() -> None:
    config = cell(Arm("L3RS", "l3rs", learned="nowhere.safetensors"), Arm("untuned", "adam-cosine"), COSINE, rates="nowhere.yaml")
    rows = pd.DataFrame([row for p in plan(cell(COSINE)) for row in fake(p)]).reindex(columns=list(CELL_FIELDS))
    theirs = [rows.assign(arm=arm.name, learned=learned) for arm, learned in zip(config.arms[:2], ("nowhere 0123", ""), strict=True)]
    check_made_with(config, pd.concat([rows, *theirs]))
    with pytest.raises(ValueError, match="test has rows of cosine with other settings"):
        check_made_with(replace(config, arms=(*config.arms[:2], replace(COSINE, refresh=True))), pd.concat([rows, *theirs]))


@pytest.mark.parametrize("name", ["equal", "recipes", "stress-total-steps"])
def test_committed_rows_are_of_the_configs(name: str) -> None:
    config = read_cells(ROOT / "configs" / "evaluate" / f"{name}.yaml")[""]
    rows = Rows(Path("nowhere"), ROOT / "evaluate" / "results" / name).read()
    assert len(rows)
    assert (rows.made_with != "").all()
    check_made_with(config, rows)


def test_a_run_whose_last_row_was_cut_off_is_made_again(tmp_path: Path) -> None:
    config = cell(COSINE, horizons={4: 1}, curve=(1, 2))
    (planned,) = plan(config)
    Rows(tmp_path).append(fake(planned))
    (file,) = tmp_path.glob("*.csv")
    file.write_bytes(file.read_bytes()[:-15])
    assert missing([planned], Rows(tmp_path).read()) == [planned]
    Rows(tmp_path).append(fake(planned))
    assert missing([planned], Rows(tmp_path).read()) == []
    assert Rows(tmp_path).read().steps.tolist() == [1, 2, 4]


def test_a_cell_of_which_all_runs_would_fail_is_told_before() -> None:
    for change, said in ({"classes": 500}, "a task has 500"), ({"evaluation_size": 50_000}, "batches of 50000"):
        with pytest.raises(ValueError, match=said):
            cell(ADAM, task=replace(TASK, **change)).prepare("meta-test")
    cell(ADAM).prepare("meta-test")


def test_runs_of_one_length_are_of_the_same_weights(tmp_path: Path) -> None:
    weights = tmp_path / "pretrained.safetensors"
    weights.write_bytes(b"made elsewhere")  # what is in it is not read here
    theirs, ours = (hashlib.sha256(data).hexdigest()[:12] for data in (b"made elsewhere", b"made here"))
    config = cell(COSINE, horizons={2: 2, 4: 1}, workload=Workload(model="resnet18", width=4, weights=str(weights)))
    planned = plan(config)
    rows = pd.DataFrame(fake(next(p for p in planned if p.finals == (2,)))).reindex(columns=list(CELL_FIELDS))
    assert set(rows.weights) == {theirs}
    check_weights(config, planned, rows)

    weights.write_bytes(b"made here")
    check_weights(config, [p for p in planned if p.finals == (4,)], rows)  # a length of its own
    with pytest.raises(ValueError, match=f"test has rows of other weights at 2 steps: {theirs}, and .*pretrained.safetensors is {ours}"):
        check_weights(config, planned, rows)
    with pytest.raises(ValueError, match="at 2 steps: unknown"):  # rows from before the column
        check_weights(config, planned, rows.assign(weights=""))
    assert {row["weights"] for row in fake(plan(cell(COSINE))[0])} == {""}  # from scratch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arm("x", "adamm"), r"the optimizer of arm 'x' must be one of l3rs, adam, .*\(got 'adamm'\)"),
        (lambda: Arm("x", "adam", -1.0), r"lr of arm 'x' must be finite and at least 0 \(got -1\.0\)"),
        (lambda: Arm("x", "celo"), "arm 'x' needs learned, a file of weights: none is shipped for celo"),
        (lambda: Arm("x", "celo2-base"), "arm 'x' needs learned, a file of weights: icons-celo2-base is shipped"),
        (lambda: cell(ADAM, horizons={}), r"horizons must map numbers of steps .*\(got \{\}\)"),
        (lambda: cell(ADAM, horizons={10: 0}), r"horizons must map .*\(got \{10: 0\}\)"),
        (lambda: cell(ADAM, curve=(-1,)), r"curve must have numbers of steps of at least 1 \(got \[-1\]\)"),
        (lambda: cell(ADAM, cell="../up"), r"cell must be a name of letters, digits, dots and dashes, .*\(got '\.\./up'\)"),
        (lambda: cell(ADAM, purpose="test"), r"purpose must be one of pretrain, meta-train, meta-validation, meta-test \(got 'test'\)"),
        (lambda: cell(replace(ADAM, horizons=(7,))), "arm 'Adam 1e-3' has the horizon 7; the cell has 2, 4"),
        (lambda: cell(ADAM, ADAM), "there are two arms 'Adam 1e-3' of meta_seed 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_script_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import run

    def script(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments), "--out", str(tmp_path / "rows"), "--workers", "1"])
        run.main()
        return capsys.readouterr().out

    config = tmp_path / "cell.yaml"
    config.write_text(
        "cell: tiny\nworkload: {model: resnet18, width: 4, from_scratch: true}\nhorizons: {2: 2, 4: 1}\n"
        "task: {classes: 5, batch_size: 8, evaluation_size: 20}\narms:\n"
        "  - {name: Adam, optimizer: adam, lr: 1.0e-3}\n  - {name: L3RS, optimizer: l3rs, learned: icons-generalist}\n"
        "  - {name: Celo (og), optimizer: celo, learned: nowhere.state}\n"
    )
    first = script("--config", config, "--arms", "Adam", "L3RS", "--plan")
    assert "tiny: 5 runs are missing, 14 steps" in first
    assert first.count("icons-generalist was meta-trained to fine-tune pretrained networks: from random weights it is the wrong tool") == 1
    assert "tiny: 1 runs are missing, 2 steps" in script("--config", config, "--arms", "Adam", "--horizons", 2, "--tasks", 1, "--plan")
    assert "tiny: 2 runs are missing, 4 steps" in script("--config", config, "--arms", "Adam", "--horizons", 2)
    second = script("--config", config, "--horizons", 2, "--plan").splitlines()
    assert second[0].startswith("left out: Celo (og) (nowhere.state is not a file")
    assert second[1] == "tiny: 2 runs are missing, 4 steps"
    with pytest.raises(SystemExit):
        script("--config", config, "--horizons", 3)
    assert "horizons has 3; the cell has 2, 4" in capsys.readouterr().err
    rows = Rows(tmp_path / "rows" / "tiny").read()
    assert rows.arm.to_list() == ["Adam", "Adam"]
    assert rows.accuracy.between(0, 1).all()
    twin = tmp_path / "twin.yaml"
    twin.write_text(config.read_text().replace("cell: tiny", "cell: twin").replace("name: Adam,", "name: the same,"))
    (tmp_path / "compose.yaml").write_text("services: {web: {image: nginx}}\n")  # no cell, and none of ours
    assert "twin: 0 runs are missing" in script("--config", twin, "--arms", "the same", "--horizons", 2, "--plan")
    assert not (tmp_path / "rows" / "twin").exists()
    assert "twin: 2 rows are those of tiny\ntwin: 0 runs are missing" in script("--config", twin, "--arms", "the same", "--horizons", 2)
    assert Rows(tmp_path / "rows" / "twin").read().accuracy.tolist() == rows.accuracy.tolist()
    twin.unlink()
    with pytest.raises(SystemExit):
        script("--config", config, "--arms", "Celo (og)")  # asked for by name, it is missed
    assert "nowhere.state is not a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script("--config", config, "--arms", "Adamm")
    assert "--arms names 'Adamm'; there are Adam, L3RS, Celo (og)" in capsys.readouterr().err
    config.write_text(config.read_text().replace("lr: 1.0e-3}", "lr: 1.0e-3, horizons: [2]}"))
    with pytest.raises(SystemExit):
        script("--config", config, "--arms", "Adam", "--steps", 4, "--plan")
    assert "tiny has no runs of 4 steps of these arms: Adam\n" in capsys.readouterr().err
    config.write_text(config.read_text().replace("optimizer: adam,", "optimizer: adamm,"))
    with pytest.raises(SystemExit, match="2"):
        script("--config", config)
    assert re.search(r"must be one of l3rs, adam, adam-cosine, .*\(got 'adamm'\)", capsys.readouterr().err)
