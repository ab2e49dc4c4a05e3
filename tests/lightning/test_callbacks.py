"""L3RS's own callbacks, and Lightning's beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import batch, equal, random_schedule, small_network, weights
from fits import QUIET, fit, loader, module, trainer
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR
from torch.utils.data import DataLoader, IterableDataset

from l3rs import L3RS
from l3rs.lightning import BatchNormMode, HeadThenAll, L3RSMixin, L3RSModule, L3RSMonitor
from l3rs.networks.create import resnet34
from l3rs.networks.layer_groups import layer_groups
from l3rs.networks.pretrained import pretrained

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]


# -- Lightning's own -------------------------------------------------------------------------------------------------------------------


def test_learning_rate_monitor_shows_the_multiplier(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, module(lr_multiplier=0.5), 4, max_epochs=1, logger=logger, callbacks=[LearningRateMonitor()], log_every_n_steps=1)
    logged = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    assert set(logged.filter(like="lr-").stack().dropna()) == {0.5}


def test_learning_rate_finder_finds_a_multiplier_and_gives_the_run_back_its_clock(tmp_path: Path) -> None:
    finder = LearningRateFinder(min_lr=0.1, max_lr=10, num_training_steps=20, attr_name="lr_multiplier", early_stop_threshold=None)
    fitted, seen = module(), []
    start = weights(fitted.network)

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            group = trainer.optimizers[0].param_groups[0]
            seen.append((group["step"], group["total_steps"], group["lr"], equal(start, weights(fitted.network))))

    done = fit(tmp_path, fitted, 30, max_epochs=1, callbacks=[finder, Watch()], enable_checkpointing=True)
    assert finder.optimal_lr is not None
    found = finder.optimal_lr.suggestion()
    assert found is not None
    assert 0.1 < found < 10
    assert seen == [(0, 30, found, True)]
    assert fitted.lr_multiplier == found
    assert done.optimizers[0].param_groups[0]["step"] == 30


def test_weight_averaging_averages_beside_it_and_leaves_the_steps_alone(tmp_path: Path) -> None:
    averaged = module()
    fit(tmp_path, averaged, 4, max_epochs=1, callbacks=[WeightAveraging()])
    path = [small_network(), *(loop_until(k) for k in range(1, 5))]
    mean = [torch.stack(steps).mean(0) for steps in zip(*(weights(network) for network in path[1:]), strict=True)]
    for mine, theirs in zip(weights(averaged.network), mean, strict=True):
        torch.testing.assert_close(mine, theirs)


def loop_until(k: int) -> nn.Module:
    """The network after k of 4 steps."""
    network = small_network()
    optimizer = L3RS(network.named_parameters(), 4, random_schedule(network, scale=0.1))
    for i in range(k):
        inputs, labels = batch(i)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
    return network


def test_early_stopping_stops(tmp_path: Path) -> None:
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    done = fit(tmp_path, module(), 3, max_epochs=10, callbacks=[stop])
    assert done.current_epoch == 2
    assert done.optimizers[0].param_groups[0] | {"params": 0} == done.optimizers[0].param_groups[0] | {
        "params": 0,
        "step": 6,
        "total_steps": 30,
    }


def test_model_checkpoint_keeps_the_best(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, monitor="val_loss")
    done = fit(tmp_path, module(), 3, max_epochs=3, callbacks=[kept], enable_checkpointing=True)
    best = L3RSModule.load_from_checkpoint(kept.best_model_path, weights_only=True, model=small_network())
    (measured,) = done.validate(best, loader(1), verbose=False)
    assert measured["val_loss"] == pytest.approx(float(kept.best_model_score))  # type: ignore[arg-type]


# -- L3RSMonitor -----------------------------------------------------------------------------------------------------------------------


class Kept(CSVLogger):
    """Another logger, which keeps what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, version="other")
        self.seen: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.seen.setdefault(-1 if step is None else step, {}).update(metrics)


