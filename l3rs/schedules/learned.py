"""What a schedule of L3RS and the weights of another learned optimizer have in common, for files, tables and the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from l3rs.schedules.seal import fingerprint


class Learned(Protocol):
    """Meta-parameters, and what is known of them: a frozen value, which knows no optimizer and no network."""

    @property
    def kind(self) -> str:
        """Which learned optimizer they are of, as in `l3rs.learners.LEARNERS`."""
        ...

    @property
    def theta(self) -> Tensor:
        """The meta-parameters, float32 (n,)."""
        ...

    @property
    def name(self) -> str:
        """What they are called in messages."""
        ...

    @property
    def training(self) -> dict[str, Any]:
        """How they were meta-trained; free-form, for people."""
        ...

    @property
    def source(self) -> Path | None:
        """The file that they were read from; None if they were made otherwise, by `dataclasses.replace` too."""
        ...

    def write(self, path: str | Path) -> None:
        """Writes them, as a sealed file."""
        ...

    def facts(self) -> dict[str, str]:
        """What tells one from another, for tables; what is not known is empty."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything about them that is not learned."""
        ...

    def usage(self, given: str) -> tuple[str, ...]:
        """Lines of Python that make the optimizer of them, from the name, path or Hub id `given`."""
        ...


def identity(learned: Learned) -> str:
    """Name and fingerprint: one that was trained anew under an old name is another."""
    return f"{learned.name} {fingerprint(learned.theta)[:12]}"


def training_facts(learned: Learned) -> dict[str, str]:
    """Facts about how they were meta-trained that all kinds have."""
    accuracy = learned.training.get("validation_accuracy")
    return {
        "meta-parameters": f"{len(learned.theta):,}",
        "generations": str(learned.training.get("generation", "")),
        "meta-validation": f"{accuracy:.3f}" if isinstance(accuracy, float) else "",
    }


def training_config(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a meta-training run; empty if it does not say."""
    config = training.get("config")
    return config if isinstance(config, dict) else {}
