"""transformers' Trainer, on image classification: a subclass of four lines hands over the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain import SIGNALS, STEPS, batches, learned, same
from torch import Tensor, nn

from l3rs import L3RS

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pin_memory:UserWarning")
BATCH = 16


def network() -> Any:
    torch.manual_seed(1)
    sizes = {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    made = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=3))
    made.accepts_loss_kwargs = False  # else the gradients of several batches are added up, not averaged: seen in 5.24
    return made


def images(parts: int) -> list[dict[str, Tensor]]:
    return [{"pixel_values": x, "labels": y} for inputs, labels in batches(parts) for x, y in zip(inputs, labels, strict=True)]


def plain_loop(sees: str, parts: int, clip: float) -> nn.Module:
    net = network().train()
    optimizer = L3RS(net.named_parameters(), STEPS, learned(net, sees))
    for k in range(STEPS):
        optimizer.zero_grad()
        losses = []
        for inputs, labels in batches(parts)[k * parts : (k + 1) * parts]:
            losses.append(nn.functional.cross_entropy(net(inputs).logits, labels) / parts)
            losses[-1].backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step(loss=torch.stack(losses).sum())
    return net


class L3RSTrainer(transformers.Trainer):  # type: ignore[misc]
    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)  # the share of its batches in the loss of the step
        self.optimizer.optimizer.observe(loss * self.current_gradient_accumulation_steps)
        return loss


def trained(folder: Path, sees: str, parts: int = 1, clip: float = 1.0, until: int = STEPS, trainer: Any = L3RSTrainer) -> nn.Module:
    """Goes on from the last checkpoint in the folder, where there is one."""
    net = network()
    train(net, folder, sees, parts, clip, until, trainer)
    return net  # type: ignore[no-any-return]


def train(net: Any, folder: Path, sees: str, parts: int = 1, clip: float = 1.0, until: int = STEPS, trainer: Any = L3RSTrainer) -> None:
    optimizer = L3RS(net.named_parameters(), STEPS, learned(net, sees))
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=parts,
        max_grad_norm=clip,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_steps=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )

    class Stop(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= until

    run = trainer(net, args, train_dataset=images(parts), optimizers=(optimizer, None), callbacks=[Stop])
    run.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))


@pytest.mark.parametrize(("parts", "clip"), [(1, 1e9), (2, 0.5)])
def test_twenty_steps_are_those_of_the_plain_loop(parts: int, clip: float, tmp_path: Path) -> None:
    assert same(trained(tmp_path, "sees the loss", parts, clip), plain_loop("sees the loss", parts, clip))


def test_a_loss_that_is_divided_by_the_images_of_all_its_batches_is_seen_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a ViT, which is told their number: of two batches each returns its share of the sum."""
    seen = []
    monkeypatch.setattr(L3RS, "step", lambda self, closure=None: seen.append(self._losses.mean()) or self._losses.__init__())
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
    net = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_channels=1, num_labels=3))
    train(net, tmp_path, "sees no loss", parts=2)
    losses = [nn.functional.cross_entropy(net(inputs).logits, labels) for inputs, labels in batches(2)]
    torch.testing.assert_close(torch.stack(seen), torch.stack(losses).view(-1, 2).mean(dim=1))


@pytest.mark.parametrize("sees", SIGNALS)
def test_a_checkpoint_resumes(sees: str, tmp_path: Path) -> None:
    trainer = L3RSTrainer if sees == "sees the loss" else transformers.Trainer
    trained(tmp_path, sees, until=8, trainer=trainer)
    assert same(trained(tmp_path, sees, trainer=trainer), plain_loop(sees, 1, 1.0))


def test_a_loss_that_was_forgotten_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"or observe\(loss\) before a step\(\) that a trainer calls"):
        trained(tmp_path, "sees the loss", trainer=transformers.Trainer)
