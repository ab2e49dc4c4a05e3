"""The callbacks of both ends of a run."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import batch, random_schedule, small_network
from fits import QUIET, fit, loader, module, trainer
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from l3rs.lightning import BatchNormMode, HeadStart, HeadThenAll, L3RSMixin, L3RSModule, RecentStatistics
from l3rs.networks.head_start import head_start

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]
HEAD = "network.6"


class Watch(pl.Callback):
    """What is there when training and validation begin, and after the first batch."""

    def __init__(self) -> None:
        self.heads: list[Tensor] = []
        self.validated: list[Tensor] = []
        self.batches: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.heads.append(pl_module.get_parameter(f"{HEAD}.weight").detach().clone())
        self.batches.append(batch[0])

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(pl_module.get_buffer("network.1.running_mean").clone())


def by_hand(limit: int | None = None, evaluating: bool = False) -> Tensor:
    network = small_network()
    if evaluating:
        network.train()[1].eval()
    head_start(network, [batch(k) for k in range(4)], limit, head=network[6])
    return network[6].weight.detach()


@pytest.mark.parametrize("kind", ["half precision", "no statistics", "no momentum"])
def test_statistics_that_cannot_be_followed_end_no_run(kind: str, tmp_path: Path) -> None:
    """The network is called, and its BatchNorm stays as training leaves it."""
    fitted, options = module(), {"precision": "bf16-true"} if kind == "half precision" else {}
    if kind == "no statistics":
        fitted.network[1] = nn.BatchNorm2d(fitted.network[1].num_features, track_running_stats=False)
    elif kind == "no momentum":
        fitted.network[1].momentum = 0.0
    assert fit(tmp_path, fitted, 3, max_epochs=1, callbacks=[RecentStatistics()], **options).global_step == 3


# -- the head --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "close"), [("64-true", 1e-5), ("bf16-true", 0.1)])
def test_the_head_is_found_in_the_precision_of_the_run(precision: str, close: float, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, module(), 4, max_epochs=1, callbacks=[HeadStart(3, head=HEAD), watch], precision=precision)
    torch.testing.assert_close(watch.heads[0].float(), by_hand(3), rtol=close, atol=close)


def test_the_head_is_in_closed_form_before_the_first_step_and_a_resumed_run_keeps_its_own(tmp_path: Path) -> None:
    watch, start = Watch(), HeadStart(3, head=HEAD)
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=3)
    fit(tmp_path, module(), 4, max_epochs=1, callbacks=[start, watch, saved], enable_checkpointing=True)
    assert torch.equal(watch.heads[0], by_hand(3))
    assert not torch.equal(watch.heads[1], by_hand(3))
    assert start.found is not None
    assert start.found.images == 48
    again, resumed = Watch(), HeadStart(3, head=HEAD)
    callbacks = [resumed, again, ModelCheckpoint(tmp_path)]
    fit(tmp_path, module(), 4, next(tmp_path.glob("*.ckpt")), max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    assert resumed.found == start.found
    assert not torch.equal(again.heads[0], by_hand(3))


def test_one_callback_gives_each_run_its_own_head(tmp_path: Path) -> None:
    """As in cross-validation; of no more batches than the run has."""
    start, watch = HeadStart(3, head=HEAD), Watch()
    for _ in range(2):
        fit(tmp_path, module(), 4, max_epochs=1, limit_train_batches=2, callbacks=[start, watch])
    assert [torch.equal(head, by_hand(2)) for head in watch.heads] == [True, False, True, False]
    assert start.found is not None
    assert start.found.images == 32


class Bare(L3RSMixin):
    """It has no forward pass of its own; nor has what holds the head, where that is `alone`."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        network = small_network()
        self.parts = nn.ModuleDict({"body": network[:6], "fc": network[6]} if alone else {"all": network})
        self.l3rs_learned, self.l3rs_head = "generalist", "parts.fc" if alone else "parts.all.6"

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.parts["all"](batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:the loss leapt")  # what is trained here is noise
def test_a_module_without_a_forward_pass_needs_a_network_that_has_one(tmp_path: Path) -> None:
    start = HeadStart(3, head="parts.all.6")
    trainer(tmp_path, max_epochs=1, callbacks=[start]).fit(Bare(alone=False), loader(4))
    assert start.found is not None
    assert start.found.images == 48
    with pytest.raises(ValueError, match=r"Bare has no forward pass to its head, .*: give it a forward\(inputs\)"):
        trainer(tmp_path, max_epochs=1, callbacks=[HeadStart()]).fit(Bare(alone=True), loader(4))


@pytest.mark.parametrize("other", [BatchNormMode("eval"), HeadThenAll(unfreeze_at_step=2, head=HEAD)])
def test_features_are_those_of_the_modes_that_training_will_have(tmp_path: Path, other: pl.Callback) -> None:
    watch = Watch()
    fit(tmp_path, module(), 4, max_epochs=1, callbacks=[HeadStart(head=HEAD), other, watch])
    assert torch.equal(watch.heads[0], by_hand(evaluating=True))


def test_a_shuffled_run_begins_with_the_batches_that_the_head_start_saw(tmp_path: Path) -> None:
    inputs, labels = (torch.cat(parts) for parts in zip(*(batch(k) for k in range(4)), strict=True))
    seen: list[Tensor] = []

    class Seeing(HeadStart):
        def images_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
            seen.append(batch[0])
            return super().images_and_labels(batch)

    for generator in (None, torch.Generator().manual_seed(5)):
        seen.clear()
        watch = Watch()
        shuffled = DataLoader(TensorDataset(inputs, labels), 16, shuffle=True, generator=generator)
        trainer(tmp_path, max_epochs=1, callbacks=[Seeing(2, head=HEAD), watch]).fit(module(), shuffled, loader(1))
        assert len(seen) == 2
        assert all(torch.equal(a, b) for a, b in zip(seen, watch.batches, strict=False))


def test_a_head_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batches must be at least 1"):
        HeadStart(0)
    with pytest.raises(ValueError, match=r"name of a dense layer of L3RSModule \(got 'network.1'\)"):
        fit(tmp_path, module(), 1, max_epochs=1, callbacks=[HeadStart(head="network.1")])


@pytest.mark.parametrize("given", [{"image": torch.zeros(2, 3), "label": torch.zeros(2)}, torch.zeros(2, 3), (torch.zeros(2, 3),)])
def test_a_batch_of_another_form_is_named(given: Any) -> None:
    said = "a dict of image, label" if isinstance(given, dict) else f"a {type(given).__name__}"
    with pytest.raises(
        ValueError, match=rf"a batch must be \(inputs, labels\), tensors \(got {said}\); a HeadStart with another images_and"
    ):
        HeadStart().images_and_labels(given)


def test_a_head_that_does_not_give_the_logits_is_not_taken(tmp_path: Path) -> None:
    class Wrapped(L3RSModule):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).flip(1)

    wrapped = Wrapped(torch.nn.Sequential(OrderedDict(body=small_network()[:6], fc=small_network()[6])), 3, learned="generalist")
    with pytest.raises(ValueError, match=r"network\.fc was taken for the head, and Wrapped gives other logits"):
        fit(tmp_path, wrapped, 1, max_epochs=1, callbacks=[HeadStart()])