def test_the_monitor_logs_the_groups_to_every_logger_and_draws_them(tmp_path: Path) -> None:
    logger, other, monitor = CSVLogger(tmp_path), Kept(tmp_path), L3RSMonitor()
    done = fit(tmp_path, module(), 6, max_epochs=1, logger=[logger, other], callbacks=[monitor], log_every_n_steps=2)
    assert [step for step, seen in other.seen.items() if "lambda/4/dense" in seen] == [1, 3, 5]
    assert pd.read_csv(Path(logger.log_dir) / "metrics.csv")["mu_adam/1/scale"].count() == 3
    optimizer = done.optimizers[0]
    assert isinstance(optimizer, L3RS)
    last = optimizer.decisions()
    assert other.seen[5]["lambda/4/dense"] == pytest.approx(last["lambda"]["network.4.weight"])
    assert other.seen[5]["mu_sgd/1/shift"] == pytest.approx(last["mu_sgd"]["network.1.bias"])
    assert set(other.seen[5]) >= {"lambda/0/convolution", "lambda/1/scale", "lambda/1/shift", "lambda/4/dense", "lambda/head/head"}
    pair = last["lambda"][["network.6.weight", "network.6.bias"]]
    assert other.seen[5]["lambda/head/head"] == pytest.approx(pair.prod() ** 0.5)
    assert list(monitor.decisions.step.unique()) == [1, 2, 3, 4, 5, 6]
    picture = Path(logger.log_dir) / "l3rs.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_monitor_draws_without_a_logger_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    monitor, again = L3RSMonitor(), L3RSMonitor()
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path, module(), 6, max_epochs=1, callbacks=[monitor, kept], enable_checkpointing=True, accumulate_grad_batches=2)
    assert (tmp_path / "l3rs.png").exists()
    fit(tmp_path, module(), 6, tmp_path / "step=2.ckpt", max_epochs=1, callbacks=[again], accumulate_grad_batches=2)
    pd.testing.assert_frame_equal(monitor.decisions, again.decisions)
    assert list(monitor.decisions.step.unique()) == [1, 2, 3]


class Two(L3RSModule):
    """An optimizer for the last layer, and one for the others."""

    automatic_optimization = False

    def configure_optimizers(self) -> list[L3RS]:  # type: ignore[override]
        named = list(self.named_parameters())
        return [self.l3rs_optimizer([(name, p) for name, p in named if (".6." in name) is last], total_steps=2) for last in (True, False)]

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:  # type: ignore[override]
        self.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step(loss=1.0)


def test_the_monitor_shows_all_layers_of_several(tmp_path: Path) -> None:
    network, monitor = small_network(), L3RSMonitor()
    fit(tmp_path, Two(network, 3, learned="generalist"), 2, max_epochs=1, callbacks=[monitor])
    assert monitor.decisions.groupby("step").depth.unique().map(list).to_list() == [["head", "0", "1", "4"]] * 2


def test_the_monitor_says_that_it_watches_l3rs_only(tmp_path: Path) -> None:
    adam = module(optimizer=lambda network, steps: torch.optim.Adam(network.parameters()))
    with pytest.raises(ValueError, match="the optimizer is Adam"):
        fit(tmp_path, adam, 2, max_epochs=1, callbacks=[L3RSMonitor()])


def test_groups_go_by_stage_and_kind() -> None:
    groups = layer_groups(L3RSModule(resnet34(width=4, num_classes=3), 3))
    assert len(groups) == 110
    assert groups.value_counts().to_dict() == {
        ("stem", "convolution"): 1,
        ("stem", "scale"): 1,
        ("stem", "shift"): 1,
        **{(f"layer{i}", kind): n for i, n in ((1, 6), (2, 9), (3, 13), (4, 7)) for kind in ("convolution", "scale", "shift")},
        ("head", "head"): 2,
    }
    groups = layer_groups(L3RSModule("test_vit", 3, pretrained=False))
    assert set(groups.depth) == {"stem", *(f"blocks.{i}" for i in range(6)), "end", "head"}
    assert groups.loc["network.pos_embed", "kind"] == "other"
    assert groups.loc["network.blocks.1.attn.qkv.weight", "kind"] == "dense"
    assert groups.loc["network.norm.weight"].to_list() == ["end", "scale"]


# -- HeadThenAll -----------------------------------------------------------------------------------------------------------------------


class Headed(nn.Sequential):
    """The small network, which says which its head is."""

    def get_classifier(self) -> nn.Module:
        return self[6]


def headed(**options: Any) -> L3RSModule:
    network = Headed(*small_network())
    return L3RSModule(network, 3, **{"learned": random_schedule(network, scale=0.1), **options})


