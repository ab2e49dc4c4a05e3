"""L3RSModule and L3RSMixin take the steps that a plain loop takes: in every precision, accumulated, clipped, resumed, data-parallel."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
from conftest import batch, equal, random_schedule, small_network, train, weights
from fits import QUIET, fit, loader, loop, module, trainer
from huggingface_hub import constants
from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from l3rs import L3RS
from l3rs.finetuning.baselines import Recipe
from l3rs.lightning import L3RSMixin, L3RSModule
from l3rs.lightning.module import BalancedAccuracy
from l3rs.networks.pretrained import WeightsError

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]


def same_decisions(mine: torch.optim.Optimizer, theirs: L3RS) -> bool:
    assert isinstance(mine, L3RS)
    return bool((mine.decisions().to_numpy() == theirs.decisions().to_numpy()).all())


def test_in_full_precision_it_is_the_plain_loop_and_the_closure_runs_once(tmp_path: Path) -> None:
    fitted, calls = module(), []
    fitted.network.register_forward_hook(lambda *_: calls.append(fitted.training))
    done = fit(tmp_path, fitted, 6, max_epochs=1)
    network, optimizer = loop(6)
    assert equal(weights(fitted.network), weights(network))
    assert same_decisions(done.optimizers[0], optimizer)
    assert calls.count(True) == 6
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(done.callback_metrics)


def test_a_second_fit_is_a_run_of_its_own_length(tmp_path: Path) -> None:
    fitted = module()
    done = fit(tmp_path, fitted, 6, max_epochs=1)
    done.fit_loop.max_epochs = 3
    done.fit(fitted, loader(6), loader(1))
    assert done.global_step == 18
    (group,) = done.optimizers[0].param_groups
    assert (group["step"], group["total_steps"]) == (12, 12)


def test_bf16_mixed_is_the_plain_loop_under_autocast(tmp_path: Path) -> None:
    fitted = module()
    done = fit(tmp_path, fitted, 4, max_epochs=1, precision="bf16-mixed")
    network, optimizer = loop(4, context=lambda: torch.autocast("cpu", torch.bfloat16))
    assert equal(weights(fitted.network), weights(network))
    assert same_decisions(done.optimizers[0], optimizer)


def half_precision(scale: float) -> MixedPrecision:
    """Lightning's plugin for 16-mixed, with a gradient scaler on CPU; asked for by name, Lightning would take bf16-mixed there."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000))


def test_with_a_gradient_scaler_it_sees_the_unscaled_loss(tmp_path: Path) -> None:
    """A scale that is a power of two changes no bit of gradients that do not under- or overflow; the loss, times 1024, would show."""
    fitted = module()
    done = fit(tmp_path, fitted, 8, max_epochs=1, plugins=[half_precision(1024.0)], accumulate_grad_batches=2)
    network, optimizer = loop(4, each=2, context=lambda: torch.autocast("cpu", torch.half))
    assert done.global_step == 4
    for mine, theirs in zip(weights(fitted.network), weights(network), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    mine = done.optimizers[0]
    assert isinstance(mine, L3RS)
    torch.testing.assert_close(
        torch.tensor(mine.decisions().to_numpy()), torch.tensor(optimizer.decisions().to_numpy()), rtol=1e-3, atol=1e-6
    )


def test_a_step_that_the_scaler_skips_does_not_advance_the_clock(tmp_path: Path) -> None:
    done = fit(tmp_path, module(), 6, max_epochs=1, plugins=[half_precision(2.0**60)])
    scaler = done.precision_plugin.scaler  # type: ignore[attr-defined]
    assert scaler.get_scale() == 2.0**54  # it overflowed, and was halved, each time
    assert done.optimizers[0].param_groups[0]["step"] == 0


def test_accumulated_batches_give_the_decisions_of_their_mean_loss(tmp_path: Path) -> None:
    fitted = module()
    done = fit(tmp_path, fitted, 8, max_epochs=1, accumulate_grad_batches=2)
    network, optimizer = loop(4, each=2)
    assert equal(weights(fitted.network), weights(network))
    assert same_decisions(done.optimizers[0], optimizer)


def test_an_accumulation_that_the_end_of_the_epoch_cuts_short_sees_the_mean_of_what_there_is(tmp_path: Path) -> None:
    fitted, seen = module(), []

    def watch(optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]) -> None:
        assert isinstance(optimizer, L3RS)
        seen.append(kwargs["loss"])

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.optimizers[0].register_step_post_hook(watch)

    learned = random_schedule(small_network(), scale=0.0, lr0=1e-12)  # the network stands still
    fitted = module(learned=learned)
    fit(tmp_path, fitted, 5, max_epochs=1, accumulate_grad_batches=3, callbacks=[Watch()])
    network = small_network()
    losses = [F.cross_entropy(network(inputs), labels).item() for inputs, labels in map(batch, range(5))]
    assert [loss.item() for loss in seen] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 2], rel=1e-5)


