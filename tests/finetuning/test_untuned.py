"""The baselines that need no tuning: what they do is what their authors publish."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from l3rs.finetuning.arms import Arm
from l3rs.finetuning.baselines import LIBRARIES, PUBLISHED, RECIPES, Recipe
from l3rs.finetuning.baselines.finder import FIRST, LAST, STEPS, find_rate, valley
from l3rs.finetuning.runs import Run, execute
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.networks.create import head_names, resnet

TINY = Workload(model="resnet18", width=4, from_scratch=True)
SMALL = TaskConfig(classes=5, batch_size=16, evaluation_size=50)
RUN = Run("test", Arm("AdamW", "adamw"), 16, 0, "meta-train", workload=TINY, task=SMALL)


def recipe(name: str, steps: int) -> tuple[Recipe, dict[nn.Parameter, str]]:
    """A recipe at its published rate on a small ResNet, and the names of its parameters."""
    network = resnet(18, 4, 1, 5)
    return RECIPES[name](network, PUBLISHED[name], steps), {p: n for n, p in network.named_parameters()}


def along(made: Recipe, names: dict[nn.Parameter, str], steps: int, field: str = "lr") -> list[dict[str, Any]]:
    """A field of the group of each parameter, by its name, at every step."""
    found = []
    for _ in range(steps):
        found.append({names[p]: group[field] for group in made.optimizer.param_groups for p in group["params"]})
        made.optimizer.step()
        assert made.scheduler is not None
        made.scheduler.step()
    return found


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_each_runs_as_published_and_a_seed_decides_all(name: str) -> None:
    if name in LIBRARIES and LIBRARIES[name].missing:
        pytest.skip(LIBRARIES[name].message)
    run = replace(RUN, arm=Arm(name, name), steps=8)
    assert not run.arm.tuned
    assert run.lr == PUBLISHED[name]
    report, again = execute(run), execute(run)
    assert (report.train_losses, report.loss) == (again.train_losses, again.loss)
    assert math.isfinite(report.loss[8])
    alone = execute(replace(run, arm=replace(run.arm, head_only=True), steps=3))
    assert math.isfinite(alone.loss[3])


def test_a_finder_finds_the_same_where_a_network_draws_at_random() -> None:
    workload = Workload(model="test_vit", model_args={"img_size": 32, "drop_path_rate": 0.5}, width=None, from_scratch=True)
    run = replace(RUN, arm=Arm("lr-finder", "lr-finder"), steps=4, workload=workload)
    report, again = execute(run), execute(run)
    assert (report.train_losses, report.loss) == (again.train_losses, again.loss)


def test_fine_tune_trains_the_head_first_and_then_all_layers_in_one_cycle() -> None:
    made, names = recipe("fastai", 40)
    rates = along(made, names, 40)
    head, first, middle, norm = "fc.weight", "conv1.weight", "layer3.0.conv1.weight", "layer1.0.bn1.weight"
    assert {rates[i][name] for i in range(20) for name in (first, middle)} == {0.0}
    assert rates[0][head] == pytest.approx(2e-3 / 25)
    assert rates[19][head] == pytest.approx(2e-3, rel=0.02)  # nearly at the end of its rise
    assert rates[19][norm] == pytest.approx(rates[19][head] / 10)
    assert rates[20][head] == pytest.approx(1e-3 / 5)
    assert [rates[26][name] for name in (head, middle, first)] == pytest.approx([1e-3, 1e-4, 1e-5])  # 0.3 of 20 steps
    assert rates[39][head] < 0.02e-3
    made, names = recipe("fastai", 30)
    decays = along(made, names, 1, "weight_decay")[0]
    norms = ("bn1", "bn2", "downsample.1")
    assert {n for n, decay in decays.items() if decay == 0} == {n for n in decays if "bias" in n or any(norm in n for norm in norms)}


def test_the_momentum_of_one_cycle_falls_and_rises_and_unfreezing_forgets() -> None:
    made, names = recipe("lr-finder", 8)
    betas = [b[0] for b in (step["fc.weight"] for step in along(made, names, 8, "betas"))]
    assert betas[0] == 0.95
    assert min(betas) == betas[2] == 0.85  # at a quarter
    assert betas[7] > 0.94
    made, names = recipe("fastai", 30)
    for p in names:
        p.grad = torch.ones_like(p)
    for step in range(30):
        if step in (0, 15):
            assert not made.optimizer.state
        made.optimizer.step()
        assert made.scheduler is not None
        made.scheduler.step()


def test_autogluon_warms_up_decays_by_layers_and_clips() -> None:
    made, names = recipe("autogluon", 20)
    rates = []
    of = {names[p]: g for g in made.optimizer.param_groups for p in g["params"]}
    assert of["fc.weight"]["initial_lr"] == 1e-4
    assert of["layer4.1.conv2.weight"]["initial_lr"] == pytest.approx(0.9e-4)
    assert of["fc.weight"]["weight_decay"] == 0.001
    assert of["bn1.weight"]["weight_decay"] == of["fc.bias"]["weight_decay"] == 0.0
    for p in names:
        p.grad = torch.full_like(p, 10.0)

    def closure() -> torch.Tensor:
        return torch.tensor(1.0)

    for _ in range(20):
        rates.append(of["fc.weight"]["lr"])
        made.optimizer.step(closure)
        assert made.scheduler is not None
        made.scheduler.step()
    assert rates[:3] == [0.0, 0.5e-4, 1e-4]
    assert rates[11] == pytest.approx(0.5e-4)
    assert sum(float(p.grad.square().sum()) for p in names if p.grad is not None) == pytest.approx(1, rel=1e-3)


def test_l_dog_is_evaluated_at_the_average_that_its_package_keeps() -> None:
    if LIBRARIES["l-dog"].missing:
        pytest.skip(LIBRARIES["l-dog"].message)
    dog = LIBRARIES["l-dog"].load()
    bench = workbench(TINY, SMALL, "cpu")
    task = bench.tasks("meta-train").draw(0, 4)
    network = bench.network_for(task.head_seed)
    made = RECIPES["l-dog"](network, 1.0, 4)
    twin_average = dog.PolynomialDecayAverager(network)
    assert made.optimizer.param_groups[0]["reps_rel"] == 1e-4
    for step in range(4):
        inputs, labels = task.batch(bench.tasks("meta-train").images, step)

        def closure(inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> torch.Tensor:
            made.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs), labels)
            loss.backward()
            return loss

        made.optimizer.step(closure)
        twin_average.step()
    trained = [p.detach().clone() for p in network.parameters()]
    made.optimizer.eval()  # type: ignore[attr-defined]
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), twin_average.averaged_model.parameters(), strict=True))
    assert not torch.equal(next(network.parameters()), trained[0])
    made.optimizer.train()  # type: ignore[attr-defined]
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), trained, strict=True))


def test_the_valley_is_the_longest_fall_and_its_middle_is_chosen() -> None:
    """By hand: of nine losses the longest fall is of six, from 1 to 6, and the rule goes two and one places into it."""
    assert valley([3.0, 5.0, 4.0, 3.5, 2.0, 1.5, 1.0, 6.0, 9.0]) == 3
    assert valley([1.0, 2.0, 3.0]) == 0


def test_the_finder_picks_a_rate_at_which_the_loss_falls_and_leaves_the_network_alone() -> None:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] > 0).long()
    found = []
    for size in (1.0, 10.0):
        network = nn.Linear(8, 2)
        before = {name: torch.ones_like(t) for name, t in network.state_dict().items()}
        network.load_state_dict(before)
        taken = iter([(size * inputs, labels)] * STEPS)  # it asks for no more
        found.append(find_rate(network, lambda lr, of=network: torch.optim.SGD(of.parameters(), lr), taken))  # type: ignore[misc]
        assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
        assert not network.weight.grad
    assert FIRST < found[1] < found[0] < LAST  # steeper, so smaller
    with pytest.raises(ValueError, match="the learning-rate finder saw 1 losses, too few to choose from"):
        find_rate(network, lambda lr: torch.optim.SGD(network.parameters(), lr), iter([(inputs * math.nan, labels)] * STEPS))


def test_arms_know_what_they_cost() -> None:
    assert Arm("x", "fastai").cost(10) == Arm("x", "adamw").cost(10) == Arm("x", "adam", 1e-3).cost(10) == 1
    assert Arm("x", "adam").cost(10, tried=5) == 5
    assert Arm("x", "lr-finder").cost(50) == 3
    assert Arm("x", "l3rs", learned="icons-generalist").cost(10) == 1
    assert Arm("x", "none").cost(10) == 0


def test_the_body_of_a_frozen_network_stays() -> None:
    bench = workbench(TINY, SMALL, "cpu")
    for name in ("fastai", "autogluon", "lr-finder"):
        network = bench.network_for(bench.tasks("meta-train").draw(0, 3).head_seed)
        before = {n: p.detach().clone() for n, p in network.named_parameters()}
        execute(replace(RUN, arm=Arm(name, name, head_only=True), steps=3))
        assert {n for n, p in network.named_parameters() if not torch.equal(p, before[n])} == set(head_names(network))


def test_no_training_leaves_the_head_that_the_run_begins_with() -> None:
    run = replace(RUN, arm=Arm("alone", "none"), evaluate_at=(0,), steps=3)
    report = execute(run)
    assert report.loss[0] == report.loss[3]
    start = execute(replace(run, arm=replace(run.arm, head="start", refresh=True)))
    assert start.loss[3] == start.loss[0] != report.loss[0]  # a head in closed form, both times with the statistics of the run