def by_hand(steps: int, alone: int, epoch: int) -> nn.Module:
    """The head alone for some steps, then all, in a plain loop over epochs of the first batches."""
    network = Headed(*small_network()).eval()
    network[6].train()
    head = list(network[6].named_parameters(prefix="6"))
    optimizer = L3RS(head, steps, random_schedule(network, scale=0.1))
    for k in range(steps):
        if k == alone:
            network.train()
            optimizer.add_param_group({"params": [(n, p) for n, p in network.named_parameters() if not n.startswith("6.")]})
        inputs, labels = batch(k % epoch)
        network.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(loss=loss)
    return network


@pytest.mark.parametrize("when", [{"unfreeze_at_step": 4}, {"unfreeze_at_epoch": 1}])
def test_the_head_is_trained_first_and_then_everything_as_by_hand(tmp_path: Path, when: dict[str, int]) -> None:
    fitted = headed()
    done = fit(tmp_path, fitted, 4, max_epochs=2, callbacks=[HeadThenAll(**when)])
    groups = done.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [2, 5]
    assert [group["step"] for group in groups] == [8, 8]
    assert [group["lr"] for group in groups] == [1.0, 1.0]
    assert equal(weights(fitted.network), weights(by_hand(8, 4, epoch=4)))
    assert fitted.network[1].training


def test_below_the_head_nothing_moves_until_then_not_even_statistics(tmp_path: Path) -> None:
    fitted = headed()
    with pytest.warns(UserWarning, match="unfreeze_at_epoch is 1, and the run ends at 1: HeadThenAll trains the head alone"):
        fit(tmp_path, fitted, 4, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_epoch=1)])
    before, after = small_network().state_dict(), fitted.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"6.weight", "6.bias"}


def test_a_step_that_the_run_does_not_reach_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="unfreeze_at_step is 8, and the run ends at 8: HeadThenAll trains the head alone"):
        fit(tmp_path, headed(), 4, max_epochs=2, callbacks=[HeadThenAll(unfreeze_at_step=8)])
    fit(tmp_path, headed(), 4, max_epochs=2, callbacks=[HeadThenAll(unfreeze_at_step=7)])  # warnings are errors here


def test_of_data_without_a_length_nobody_knows_the_last_step(tmp_path: Path) -> None:
    class Stream(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return map(batch, range(4))

    class WithAdam(L3RSModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(p for p in self.parameters() if p.requires_grad)

    done = trainer(tmp_path, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=2)])
    done.fit(WithAdam(Headed(*small_network()), 3), DataLoader(Stream(), batch_size=None), loader(1))  # warnings are errors here
    assert len(done.optimizers[0].param_groups) == 2


@pytest.mark.parametrize("at", [2, 4, 6])
@pytest.mark.parametrize("learned", ["specialist", "adam"])
def test_head_then_all_resumes_before_at_and_after_the_switch(tmp_path: Path, at: int, learned: str) -> None:
    def make() -> L3RSModule:
        adam = {"optimizer": lambda network, _: torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)}
        return headed(**(adam if learned == "adam" else {}))

    whole, again = make(), make()
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path, whole, 8, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=4), kept], enable_checkpointing=True)
    ckpt = tmp_path / f"step={at}.ckpt"
    done = fit(tmp_path, again, 8, ckpt, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=4)])
    assert len(done.optimizers[0].param_groups) == 2
    assert equal(weights(whole.network), weights(again.network))


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: (1 + k) / 8),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 12),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, step_size_up=3, cycle_momentum="momentum" in o.defaults),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, 9, cycle_momentum="momentum" in o.defaults),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e9, factor=0.9, min_lr=[0.6]),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.StepLR(o, 3)]),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o, 0.5, 9), lr_scheduler.LinearLR(o, 0.1, 1, 9)], [5]),
    "SWALR": lambda o: SWALR(o, 0.1, anneal_epochs=6),
}


class Scheduled(L3RSModule):
    """Beside a scheduler; keeps the options of all groups at each step."""

    def __init__(self, scheduler: str, sgd: bool, **options: Any) -> None:
        network = Headed(*small_network())
        super().__init__(network, 3, learned=random_schedule(network, scale=0.1), **options)
        self.scheduler, self.sgd = scheduler, sgd
        self.seen: list[list[dict[str, Any]]] = []

    def configure_optimizers(self) -> Any:
        head_or_all = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(head_or_all, lr=1.0, momentum=0.9) if self.sgd else self.l3rs_optimizer()
        scheduler = SCHEDULERS[self.scheduler](optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "monitor": "train_loss"}}

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        # `differentiable` is set by torch when a state is loaded; the first loss is another where a part of the network is frozen.
        beside = ("params", "param_names", "differentiable", "first_loss", "late")
        self.seen.append([{k: v for k, v in g.items() if k not in beside} for g in optimizer.param_groups])


