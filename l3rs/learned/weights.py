"""Meta-parameters of the other learned optimizers that can be meta-trained, saved and shipped, as a `LearnedSchedule` is of L3RS."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from l3rs.learned import theta as meta
from l3rs.learned.base import LearnedRule
from l3rs.learned.celo2 import SHAPES, Celo2
from l3rs.learned.small_fc import SHAPES as SMALL_FC
from l3rs.learned.small_fc import MuLO, SmallFC, mup_groups
from l3rs.learned.velo import Celo, VeLO
from l3rs.schedules.learned import training_facts
from l3rs.schedules.seal import CheckpointError, is_sealed, read_sealed, write_sealed

CELO2_LR = 0.03
Named = Iterable[tuple[str, nn.Parameter]]


class Kind(NamedTuple):
    """One of the learned optimizers.

    Attributes:
        shapes: names and shapes of the meta-parameters.
        build: the optimizer for a run of K steps, from (parameters, theta, K, learning rate) and options by name.
        lr: the usual one of `LearnedWeights`.
        tuned: whether that is a learning rate, which wants tuning, rather than a multiplier.
    """

    shapes: meta.Shapes
    build: Callable[..., LearnedRule]
    lr: float = 1.0
    tuned: bool = False


def _celo2(named: Named, theta: Tensor, steps: int, lr: float, **options: Any) -> LearnedRule:
    """Celo2 with a learning rate of lr / sqrt(K) that falls along a cosine."""
    return Celo2(named, theta, lr / math.sqrt(steps), total_steps=steps, **options)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "velo": Kind(VeLO.FORM.shapes, VeLO),
        "celo": Kind(Celo.FORM.shapes, Celo),
        "celo2": Kind(SHAPES, _celo2, CELO2_LR, tuned=True),
        "celo2-base": Kind(SHAPES, partial(_celo2, orthogonalize=False, vectors="learned"), CELO2_LR, tuned=True),
        "small-fc": Kind(SMALL_FC, lambda named, theta, steps, lr, **o: SmallFC(named, theta, lr, **o)),
        "mulo": Kind(SMALL_FC, lambda named, theta, steps, lr, **o: MuLO(mup_groups(named), theta, lr, **o)),
    }
)


@dataclass(frozen=True, eq=False)
class LearnedWeights:
    """Meta-parameters of one of `KINDS`.

    Attributes:
        kind: which.
        theta: float32 (n,), in the order of the kind's shapes.
        lr: multiplies the learned step. Celo2: its learning rate is lr / sqrt(K) [choice], and falls along a cosine.
        name: what it is called in messages.
        training: how it was meta-trained; free-form, for people.
        source: the file that it was read from; None if it was made otherwise, by `dataclasses.replace` too.
    """

    kind: str
    theta: Tensor
    lr: float = 1.0
    name: str = "unnamed"
    training: dict[str, Any] = field(default_factory=dict)
    source: Path | None = field(default=None, init=False)

    def facts(self) -> dict[str, str]:
        """What tells it from others, for tables; what is not known is empty."""
        return {"optimizer": self.kind, "fits": "any network", "directions": "", **training_facts(self)}

    def settings(self) -> dict[str, Any]:
        """Its optimizer, and the learning rate."""
        return {"optimizer": self.kind, "lr": f"{self.lr:g}"}

    def usage(self, given: str) -> tuple[str, ...]:
        """Lines of Python that make the optimizer of it."""
        return (
            "from l3rs import learners",
            "",
            f'learned = learners.load("{given}")',
            "optimizer = learners.build(learned, model.named_parameters(), total_steps=100)",
        )

    def write(self, path: str | Path) -> None:
        """Writes meta-parameters by the names of the published code, and everything else as JSON in the metadata."""
        about = {"kind": self.kind, "lr": self.lr, "name": self.name, "training": self.training}
        write_sealed(path, about, meta.unflatten(self.theta, KINDS[self.kind].shapes))

    @classmethod
    def read(cls, path: str | Path) -> LearnedWeights:
        """Reads what `write` wrote. Raises CheckpointError for any other file."""
        about, _ = read_sealed(path)
        if "kind" not in about:
            raise CheckpointError(f"{path} holds a schedule of L3RS, not weights of another learned optimizer; l3rs.load reads it")
        try:
            kind, lr, training = about["kind"], float(about["lr"]), about.get("training", {})
            if not isinstance(kind, str) or not 0 < lr < math.inf or not isinstance(training, dict):
                raise ValueError("kind, lr or training are not a name, a positive number and a mapping")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} has l3rs metadata that this version cannot read: {error}") from None
        if kind not in KINDS:
            raise CheckpointError(f"{path} is of kind {kind!r}; this version of l3rs reads {', '.join(KINDS)}")
        weights = cls(kind, meta.read(KINDS[kind].shapes, path), lr, str(about.get("name", Path(path).stem)), training)
        object.__setattr__(weights, "source", Path(path))
        return weights


def starting_weights(kind: str, lr: float | None, name: str, seed: int, files: Sequence[str | Path] = ()) -> LearnedWeights:
    """Weights to meta-train from: published ones, or drawn at random; an lr of None is the usual one.

    Raises:
        CheckpointError: a file is not of this kind.
    """
    shapes = KINDS[kind].shapes
    return LearnedWeights(
        kind, meta.read(shapes, *files) if files else meta.random(shapes, seed), KINDS[kind].lr if lr is None else lr, name
    )


def load(given: str | Path, kind: str) -> LearnedWeights:
    """Weights of this kind: shipped, by name, or from a file that l3rs wrote or a published one.

    Raises:
        CheckpointError: there are none, they cannot be read, or they are of another kind.
    """
    file = meta.place(given)
    if not is_sealed(file):
        return LearnedWeights(kind, meta.read(KINDS[kind].shapes, file), KINDS[kind].lr, name=file.stem)
    weights = LearnedWeights.read(file)
    if weights.kind != kind:
        raise CheckpointError(f"{file} holds weights of {weights.kind}, and {kind} was asked for")
    return weights


__all__ = ["KINDS", "LearnedWeights", "load", "starting_weights"]
