"""Ignite: its trainer calls `step()`; the loss is a module, whose hook hands it over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_network
from plain import SIGNALS, STEPS, batches, learned, plain_loop, same
from torch import nn

from l3rs import L3RS

pytest.importorskip("ignite")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def trained(steps: range, file: Path, sees: str = "sees the loss", parts: int = 1, tell: bool = True) -> nn.Module:
    """Goes on from the file where it is there, and saves itself there."""
    from ignite.engine import create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Loss

    network, criterion = small_network(), nn.CrossEntropyLoss()
    optimizer: Any = L3RS(network.named_parameters(), STEPS, learned(network, sees))
    if tell:
        criterion.register_forward_hook(lambda module, inputs, loss: optimizer.observe(loss))
    if file.exists():
        state = torch.load(file, weights_only=True)
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    trainer = create_supervised_trainer(network, optimizer, criterion, gradient_accumulation_steps=parts)
    evaluator = create_supervised_evaluator(network, {"loss": Loss(criterion)})
    for part in (steps[: len(steps) // 2], steps[len(steps) // 2 :]):
        trainer.run(batches(parts)[part.start * parts : part.stop * parts], max_epochs=1)
        evaluator.run(batches(parts)[:2])
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return network


@pytest.mark.parametrize("parts", [1, 2])
def test_twenty_steps_are_those_of_the_plain_loop(parts: int, tmp_path: Path) -> None:
    """Evaluated in between, by the same loss."""
    assert same(trained(range(STEPS), tmp_path / "state.pt", parts=parts), plain_loop(parts=parts))


@pytest.mark.parametrize("sees", SIGNALS)
def test_a_checkpoint_resumes(sees: str, tmp_path: Path) -> None:
    trained(range(8), tmp_path / "state.pt", sees, tell=sees == "sees the loss")
    assert same(trained(range(8, STEPS), tmp_path / "state.pt", sees, tell=sees == "sees the loss"), plain_loop(sees))


def test_a_loss_that_was_forgotten_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"or observe\(loss\) before a step\(\) that a trainer calls"):
        trained(range(2), tmp_path / "state.pt", tell=False)