def test_clipped_gradients_are_those_of_the_plain_loop(tmp_path: Path) -> None:
    fitted = module()
    fit(tmp_path, fitted, 4, max_epochs=1, gradient_clip_val=0.01)
    network, _ = loop(4, before_step=lambda network: nn.utils.clip_grad_norm_(network.parameters(), 0.01))
    assert equal(weights(fitted.network), weights(network))
    assert not equal(weights(fitted.network), weights(loop(4)[0]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_resumed_within_an_epoch_ends_at_the_same_bits(tmp_path: Path, accumulate: int) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "enable_checkpointing": True}
    whole = module()
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    done = fit(tmp_path, whole, 10, callbacks=[kept], **options)
    again = module()
    torch.nn.init.zeros_(again.network[4].weight)  # what is loaded takes its place
    resumed = fit(tmp_path, again, 10, tmp_path / "step=2.ckpt", **options)
    assert resumed.global_step == done.global_step == 20 // accumulate
    assert equal(weights(whole.network), weights(again.network))
    assert all(torch.equal(a, b) for a, b in zip(whole.network.buffers(), again.network.buffers(), strict=True))


def test_a_run_that_is_resumed_among_the_batches_of_one_step_sees_the_losses_that_are_left(tmp_path: Path) -> None:
    class Stopped(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "among.ckpt")

    options: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 4, "enable_checkpointing": True}
    fit(tmp_path, module(), 8, callbacks=[Stopped()], **options)
    resumed = fit(tmp_path, module(), 8, tmp_path / "among.ckpt", **options)
    assert resumed.global_step == 4


def test_the_length_of_the_run_comes_from_the_trainer_and_stays_with_the_state(tmp_path: Path) -> None:
    done = fit(tmp_path, module(), 6, max_epochs=3, accumulate_grad_batches=2)
    assert done.optimizers[0].param_groups[0]["total_steps"] == 9
    done.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="total_steps=9") as warned:
        fit(tmp_path, module(), 6, tmp_path / "last.ckpt", max_epochs=4, accumulate_grad_batches=2)
    said = " ".join(str(w.message) for w in warned)
    assert "of a run of total_steps=9; that takes the place of 12" in said
    assert "given total_steps=9 and goes on past it" in said


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(map(batch, range(4)))

    endless = torch.utils.data.DataLoader(Stream(), batch_size=None)
    with pytest.raises(ValueError, match=r"plans inf steps.*give the Trainer max_steps, or max_epochs"):
        fit(tmp_path, module(), 4, max_epochs=-1)
    with pytest.raises(ValueError, match=r"plans -1 steps"):
        trainer(tmp_path, max_epochs=1).fit(module(), endless, loader(1))
    done = trainer(tmp_path, max_steps=3)
    done.fit(module(), endless, loader(1))
    assert done.optimizers[0].param_groups[0]["total_steps"] == 3


