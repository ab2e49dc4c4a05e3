"""The ways in which the state of an optimizer reaches another one."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp


def directly(state: dict[str, Any], fresh: torch.optim.Optimizer, folder: Path) -> None:
    """Loaded twice, and left as it was."""
    before = copy.deepcopy(state)
    fresh.load_state_dict(state)
    fresh.load_state_dict(state)
    assert state["param_groups"] == before["param_groups"]
    assert all(torch.equal(t, before["state"][i][k]) for i, s in state["state"].items() for k, t in s.items())


def through_file(state: dict[str, Any], fresh: torch.optim.Optimizer, folder: Path) -> None:
    torch.save(state, folder / "optimizer.pt")
    fresh.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))


def through_distributed_checkpoint(state: dict[str, Any], fresh: torch.optim.Optimizer, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no process group is there
        dcp.save({"optimizer": state}, checkpoint_id=folder / "dcp")
        place = {"optimizer": fresh.state_dict()}
        dcp.load(place, checkpoint_id=folder / "dcp")
    fresh.load_state_dict(place["optimizer"])


WAYS = (directly, through_file, through_distributed_checkpoint)
