"""accelerate: its wrapper calls `step()`, at the last batch of an accumulated gradient."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import batch, small_network
from plain import SIGNALS, STEPS, learned, plain_loop, same
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def trained(
    steps: range,
    folder: Path,
    sees: str = "sees the loss",
    parts: int = 1,
    clip: float | None = None,
    bf16: bool = False,
    tell: bool = True,
) -> nn.Module:
    """Goes on from the folder where it is there, and saves itself there."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no", gradient_accumulation_steps=parts)
    network: Any = small_network()
    optimizer = L3RS(network.named_parameters(), STEPS, learned(network, sees))
    model, wrapped = accelerator.prepare(network, optimizer)
    if folder.exists():
        accelerator.load_state(str(folder))
    for k in range(steps.start * parts, steps.stop * parts):
        inputs, labels = batch(k)
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(inputs), labels)
            if tell:
                optimizer.observe(loss)
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            wrapped.step()
            wrapped.zero_grad()
    accelerator.save_state(str(folder))
    return network


@pytest.mark.parametrize("how", [{}, {"bf16": True}, {"parts": 2}, {"clip": 0.5}, {"parts": 2, "clip": 0.5, "bf16": True}], ids=str)
def test_twenty_steps_are_those_of_the_plain_loop(how: dict[str, Any], tmp_path: Path) -> None:
    assert same(trained(range(STEPS), tmp_path / "state", **how), plain_loop(**how))


@pytest.mark.parametrize("sees", SIGNALS)
def test_a_checkpoint_resumes(sees: str, tmp_path: Path) -> None:
    trained(range(8), tmp_path / "state", sees, tell=sees == "sees the loss")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert same(trained(range(8, STEPS), tmp_path / "state", sees, tell=sees == "sees the loss"), plain_loop(sees))


def test_a_loss_that_was_forgotten_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"L3RS watches the loss: .* or observe\(loss\) before a step\(\) that a trainer calls"):
        trained(range(1), tmp_path / "state", tell=False)
