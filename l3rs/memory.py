"""The most memory that was in use between two moments."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _mib(name: str) -> float:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(name)) / 1024


def start_peak(device: torch.device) -> float:
    """Starts to watch; gives what is in use now, in MiB: allocated on a GPU, or resident of this process. NaN on CPU but on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed before
        _RESET.write_text("5")  # sets the peak, VmHWM, to what there is now
        return _mib("VmRSS")
    except (OSError, AttributeError):
        return math.nan


def peak(device: torch.device) -> float:
    """The most that was in use since `start_peak`, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        return _mib("VmHWM")
    except OSError:
        return math.nan
