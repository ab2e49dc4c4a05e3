"""What the scripts here take on the command line: a wrong value ends in one line, before any work."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from l3rs.schedules.find import load
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError
from l3rs.text import first_line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "evaluate" / "results"


def device(text: str) -> str:
    """`cpu`, or `cuda` where torch finds such a device."""
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda (got {text})")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("is cuda, and torch finds no CUDA device here")
    return text


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        if (number := int(text)) >= 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 (got {text})")


def schedule(text: str) -> LearnedSchedule:
    """The schedule of a name, a path or a Hub id."""
    try:
        return load(text)
    except CheckpointError as error:
        raise argparse.ArgumentTypeError(first_line(error)) from None
