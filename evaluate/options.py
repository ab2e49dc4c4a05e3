"""What the scripts here take on the command line: a wrong value ends in one line, before any work."""

from __future__ import annotations

import argparse

from l3rs.schedules.find import load
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError
from l3rs.text import first_line


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