def test_there_is_a_case_for_each_scheduler_of_torch() -> None:
    of_torch = {k for k, v in vars(lr_scheduler).items() if isinstance(v, type) and issubclass(v, lr_scheduler.LRScheduler)}
    assert {name for name in of_torch if not name.endswith("LRScheduler")} | {"SWALR"} == set(SCHEDULERS)


@pytest.mark.parametrize("sgd", [False, True], ids=["l3rs", "sgd"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_thawed_goes_on_as_the_head_does_under_each_scheduler(scheduler: str, sgd: bool, tmp_path: Path) -> None:
    alone, whole = Scheduled(scheduler, sgd), Scheduled(scheduler, sgd)
    fit(tmp_path, alone, 8, max_epochs=1)
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path, whole, 8, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=3), kept], enable_checkpointing=True)
    assert [len(groups) for groups in whole.seen] == [1] * 3 + [2] * 5
    assert all(groups[0] == groups[-1] for groups in whole.seen)
    assert len({groups[0]["lr"] for groups in whole.seen}) > 1
    plateau = scheduler == "ReduceLROnPlateau"  # which goes by the loss, and takes its step after Lightning has saved a checkpoint
    assert plateau or [groups[0] for groups in whole.seen] == [groups[0] for groups in alone.seen]
    for at in (2, 6):
        again = Scheduled(scheduler, sgd)
        fit(tmp_path, again, 8, tmp_path / f"step={at}.ckpt", max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=3)])
        assert all(groups[0] == groups[-1] for groups in again.seen)
        assert plateau or again.seen == whole.seen[at:]
        assert plateau or equal(weights(whole.network), weights(again.network))


def test_what_is_thawed_has_the_multiplier_that_the_head_has_by_then(tmp_path: Path) -> None:
    class Halved(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 1:
                trainer.optimizers[0].param_groups[0]["lr"] = 0.25

    done = fit(tmp_path, headed(lr_multiplier=0.5), 4, max_epochs=1, callbacks=[Halved(), HeadThenAll(unfreeze_at_step=2)])
    assert [group["lr"] for group in done.optimizers[0].param_groups] == [0.25, 0.25]


def test_a_specialist_is_found_by_the_whole_network_though_only_its_head_is_there_at_first(tmp_path: Path) -> None:
    images = torch.utils.data.DataLoader([(torch.randn(4, 1, 32, 32), torch.arange(4) % 3)] * 3, batch_size=None)
    for other_head, network in ((False, pretrained(3)), (True, pretrained(3))):
        if other_head:
            network.classifier = network.fc
            network.fc, network.num_classes = nn.Identity(), 3
            network.get_classifier = lambda network=network: network.classifier  # type: ignore[method-assign]
            network.forward_head = lambda x, network=network, **_: network.classifier(network.global_pool(x))  # type: ignore[method-assign]
        fitted = L3RSModule(network, 3)
        done = trainer(tmp_path, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=1)])
        done.fit(fitted, images, images)
        assert repr(done.optimizers[0]).startswith("L3RS(learned='icons-resnet34' (names and sizes agree)")
        assert sum(len(group["params"]) for group in done.optimizers[0].param_groups) == 110


class WithBackbone(L3RSMixin, pl.LightningModule):
    l3rs_guard = False  # random weights, whose loss leaps

    def __init__(self) -> None:
        super().__init__()
        network = small_network()
        self.backbone, self.head = network[:6], network[6]

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.head(self.backbone(inputs)), labels)


