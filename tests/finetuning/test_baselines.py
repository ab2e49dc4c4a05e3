"""The baselines and their tuned learning rates."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from timm.optim import Muon as MuonOfTimm
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import l3rs.finetuning.unroll
from l3rs.evaluation.tuning import START, TRIED
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.baselines import BASELINES, RECIPES, tuned_learning_rate, tuned_learning_rates
from l3rs.finetuning.compare import OPTIMIZERS, FinetuneConfig, planned_runs
from l3rs.finetuning.runs import Run, execute
from l3rs.finetuning.tasks import HEADS, TaskConfig
from l3rs.finetuning.unroll import PRECISIONS, Report, evaluate, unroll
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.learned.weights import KINDS
from l3rs.learners import LEARNERS
from l3rs.networks.create import head_names, resnet, resnet34
from l3rs.plots import STYLES, colours

ROOT = Path(__file__).parent.parent.parent
ROWS = ROOT / "evaluate" / "results"
OF_CELLS = ROWS / "rates"
RATES = dict.fromkeys(BASELINES, 0.01) | {
    "adam-cosine-head10": 0.003,
    "adamw-cosine-head10": 0.003,
    "adamw-layer-decay": 0.03,
    "sgd-cosine": 0.1,
}
TINY = Workload(model="resnet18", width=4, from_scratch=True)
SMALL = TaskConfig(classes=5, batch_size=16, evaluation_size=50)
RUN = Run("test", Arm("Adam", "adam", 0.01), 16, 0, "meta-train", workload=TINY, task=SMALL)


def test_every_optimizer_has_a_colour_and_a_marker_of_its_own() -> None:
    assert STYLES.keys() == {*OPTIMIZERS, *RECIPES, *LEARNERS}
    assert len(set(STYLES.values())) == len(STYLES)
    assert len({STYLES[name][:2] for name in OPTIMIZERS}) == len(OPTIMIZERS)


def test_arms_of_one_optimizer_have_colours_of_their_own() -> None:
    found = colours(["l3rs", "adam", "adam-cosine", "adam", "adamw", "adam"])
    assert found[:3] == [STYLES[name][0] for name in ("l3rs", "adam", "adam-cosine")]
    assert len(set(found)) == 6
    assert len(colours(["l3rs", *["adam"] * 20])) == 21


def test_the_nearest_horizon_in_log_steps_is_taken() -> None:
    chosen = tuned_learning_rates()["adam-cosine"]
    assert tuned_learning_rate("adam-cosine", 25) == chosen[25]
    assert tuned_learning_rate("adam-cosine", 1) == chosen[10]
    assert tuned_learning_rate("adam-cosine", 1000) == chosen[100]
    with pytest.raises(ValueError, match="'adamw'; there are adam, adam-cosine"):
        tuned_learning_rate("adamw", 10)
    with pytest.raises(ValueError, match="'adamw' in runs with a head start; there are schedule-free"):
        tuned_learning_rate("adamw", 10, head="start")


CHOSEN = [
    pytest.param(None, head, ROWS / TRIED[head], name, id=f"{head}-{name}") for head in HEADS for name in tuned_learning_rates(head=head)
] + [
    pytest.param(str(file), "random", file.with_suffix(".csv"), name, id=f"{file.stem}-{name}")
    for file in sorted(OF_CELLS.glob("*.yaml"))
    for name in tuned_learning_rates(str(file))
]


@pytest.mark.parametrize(("file", "head", "rows", "name"), CHOSEN)
def test_chosen_values_are_the_best_of_the_rows_and_not_at_an_edge(file: str | None, head: str, rows: Path, name: str) -> None:
    assert name in (*BASELINES, *KINDS)
    every = pd.read_csv(rows)
    for steps, lr in tuned_learning_rates(file, head)[name].items():
        tried = every[(every.optimizer == name) & (every.steps == steps)]
        means = tried.assign(accuracy=tried.accuracy.fillna(0)).groupby("lr").accuracy.mean()
        assert means[lr] == pytest.approx(means.max(), abs=1e-9)  # ties differ in how their sums are rounded
        assert means.index.min() < lr < means.index.max()


def test_every_baseline_can_be_tuned_and_the_quick_comparison_has_tuned_ones() -> None:
    assert set(BASELINES) <= set(START)
    usual = ("l3rs", "adam", "adam-cosine", "adam-cosine-head10", "sgd-cosine", "adamw-layer-decay", "schedule-free")
    assert FinetuneConfig().optimizers == usual
    assert set(FinetuneConfig().optimizers) <= {"l3rs", *tuned_learning_rates(head="start")} < {"l3rs", *tuned_learning_rates()}


def test_runs_take_the_rates_that_were_tuned_for_their_head() -> None:
    found = {}
    for head in HEADS:
        runs = planned_runs(FinetuneConfig(tasks=1, steps=(10,), optimizers=("adam-cosine",), head=head))
        found[head] = {run.lr for run in runs}
        assert found[head] == {tuned_learning_rates(head=head)["adam-cosine"][10]}
    assert found["start"] != found["random"]


def test_learning_rates_of_the_head_alone_are_tuned_with_the_rest_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluate"))
    import tune

    monkeypatch.chdir(tmp_path)
    head_only = []

    def best(self: tune.Tuning, arm: Arm, steps: int, guess: int) -> int:
        head_only.append(arm.head_only)
        return guess

    monkeypatch.setattr(tune.Tuning, "best", best)
    for text, expected in (("head_only: true", [True, True]), ("lr: 0.1, head_only: true", [False])):
        arms = f"[{{name: a, optimizer: adam, {text}}}, {{name: b, optimizer: sgd-cosine, head_only: {str(expected[0]).lower()}}}]"
        (tmp_path / "cell.yaml").write_text(f"cell: c\nworkload: {{split: icons}}\nhorizons: {{10: 1}}\nrates: rates.yaml\narms: {arms}\n")
        monkeypatch.setattr("sys.argv", ["tune.py", "--config", "cell.yaml", "--workers", "1"])
        tune.main()
        assert head_only == expected
        head_only.clear()
    (tmp_path / "cell.yaml").write_text((tmp_path / "cell.yaml").read_text().replace("lr: 0.1, ", ""))
    with pytest.raises(SystemExit):
        tune.main()
    assert "some tuned arms of the cell c train the head only, and others do not" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(BASELINES))
def test_schedules_start_and_end_where_they_should(name: str) -> None:
    network = resnet34(width=4, in_chans=1, num_classes=5)
    of = {p: n for n, p in network.named_parameters()}
    optimizer, scheduler = BASELINES[name](network, 0.1, 10)
    rates = {of[p]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) == 110
    if name == "adamw-layer-decay":
        assert rates["conv1.weight"] == pytest.approx(0.1 * 0.75**17)
        assert rates["layer4.2.conv2.weight"] == pytest.approx(0.075)
    else:
        assert rates["conv1.weight"] == rates["layer4.2.conv2.weight"] == 0.1
    assert rates["fc.weight"] == rates["fc.bias"] == (1.0 if name.endswith("head10") else 0.1)
    for _ in range(10):
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    end = 0.1 if name in ("adam", "schedule-free") else pytest.approx(0, abs=1e-9)
    assert all(g["lr"] == end for g in optimizer.param_groups)


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_learns_and_a_seed_decides_all(name: str) -> None:
    run = replace(RUN, arm=Arm(name, name, RATES[name]))
    report = execute(run)
    assert sum(report.train_losses[-3:]) < 0.8 * sum(report.train_losses[:3])
    short, again = execute(replace(run, steps=4)), execute(replace(run, steps=4))
    assert (short.train_losses, short.loss) == (again.train_losses, again.loss)


@pytest.mark.parametrize("name", list(BASELINES))
def test_where_only_the_head_is_trained_the_body_stays(name: str) -> None:
    bench = workbench(TINY, SMALL, "cpu")
    network = bench.network_for(bench.tasks("meta-train").draw(0, 3).head_seed)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    execute(replace(RUN, arm=Arm(name, name, RATES[name], head_only=True), steps=3))
    assert {n for n, p in network.named_parameters() if not torch.equal(p, before[n])} == set(head_names(network))


def schedule_free(evaluate_at: tuple[int, ...], precision: str = "float32") -> tuple[Report, nn.Module, torch.optim.Optimizer]:
    """A run of four steps: the report, and the network and the optimizer as they are left."""
    bench = workbench(TINY, SMALL, "cpu")
    tasks = bench.tasks("meta-train")
    task = tasks.draw(0, 4)
    network = bench.network_for(task.head_seed)
    optimizer = BASELINES["schedule-free"](network, 0.01, 4).optimizer
    return unroll(network, optimizer, tasks.images, task, evaluate_at=evaluate_at, precision=precision), network, optimizer


@pytest.mark.parametrize("precision", PRECISIONS)
def test_evaluating_a_schedule_free_run_on_its_way_changes_nothing(precision: str) -> None:
    report, network, _ = schedule_free((), precision)
    end = {name: t.clone() for name, t in network.state_dict().items()}
    other, network, _ = schedule_free((0, 1, 2, 3), precision)
    assert (report.train_losses, report.loss[4]) == (other.train_losses, other.loss[4])
    assert all(torch.equal(t, end[name]) for name, t in network.state_dict().items())
    assert network.training


@pytest.mark.parametrize(("name", "recent"), [("adam", True), ("adam", False), ("schedule-free", False)])
def test_a_run_that_fails_leaves_its_network_as_the_next_one_needs_it(name: str, recent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = workbench(TINY, SMALL, "cpu")
    tasks = bench.tasks("meta-train")
    task = tasks.draw(0, 4)
    network = bench.network_for(task.head_seed)
    optimizer = BASELINES[name](network, 0.01, 4).optimizer
    left: list[dict[str, torch.Tensor]] = []

    def evaluated(network: nn.Module, *_: object) -> tuple[float, float]:
        left.append({n: t.clone() for n, t in network.state_dict().items()})
        raise RuntimeError("no memory")

    monkeypatch.setattr(l3rs.finetuning.unroll, "evaluate", evaluated)
    with pytest.raises(RuntimeError, match="no memory"):
        unroll(network, optimizer, tasks.images, task, evaluate_at=(2,), recent=recent, refresh=not recent)
    assert not network._forward_hooks
    assert not network._forward_pre_hooks
    lent = {n for n, t in network.state_dict().items() if not torch.equal(t, left[0][n])}
    assert lent  # what the evaluation had is taken back
    assert all(group.get("train_mode", True) for group in optimizer.param_groups)


def test_an_evaluation_before_the_first_step_changes_none_after_it() -> None:
    ours = replace(RUN, arm=Arm("L3RS", "l3rs", recent=True, head="start"), steps=10)
    first, alone = (execute(replace(ours, evaluate_at=at)) for at in ((0, 4), (4,)))
    assert 0 in first.loss
    assert (first.loss[4], first.loss[10]) == (alone.loss[4], alone.loss[10])


def test_a_frozen_run_that_fails_to_begin_leaves_no_layer_frozen(tmp_path: Path) -> None:
    plain = replace(RUN, steps=3)
    expected = execute(plain).loss
    with pytest.raises(ValueError, match="gone"):
        execute(replace(plain, arm=Arm("L3RS", "l3rs", learned=str(tmp_path / "gone.safetensors"), head_only=True)))
    assert execute(plain).loss == expected


def test_schedule_free_is_evaluated_at_the_average_with_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l3rs.finetuning.unroll, "REFRESH", 2)
    report, network, optimizer = schedule_free((0,))
    tasks = workbench(TINY, SMALL, "cpu").tasks("meta-train")
    task = tasks.draw(0, 4)
    held_out = task.held_out(tasks.images)
    assert evaluate(network, *held_out)[1] != pytest.approx(report.loss[4], rel=0.01)

    with torch.no_grad():  # y = (1 - beta) z + beta x
        for p in network.parameters():
            p.copy_((p - 0.1 * optimizer.state[p]["z"]) / 0.9)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for momentum, step in ((1.0, 2), (0.5, 3)):  # the mean of the statistics of the last two batches
        for norm in norms:
            norm.momentum = momentum
        with torch.no_grad():
            network(task.batch(tasks.images, step)[0])
    for norm in norms:
        norm.momentum = 0.1
    assert evaluate(network, *held_out)[1] == pytest.approx(report.loss[4], rel=1e-4)

    start = workbench(TINY, SMALL, "cpu").network_for(task.head_seed)
    assert evaluate(start, *held_out)[1] == report.loss[0]


def test_muon_steps_kernels_as_that_of_timm_does_and_the_rest_as_adamw() -> None:
    network = resnet(18, 4, 3, 5).to(memory_format=torch.channels_last)
    params = {name: p for name, p in network.named_parameters() if name != "fc.bias"}  # which gets no gradient
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    kernels = [name for name, p in params.items() if p.dim() == 4]
    bias = network.fc.bias.detach().clone()
    mine, scheduler = BASELINES["muon-cosine"](network, 0.01, 4)
    theirs = MuonOfTimm(
        [twins[n] for n in kernels],
        lr=0.01,
        weight_decay=0.01,
        nesterov=True,
        ns_coefficients=torch.optim.Muon([twins["fc.weight"]]).defaults["ns_coefficients"],
    )
    adamw = torch.optim.AdamW([twins[n] for n in twins if n not in kernels], lr=0.01)
    others = [CosineAnnealingLR(o, 4) for o in (theirs, adamw)]
    assert scheduler is not None
    for _ in range(3):
        for name, p in params.items():
            p.grad = torch.randn(p.shape)
            twins[name].grad = p.grad.clone()
        for o in (mine, theirs, adamw, scheduler, *others):
            o.step()
    for name, p in params.items():
        torch.testing.assert_close(p, twins[name], rtol=0, atol=2e-6)
    assert torch.equal(network.fc.bias, bias)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ModuleNotFoundError, match="this baseline needs schedulefree: pip install schedulefree"):
        BASELINES["schedule-free"](resnet(18, 4, 1, 5), 0.01, 4)


@pytest.mark.parametrize(
    ("text", "said"), [("", "must have a rate by baseline"), ("adam: 1", "must have a rate by baseline"), ("{", "is no YAML file")]
)
def test_files_of_rates_of_another_form_are_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"rates\.yaml {said}"):
        tuned_learning_rates(str(tmp_path / "rates.yaml"))
