"""The common face of a schedule of L3RS and of the weights of another learned optimizer, for files, tables and the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from l3rs.schedules.seal import fingerprint


class Learned(Protocol):
    """Meta-parameters with their origin: a frozen value, which knows no optimizer and no network."""

    @property
    def kind(self) -> str:
        """The learned optimizer that they belong to, as in `l3rs.learners.LEARNERS`."""
        ...

    @property
    def theta(self) -> Tensor:
        """The meta-parameters, float32 (n,)."""
        ...

    @property
    def name(self) -> str:
        """The name in messages."""
        ...

    @property
    def training(self) -> dict[str, Any]:
        """How they were meta-trained; free-form, for people."""
        ...

    @property
    def source(self) -> Path | None:
        """The file that they were read from; None if there was none, as after `dataclasses.replace`."""
        ...

    def write(self, path: str | Path) -> None:
        """Writes them, as a sealed file."""
        ...

    def facts(self) -> dict[str, str]:
        """Facts that tell one from another, for tables; unknown ones are empty."""
        ...

    def settings(self) -> dict[str, Any]:
        """All settings, which are not learned."""
        ...

    def usage(self, given: str) -> tuple[str, ...]:
        """Lines of Python that make the optimizer from the name, path or Hub id `given`."""
        ...


def identity(learned: Learned) -> str:
    """Name and fingerprint, which tell a new training from an old one of the same name."""
    return f"{learned.name} {fingerprint(learned.theta)[:12]}"


def wrong_tool(learned: Learned) -> str:
    """Says in a line that it is the wrong tool for random weights; empty if it was meta-trained on such, or nobody knows."""
    config = training_config(learned.training)
    if not config or config.get("from_scratch", False):
        return ""
    return (
        f"{learned.name} was meta-trained to fine-tune pretrained networks: from random weights it is the wrong tool, and schedule-free "
        "AdamW a better one (docs/findings.md)."
    )


def training_facts(learned: Learned) -> dict[str, str]:
    """Facts about meta-training that all kinds share."""
    accuracy = learned.training.get("validation_accuracy")
    return {
        "meta-parameters": f"{len(learned.theta):,}",
        "generation": str(learned.training.get("generation", "")),
        "meta-validation": f"{accuracy:.3f}" if isinstance(accuracy, float) else "",
    }


def training_config(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the meta-training run; empty if they are unknown."""
    config = training.get("config")
    return config if isinstance(config, dict) else {}