class Thawing(BackboneFinetuning):
    """Lightning's, which in a resumed run leaves frozen what was thawed before; this one thaws it again."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._restarting:
            self.make_trainable(pl_module.backbone)  # type: ignore[arg-type]
        super().on_fit_start(trainer, pl_module)


def test_lightnings_own_finetuning_adds_parameters_and_resumes(tmp_path: Path) -> None:
    def finetuning() -> BackboneFinetuning:
        return Thawing(unfreeze_backbone_at_epoch=1, lambda_func=lambda _: 1.0, backbone_initial_ratio_lr=1.0, train_bn=False)

    whole, again = WithBackbone(), WithBackbone()
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    done = trainer(tmp_path, max_epochs=3, callbacks=[finetuning(), kept], enable_checkpointing=True)
    done.fit(whole, loader(3))
    assert [group["param_names"][0] for group in done.optimizers[0].param_groups] == ["backbone.1.weight", "backbone.0.weight"]
    assert [group["step"] for group in done.optimizers[0].param_groups] == [9, 9]
    resumed = trainer(tmp_path, max_epochs=3, callbacks=[finetuning()])
    resumed.fit(again, loader(3), ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    assert equal(weights(whole), weights(again))


def test_head_then_all_says_what_it_needs(tmp_path: Path) -> None:
    for wrong, message in (
        ({}, "give one of"),
        ({"unfreeze_at_step": 1, "unfreeze_at_epoch": 1}, "give one of"),
        ({"unfreeze_at_step": 0}, r"must be at least 1 \(got 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            HeadThenAll(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give its name, HeadThenAll\(head=\.\.\.\)"):
        fit(tmp_path, module(), 2, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=1)])
    with pytest.raises(ValueError, match="head is 'classifier'"):
        fit(tmp_path, module(), 2, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=1, head="classifier")])
    fit(tmp_path, module(), 2, max_epochs=1, callbacks=[HeadThenAll(unfreeze_at_step=1, head="network.6")])


class Examples(torch.utils.data.Dataset):
    """16 examples, of which two ranks take every second one."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = batch(0)
        return inputs[i], labels[i]


def two_layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_what_is_thawed(tmp_path: Path) -> None:
    found = {}
    for devices in (1, 2):
        fitted = L3RSModule(two_layers(), 3, learned=random_schedule(two_layers(), scale=0.1))
        data = torch.utils.data.DataLoader(Examples(), batch_size=16 // devices, shuffle=False)
        strategy = "ddp_fork" if devices == 2 else "auto"
        callbacks = [HeadThenAll(unfreeze_at_step=2, head="network.3"), L3RSMonitor()]
        done = trainer(tmp_path, max_epochs=5, devices=devices, strategy=strategy, callbacks=callbacks)
        done.fit(fitted, data, data)
        found[devices] = weights(fitted.network)
    assert (tmp_path / "l3rs.png").exists()
    for mine, theirs in zip(found[2], found[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[1][0], two_layers()[1].weight)  # type: ignore[index]


# -- BatchNormMode ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_batch_norm_does_what_its_mode_says(tmp_path: Path, mode: str) -> None:
    fitted, modes = module(), []
    fitted.network[1].register_forward_hook(lambda norm, *_: modes.append(norm.training) if fitted.training else None)
    done = fit(tmp_path, fitted, 3, max_epochs=2, callbacks=[BatchNormMode(mode)])
    before, after = small_network()[1].state_dict(), fitted.network[1].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics, affine = {"running_mean", "running_var", "num_batches_tracked"}, {"weight", "bias"}
    assert changed == {"train": statistics | affine, "eval": affine, "frozen": set()}[mode]
    assert modes == [mode == "train"] * 6
    assert ("network.1.weight" in done.optimizers[0].param_groups[0]["param_names"]) == (mode != "frozen")


@pytest.mark.parametrize("norm_first", [True, False])
def test_batch_norm_stays_frozen_when_the_rest_is_thawed(tmp_path: Path, norm_first: bool) -> None:
    fitted = headed()
    callbacks = [BatchNormMode("frozen"), HeadThenAll(unfreeze_at_step=2)]
    fit(tmp_path, fitted, 4, max_epochs=1, callbacks=callbacks if norm_first else callbacks[::-1])
    before, after = small_network().state_dict(), fitted.network.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {f"1.{name}" for name in small_network()[1].state_dict()}


def test_batch_norm_mode_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mode must be one of train, eval, frozen \(got 'off'\)"):
        BatchNormMode("off")
    without = L3RSModule(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 3)
    with pytest.raises(ValueError, match="L3RSModule has no batch normalization"):
        fit(tmp_path, without, 2, max_epochs=1, callbacks=[BatchNormMode("eval")])