def test_weight_decay_is_that_of_the_plain_loop(tmp_path: Path) -> None:
    fitted = module(weight_decay=0.5)
    fit(tmp_path, fitted, 4, max_epochs=1)
    assert equal(weights(fitted.network), weights(loop(4, weight_decay=0.5)[0]))
    assert not equal(weights(fitted.network), weights(loop(4)[0]))


def test_stochastic_weight_averaging_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"writes learning rates of its own.*Use pytorch_lightning\.callbacks\.WeightAveraging"):
        fit(tmp_path, module(), 4, max_epochs=4, callbacks=[StochasticWeightAveraging(swa_lrs=0.1)])


def test_an_accumulation_that_changes_is_refused_with_the_reason(tmp_path: Path) -> None:
    for plan in ({0: 1, 1: 4}, {0: 4}):
        with pytest.raises(ValueError, match=rf"GradientAccumulationScheduler\({re.escape(str(plan))}\) changes the number of steps"):
            fit(tmp_path, module(), 4, max_epochs=2, callbacks=[GradientAccumulationScheduler(plan)])
    assert fit(tmp_path, module(), 4, max_epochs=2, callbacks=[GradientAccumulationScheduler({0: 1})]).global_step == 8


def test_a_checkpoint_of_a_model_by_name_loads_without_pickle_and_without_a_network(tmp_path: Path) -> None:
    made = L3RSModule("test_resnet", 3, pretrained=False, in_chans=1, classes=["a", "b", "c"], learned=Path("icons-generalist"))
    made.hparams["pretrained"] = True  # as if its weights had come from the Hub
    done = trainer(tmp_path, max_steps=1)
    images = [(torch.randn(2, 1, 32, 32), torch.tensor([0, 1]))]
    done.fit(made, *[torch.utils.data.DataLoader(images, batch_size=None)] * 2)
    done.save_checkpoint(tmp_path / "made.ckpt")
    loaded = L3RSModule.load_from_checkpoint(tmp_path / "made.ckpt", weights_only=True)
    assert equal(weights(made), weights(loaded))
    assert (loaded.classes, loaded.l3rs_learned) == (["a", "b", "c"], "icons-generalist")
    assert made.hparams["pretrained"]
    network = small_network()
    fitted = L3RSModule(network, 3)
    fit(tmp_path, fitted, 1, max_steps=1).save_checkpoint(tmp_path / "own.ckpt")
    own = L3RSModule.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True, model=small_network())
    assert equal(weights(own), weights(network))


def test_tests_and_predicts(tmp_path: Path) -> None:
    fitted = module().eval()
    quiet = trainer(tmp_path)
    (measured,) = quiet.test(fitted, loader(3), verbose=False)
    inputs, labels = (torch.cat(parts) for parts in zip(*map(batch, range(3)), strict=True))
    logits = fitted.network(inputs)
    assert measured["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert measured["test_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    predicted = quiet.predict(fitted, loader(3))
    assert predicted is not None
    torch.testing.assert_close(torch.cat(predicted), logits.softmax(1))  # type: ignore[arg-type]


def test_other_optimizers_run_on_the_same_module(tmp_path: Path) -> None:
    asked = []

    def sgd(network: nn.Module, steps: int) -> Recipe:
        asked.append(steps)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        return Recipe(optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps))

    fitted = module(optimizer=sgd)
    done = fit(tmp_path, fitted, 4, max_epochs=2)
    assert asked == [8]
    assert done.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)  # the schedule went step by step
    plain = module(optimizer=lambda network, steps: torch.optim.SGD(network.parameters(), lr=0.1))
    done = fit(tmp_path, plain, 4, max_epochs=1)
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for k in range(4):
        inputs, labels = batch(k)
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    assert equal(weights(plain.network), weights(network))