# -- BatchNorm's statistics ------------------------------------------------------------------------------------------------------------


def mean_of(k: int, weight: Tensor) -> Tensor:
    return torch.conv2d(batch(k)[0], weight).mean((0, 2, 3))


class Kernels(pl.Callback):
    """The first kernel before each batch."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.seen.append(pl_module.get_parameter("network.0.weight").detach().clone())


def test_validations_and_the_end_have_the_last_batches_statistics_and_training_is_as_without(tmp_path: Path) -> None:
    plain, followed, watch, kernels = module(), module(), Watch(), Kernels()
    fit(tmp_path, plain, 5, max_epochs=2)
    callbacks = [RecentStatistics(), watch, kernels, ModelCheckpoint(tmp_path, save_last=True)]
    fit(tmp_path, followed, 5, max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), followed.parameters(), strict=True))
    one, two = mean_of(4, kernels.seen[4]), (mean_of(3, kernels.seen[8]) + mean_of(4, kernels.seen[9])) / 2
    torch.testing.assert_close(watch.validated, [one, two], rtol=1e-4, atol=1e-5)
    found = followed.network[1].running_mean
    torch.testing.assert_close(found, two, rtol=1e-4, atol=1e-5)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(checkpoint["state_dict"]["network.1.running_mean"], two, rtol=1e-4, atol=1e-5)
    kept = checkpoint["callbacks"]["RecentStatistics"]["running"]["network.1.running_mean"]
    torch.testing.assert_close(kept, plain.network[1].running_mean, rtol=0, atol=0)


def test_a_resumed_run_ends_where_it_would_have(tmp_path: Path) -> None:
    whole, half, resumed = module(), module(), module()
    fit(tmp_path, whole, 5, max_epochs=2, callbacks=[RecentStatistics()])
    callbacks = [RecentStatistics(), ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=7)]
    fit(tmp_path, half, 5, max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    path = next(tmp_path.glob("*step=7*"))
    fit(tmp_path, resumed, 5, path, max_epochs=2, callbacks=[RecentStatistics(), ModelCheckpoint()], enable_checkpointing=True)
    assert all(torch.equal(t, resumed.state_dict()[name]) for name, t in whole.state_dict().items())


def test_a_checkpoint_of_weights_alone_has_what_was_validated_and_one_after_the_run_goes_on(tmp_path: Path) -> None:
    watch, kept = Watch(), ModelCheckpoint(tmp_path, monitor="val_loss", save_weights_only=True, filename="best")
    stopped, resumed, whole = module(), module(), module()
    done = fit(tmp_path, stopped, 5, max_epochs=2, callbacks=[RecentStatistics(), watch, kept, Stop(1)], enable_checkpointing=True)
    mean = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]["network.1.running_mean"]
    assert torch.equal(mean, watch.validated[0])
    done.save_checkpoint(tmp_path / "after.ckpt")
    fit(
        tmp_path,
        resumed,
        5,
        tmp_path / "after.ckpt",
        max_epochs=2,
        callbacks=[RecentStatistics(), ModelCheckpoint()],
        enable_checkpointing=True,
    )
    fit(tmp_path, whole, 5, max_epochs=2, callbacks=[RecentStatistics()])
    assert all(torch.equal(t, resumed.state_dict()[name]) for name, t in whole.state_dict().items())


class Stop(pl.Callback):
    """Ends a run after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_a_run_that_fails_gives_the_network_back_with_the_last_statistics(tmp_path: Path) -> None:
    class Failing(L3RSModule):
        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            raise RuntimeError("no such images")

    network, kernels = small_network(), Kernels()
    failing = Failing(network, 3, learned=random_schedule(network))
    hooks = len(failing._state_dict_hooks)
    with pytest.raises(RuntimeError, match="no such images"):
        fit(tmp_path, failing, 5, max_epochs=1, callbacks=[RecentStatistics(), kernels])
    assert not network._forward_hooks
    assert not network._forward_pre_hooks
    assert len(failing._state_dict_hooks) == hooks
    torch.testing.assert_close(network[1].running_mean, mean_of(4, kernels.seen[4]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_first_batch_that_training_leaves_out_is_no_mistake(tmp_path: Path) -> None:
    class Choosy(L3RSModule):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return None if batch_idx == 0 else super().training_step(batch, batch_idx)  # type: ignore[return-value]

    network, recent = small_network(), RecentStatistics()
    fit(tmp_path, Choosy(network, 3, learned=random_schedule(network)), 3, max_epochs=1, callbacks=[recent])
    assert not torch.equal(network[1].running_mean, small_network()[1].running_mean)


def test_averaged_weights_are_not_given_statistics_of_others(tmp_path: Path) -> None:
    for callbacks in ([RecentStatistics(), WeightAveraging()], [WeightAveraging(), RecentStatistics()]):
        with pytest.raises(ValueError, match="WeightAveraging evaluates other weights: leave one out"):
            fit(tmp_path, module(), 1, max_epochs=1, callbacks=callbacks)


def test_a_network_that_training_does_not_call_is_named(tmp_path: Path) -> None:
    class Aside(L3RSMixin):
        """It has BatchNorm in two places, and calls neither itself nor what holds them."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = small_network(), nn.BatchNorm1d(3)
            self.l3rs_learned = random_schedule(self)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.two(self.one(batch[0])), batch[1])

    with pytest.raises(ValueError, match="Aside was not called in the training step"):
        trainer(tmp_path, max_epochs=1, callbacks=[RecentStatistics()]).fit(Aside(), loader(2))
    trainer(tmp_path, max_epochs=1, callbacks=[RecentStatistics(network="one")]).fit(Aside(), loader(2))
    with pytest.raises(ValueError, match="no module of this name"):
        trainer(tmp_path, max_epochs=1, callbacks=[RecentStatistics(network="three")]).fit(Aside(), loader(2))
