"""Lightning Fabric: its wrapper imitates the class of the optimizer, and calls `step()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import batch, small_network
from plain import SIGNALS, STEPS, learned, plain_loop, same
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS

fabric_library = pytest.importorskip("lightning_fabric")


def trained(
    steps: range, file: Path, sees: str = "sees the loss", parts: int = 1, clip: float | None = None, bf16: bool = False, tell: bool = True
) -> nn.Module:
    """Goes on from the file where it is there, and saves itself there."""
    fabric = fabric_library.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if bf16 else "32-true")
    network: Any = small_network()
    model, optimizer = fabric.setup(network, L3RS(network.named_parameters(), STEPS, learned(network, sees)))
    state = {"model": model, "optimizer": optimizer}
    if file.exists():
        fabric.load(file, state)
    for k in range(steps.start * parts, steps.stop * parts):
        inputs, labels = batch(k)
        last = (k + 1) % parts == 0
        with fabric.no_backward_sync(model, enabled=False):
            loss = F.cross_entropy(model(inputs), labels)
            if tell:
                optimizer.observe(loss)
            fabric.backward(loss / parts)
        if last:
            if clip is not None:
                fabric.clip_gradients(model, optimizer, max_norm=clip)
            optimizer.step()
            optimizer.zero_grad()
    fabric.save(file, state)
    return network


@pytest.mark.parametrize("how", [{}, {"parts": 2, "clip": 0.5, "bf16": True}], ids=str)
def test_twenty_steps_are_those_of_the_plain_loop(how: dict[str, Any], tmp_path: Path) -> None:
    assert same(trained(range(STEPS), tmp_path / "state.ckpt", **how), plain_loop(**how))


@pytest.mark.parametrize("sees", SIGNALS)
def test_a_checkpoint_resumes(sees: str, tmp_path: Path) -> None:
    file, tell = tmp_path / "state.ckpt", sees == "sees the loss"
    trained(range(8), file, sees, tell=tell)
    assert same(trained(range(8, STEPS), file, sees, tell=tell), plain_loop(sees))


def test_a_loss_that_was_forgotten_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"or observe\(loss\) before a step\(\) that a trainer calls"):
        trained(range(1), tmp_path / "state.ckpt", tell=False)
