"""The error of learned schedules that cannot be had."""


class CheckpointError(ValueError):
    """A learned schedule that cannot be found, fetched, read or written; the message says which, why, and what can be done."""