class Theirs(pl.LightningModule):
    """Somebody's module: a network of theirs inside, no optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        inputs, labels = batch
        return {"loss": F.cross_entropy(self.backbone(inputs), labels)}


class Mine(L3RSMixin, Theirs):
    l3rs_learned = random_schedule(small_network(), scale=0.1)


def test_the_mixin_trains_a_module_of_ones_own(tmp_path: Path) -> None:
    fitted = Mine()
    done = trainer(tmp_path, max_epochs=1)
    done.fit(fitted, loader(6))
    assert equal(weights(fitted.backbone), weights(loop(6)[0]))


class Scheduled(Mine):
    """One with groups and a scheduler."""

    def configure_optimizers(self) -> Any:
        optimizer = self.l3rs_optimizer()
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WithOptionsOfItsOwn(L3RSMixin, Theirs):
    """What it calls weight decay and guard were for another optimizer."""

    l3rs_learned = Mine.l3rs_learned
    weight_decay, guard, learned = 0.1, False, "of theirs"


def test_options_of_another_optimizer_are_not_taken_for_those_of_l3rs(tmp_path: Path) -> None:
    fitted = WithOptionsOfItsOwn()
    done = trainer(tmp_path, max_epochs=1)
    done.fit(fitted, loader(6))
    (optimizer,) = done.optimizers
    assert (optimizer.param_groups[0]["weight_decay"], optimizer.guard) == (0, True)
    assert equal(weights(fitted.backbone), weights(loop(6)[0]))


def test_a_scheduler_drives_the_multiplier(tmp_path: Path) -> None:
    fitted = Scheduled()
    done = trainer(tmp_path, max_epochs=1)
    done.fit(fitted, loader(6))
    assert done.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5)
    assert not equal(weights(fitted.backbone), weights(loop(6)[0]))


class Manual(Mine):
    automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)["loss"]
        self.manual_backward(loss)
        optimizer.step(loss=loss)


class EveryOther(Mine):
    """Steps by itself, once in two batches."""

    def __init__(self, told: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization, self.told = False, told

    def configure_optimizers(self) -> Any:
        return self.l3rs_optimizer(total_steps=self.told)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        loss = F.cross_entropy(self.backbone(batch[0]), batch[1])
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            self.optimizers().step(loss=loss)  # type: ignore[union-attr, call-arg]
            self.optimizers().zero_grad()  # type: ignore[union-attr]


def test_a_run_that_was_much_shorter_than_planned_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"L3RS was made for 6 steps and took 3: .* l3rs_optimizer\(total_steps=...\)"):
        trainer(tmp_path, max_epochs=1).fit(EveryOther(), loader(6))
    done = trainer(tmp_path, max_epochs=1)
    done.fit(EveryOther(told=3), loader(6))
    assert [(g["total_steps"], g["step"]) for g in done.optimizers[0].param_groups] == [(3, 3)]


def test_manual_optimization_gives_the_loss_itself(tmp_path: Path) -> None:
    fitted = Manual()
    trainer(tmp_path, max_epochs=1).fit(fitted, loader(6))
    assert equal(weights(fitted.backbone), weights(loop(6)[0]))


class Parted(Manual):
    """The last layer and those before it have optimizers of their own."""

    def configure_optimizers(self) -> Any:
        named = list(self.named_parameters())
        parts = [[(name, p) for name, p in named if (".6." in name) is last] for last in (True, False)]
        return [self.l3rs_optimizer(part, total_steps=6) for part in parts]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        loss = F.cross_entropy(self.backbone(batch[0]), batch[1])
        self.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step(loss=loss)


@pytest.mark.parametrize("head", [None, "backbone.6"])
def test_two_optimizers_of_one_network_step_as_one_does(head: str | None, tmp_path: Path) -> None:
    """Which layer is the head, and where a layer lies, is told from the whole network; the head may be named for both."""
    fitted = Parted()
    fitted.l3rs_head = head
    done = trainer(tmp_path, max_epochs=1)
    done.fit(fitted, loader(6))
    assert equal(weights(fitted.backbone), weights(loop(6)[0]))
    assert ["head: backbone.6.weight" in repr(optimizer) for optimizer in done.optimizers] == [True, True]


class Apart(L3RSMixin):
    """The body and the head are children of their own, with an optimizer each, beside a frozen teacher that has a head, too."""

    def __init__(self) -> None:
        super().__init__()
        network = small_network()
        self.body, self.last, self.teacher = network[:6], network[6], nn.ModuleDict({"fc": nn.Linear(2, 3)}).requires_grad_(False)
        self.l3rs_learned, self.automatic_optimization = "generalist", False

    def configure_optimizers(self) -> Any:
        named = list(self.named_parameters())
        parts = [[(name, p) for name, p in named if name.startswith(child)] for child in ("body", "last")]
        return [*(self.l3rs_optimizer(part, total_steps=1) for part in parts), self.l3rs_optimizer(total_steps=1)]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        pass


@pytest.mark.filterwarnings("ignore:L3RS was made for 1 steps and took 0")
def test_a_part_of_a_module_without_the_head_has_none_and_a_teacher_is_no_part_of_the_network(tmp_path: Path) -> None:
    done = trainer(tmp_path, max_epochs=1)
    done.fit(Apart(), loader(1))
    heads = [repr(optimizer).split("head: ")[1].split(",")[0] for optimizer in done.optimizers]
    assert heads == ["none", "last.weight", "last.weight"]


@pytest.mark.filterwarnings("ignore:the loss leapt")  # of both
@pytest.mark.parametrize("frozen", [0, 6], ids=["first", "last"])
def test_frozen_layers_count_as_in_the_plain_loop(frozen: int, tmp_path: Path) -> None:
    mine, theirs = small_network(), small_network()
    for network in (mine, theirs):
        network[frozen].requires_grad_(False)
    fit(tmp_path, L3RSModule(mine, 3, learned="generalist"), 6, max_epochs=1)
    train(theirs, L3RS(theirs.named_parameters(), 6, "generalist"), range(6))
    assert equal(weights(mine), weights(theirs))


class Forgetful(Mine):
    def on_train_batch_end(self, *_: Any) -> None:
        pass


def test_a_loss_that_is_lost_is_an_error(tmp_path: Path) -> None:
    trainer(tmp_path, max_epochs=1).fit(Forgetful(), loader(2))
    with pytest.raises(RuntimeError, match=r"must call super\(\)\.on_train_batch_end"):
        trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(Forgetful(), loader(2))


class Skipping(Mine):
    """Leaves every second batch out."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_batch_that_is_left_out_moves_nothing(tmp_path: Path) -> None:
    fitted, moved = Skipping(), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            moved.append(weights(fitted.backbone))

    trainer(tmp_path, max_epochs=1, callbacks=[Watch()]).fit(fitted, loader(4))
    assert [equal(a, b) for a, b in itertools.pairwise(moved)] == [True, False, True]
    halved = Skipping()
    done = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    done.fit(halved, loader(4))
    assert done.optimizers[0].skipped_steps == 0  # type: ignore[attr-defined]
    assert not equal(weights(halved.backbone), weights(small_network()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnett34", "num_classes": 3}, "similar ones are resnet34"),
        ({"model": "test_resnet", "num_classes": 1}, r"num_classes must be at least 2 \(got 1\)"),
        ({"model": "test_resnet", "num_classes": 3, "classes": ["a"]}, "classes are 1 names, and num_classes is 3"),
        ({"model": "test_resnet", "num_classes": 3, "class_weights": [1.0]}, "class_weights are 1 numbers, and num_classes is 3"),
        ({"model": "test_resnet", "num_classes": 3, "label_smoothing": 2.0}, r"label_smoothing must be at least 0 and below 1 \(got 2.0\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        L3RSModule(**arguments, pretrained=False)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_in_training_is_weighted_and_smoothed_and_in_validation_plain(smoothing: float) -> None:
    torch.manual_seed(0)
    network, x = small_network().eval(), torch.randn(6, 1, 8, 8)
    for labels, several in ((torch.tensor([0, 1, 2, 0, 0, 2]), False), ((torch.rand(6, 3) > 0.5).float(), True)):
        weights = [0.5, 2.0, 1.0]
        module = L3RSModule(network, 3, multilabel=several, label_smoothing=smoothing, class_weights=weights)
        module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        logits = network(x)
        if several:
            trained = F.binary_cross_entropy_with_logits(logits, labels * (1 - smoothing) + smoothing / 2, torch.tensor(weights))
            judged = F.binary_cross_entropy_with_logits(logits, labels)
        else:
            trained = F.cross_entropy(logits, labels, torch.tensor(weights), label_smoothing=smoothing)
            judged = F.cross_entropy(logits, labels)
        torch.testing.assert_close(module.training_step((x, labels), 0), trained)
        torch.testing.assert_close(module.validation_step((x, labels), 0), judged)


def test_classes_without_images_do_not_count_in_the_balanced_accuracy() -> None:
    """Also where images are taken for one, of which torchmetrics makes a class that is always wrong."""
    judge, labels, taken = BalancedAccuracy(4), torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    judge.update(taken[:1], labels[:1])
    judge.update(taken[1:], labels[1:])
    assert judge.compute() == (0.5 + 1) / 2
    assert multiclass_accuracy(taken, labels, 4, average="macro") == (0.5 + 0 + 1) / 3


def test_a_network_with_another_number_of_classes_is_refused() -> None:
    from l3rs.networks.pretrained import pretrained

    with pytest.raises(ValueError, match="head has 25 classes, and num_classes is 10"):
        L3RSModule(pretrained(25), 10)
    with pytest.raises(ValueError, match=r"head has 1000 classes, .*: give it a new head"):  # torchvision's do not say
        L3RSModule(torchvision.models.resnet18(), 10)


def without_batch_norm() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))


class Examples(torch.utils.data.Dataset):
    """The examples of a few batches, one after the other, each batch's two halves interleaved, as ranks take turns."""

    def __init__(self, count: int) -> None:
        whole = [torch.cat(parts) for parts in zip(*map(batch, range(count)), strict=True)]
        order = torch.arange(16 * count).view(count, 2, 8).transpose(1, 2).flatten()
        self.inputs, self.labels = (part[order] for part in whole)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.inputs[i], self.labels[i]


class Shared(pl.LightningDataModule):
    """`Examples`, a part for each rank; Lightning's own sampler would shuffle them."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        ranks, examples = self.trainer.world_size, Examples(8)
        mine = torch.utils.data.Subset(examples, range(self.trainer.global_rank, len(examples), ranks))
        return torch.utils.data.DataLoader(mine, batch_size=16 // ranks)

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        return loader(1)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_agree_with_one(tmp_path: Path, accumulate: int) -> None:
    """Two ranks of 8 examples a step take the steps of one of 16; the loss is the mean over both."""
    found = {}
    for devices in (1, 2):
        network = without_batch_norm()
        fitted = L3RSModule(network, 3, learned=random_schedule(network, scale=0.1))
        strategy = "ddp_fork" if devices == 2 else "auto"
        options: dict[str, Any] = {"max_epochs": 2, "devices": devices, "strategy": strategy, "accumulate_grad_batches": accumulate}
        trainer(tmp_path, use_distributed_sampler=False, **options).fit(fitted, Shared())
        found[devices] = weights(fitted.network)
    for mine, theirs in zip(found[2], found[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not equal(found[1], weights(without_batch_norm()))


def test_without_a_network_it_says_which_argument_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for model in ("test_resnet", next(m for m in timm.list_models() if not getattr(timm.get_pretrained_cfg(m), "has_weights", False))):
        with pytest.raises(WeightsError, match=r"give pretrained=False to start at random$") as error:
            L3RSModule(model, num_classes=5)
        assert "--" not in str(error.value)
        assert "\n" not in str(error.value)
