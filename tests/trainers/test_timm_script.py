"""timm: the pattern of its train.py, with its factory, its scaler, its division of the loss in place, and its checkpoints."""

from __future__ import annotations

import l3rs  # isort: skip  (before timm)

from pathlib import Path
from typing import Any

import pytest
from conftest import batch, small_network
from plain import SIGNALS, STEPS, learned, plain_loop, same
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, NativeScaler
from torch import nn


def trained(
    steps: range,
    folder: Path,
    sees: str = "sees the loss",
    parts: int = 1,
    clip: float | None = None,
    scaled: bool = False,
    hook: bool = True,
) -> nn.Module:
    """Goes on from the folder where it is there, and saves itself there."""
    l3rs.register_with_timm()
    network, criterion = small_network(), nn.CrossEntropyLoss()
    opt_kwargs: dict[str, Any] = {"total_steps": STEPS, "learned": learned(network, sees)}
    optimizer = create_optimizer_v2(network, "l3rs", lr=1.0, param_group_fn=nn.Module.named_parameters, **opt_kwargs)
    scheduler, _ = create_scheduler_v2(optimizer, sched="none")
    assert scheduler is None
    if hook:
        criterion.register_forward_hook(lambda module, inputs, loss: optimizer.observe(loss))
    scaler = NativeScaler(device="cpu") if scaled else None
    if folder.exists():
        resume_checkpoint(network, str(folder / "last.pth.tar"), optimizer, scaler, log_info=False)
    optimizer.zero_grad()
    for k in range(steps.start * parts, steps.stop * parts):
        inputs, labels = batch(k)
        need_update = (k + 1) % parts == 0
        loss = criterion(network(inputs), labels)
        if parts > 1:
            loss /= parts
        if scaler is not None:
            scaler(loss, optimizer, clip_grad=clip, parameters=network.parameters(), need_update=need_update)
        else:
            loss.backward()
            if need_update:
                optimizer.step()
        if need_update:
            optimizer.zero_grad()
    folder.mkdir(exist_ok=True)
    CheckpointSaver(network, optimizer, amp_scaler=scaler, checkpoint_dir=str(folder), recovery_dir=str(folder)).save_checkpoint(0)
    return network


@pytest.mark.parametrize("how", [{"scaled": True}, {"parts": 2}, {"parts": 2, "clip": 0.5, "scaled": True}], ids=str)
def test_twenty_steps_are_those_of_the_plain_loop(how: dict[str, Any], tmp_path: Path) -> None:
    assert same(trained(range(STEPS), tmp_path / "state", **how), plain_loop(parts=how.get("parts", 1), clip=how.get("clip")))


@pytest.mark.parametrize("sees", SIGNALS)
def test_a_checkpoint_resumes(sees: str, tmp_path: Path) -> None:
    trained(range(8), tmp_path / "state", sees, scaled=True, hook=sees == "sees the loss")
    assert same(trained(range(8, STEPS), tmp_path / "state", sees, scaled=True, hook=sees == "sees the loss"), plain_loop(sees))


def test_a_loss_that_was_forgotten_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"or observe\(loss\) before a step\(\) that a trainer calls"):
        trained(range(1), tmp_path / "state", scaled=True, hook=False)
