"""Meta-parameters of the other learned optimizers that can be meta-trained, saved and shipped, as a `LearnedSchedule` is of L3RS."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from l3rs.checkpoint import SCHEMA, CheckpointError
from l3rs.hub import HubMixin
from l3rs.learned import theta as meta
from l3rs.learned.base import LearnedRule
from l3rs.learned.celo2 import SHAPES, Celo2
from l3rs.learned.small_fc import SHAPES as SMALL_FC
from l3rs.learned.small_fc import MuLO, SmallFC, mup_groups
from l3rs.learned.velo import Celo, VeLO
from l3rs.seal import DAMAGED, intact, sealed

CELO2_LR = 0.03
Named = Iterable[tuple[str, nn.Parameter]]


class Kind(NamedTuple):
    """One of the learned optimizers.

    Attributes:
        shapes: names and shapes of the meta-parameters.
        build: the optimizer for a run of K steps, from (parameters, theta, K, learning rate).
        lr: the usual one of `LearnedWeights`.
        tuned: whether that is a learning rate, which wants tuning, rather than a multiplier.
    """

    shapes: meta.Shapes
    build: Callable[[Named, Tensor, int, float], LearnedRule]
    lr: float = 1.0
    tuned: bool = False


def _celo2(named: Named, theta: Tensor, steps: int, lr: float, **options: Any) -> LearnedRule:
    """Celo2 with a learning rate of lr / sqrt(K) that falls along a cosine, advanced by each step."""
    optimizer = Celo2(named, theta, lr / math.sqrt(steps), **options)
    cosine = CosineAnnealingLR(optimizer, T_max=steps)
    optimizer.register_step_post_hook(lambda *_: cosine.step())
    return optimizer


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "velo": Kind(VeLO.FORM.shapes, lambda named, theta, steps, lr: VeLO(named, theta, steps, lr)),
        "celo": Kind(Celo.FORM.shapes, lambda named, theta, steps, lr: Celo(named, theta, steps, lr)),
        "celo2": Kind(SHAPES, _celo2, CELO2_LR, tuned=True),
        "celo2-base": Kind(SHAPES, lambda n, t, k, lr: _celo2(n, t, k, lr, orthogonalize=False, vectors="learned"), CELO2_LR, tuned=True),
        "small-fc": Kind(SMALL_FC, lambda named, theta, steps, lr: SmallFC(named, theta, lr)),
        "mulo": Kind(SMALL_FC, lambda named, theta, steps, lr: MuLO(mup_groups(named), theta, lr)),
    }
)


@dataclass(frozen=True, eq=False)
class LearnedWeights(HubMixin):
    """Meta-parameters of one of `KINDS`.

    Attributes:
        kind: which.
        theta: float32 (n,), in the order of the kind's shapes.
        lr: multiplies the learned step. Celo2: its learning rate is lr / sqrt(K) [choice], and falls along a cosine.
        name: what it is called in messages.
        training: how it was meta-trained; free-form, for people.
    """

    kind: str
    theta: Tensor
    lr: float = 1.0
    name: str = "unnamed"
    training: dict[str, Any] = field(default_factory=dict)

    def build(self, theta: Tensor, named_parameters: Named, total_steps: int) -> LearnedRule:
        """The optimizer that meta-parameters `theta` define, for a run of `total_steps` steps."""
        return KINDS[self.kind].build(named_parameters, theta, total_steps, self.lr)

    @classmethod
    def _read(cls, path: Path) -> LearnedWeights:
        return read(path)

    def _write(self, path: Path) -> None:
        save(self, path)


def starting_weights(kind: str, lr: float | None, name: str, seed: int, files: Sequence[str | Path] = ()) -> LearnedWeights:
    """Weights to meta-train from: published ones, or drawn at random; an lr of None is the usual one.

    Raises:
        CheckpointError: a file is not of this kind.
    """
    shapes = KINDS[kind].shapes
    return LearnedWeights(
        kind, meta.read(shapes, *files) if files else meta.random(shapes, seed), KINDS[kind].lr if lr is None else lr, name
    )


def load(file: str | Path, kind: str) -> LearnedWeights:
    """Weights of this kind: shipped, by name, or from a file that l3rs wrote or a published one. Raises CheckpointError."""
    file = meta.place(file)
    with contextlib.suppress(CheckpointError):
        weights = read(file)
        if weights.kind == kind:
            return weights
    return LearnedWeights(kind, meta.read(KINDS[kind].shapes, file), name=file.stem)


def save(weights: LearnedWeights, path: str | Path) -> None:
    """Writes meta-parameters by the names of the published code, and everything else as JSON in the metadata."""
    about = {"schema": SCHEMA, "kind": weights.kind, "lr": weights.lr, "name": weights.name, "training": weights.training}
    tensors = {name: t.contiguous().clone() for name, t in meta.unflatten(weights.theta, KINDS[weights.kind].shapes).items()}
    save_file(tensors, path, metadata=sealed(about, tensors))


def read(path: str | Path) -> LearnedWeights:
    """Reads what `save` wrote. Raises CheckpointError for any other file."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata["l3rs"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if not intact(metadata, tensors):
            raise CheckpointError(f"{path} {DAMAGED}")
        if "kind" not in about:
            raise CheckpointError(f"{path} holds a schedule of L3RS, not weights of another learned optimizer; l3rs.load reads it")
        kind, lr, schema, training = about["kind"], float(about["lr"]), about["schema"], about.get("training", {})
        if not isinstance(kind, str) or not 0 < lr < math.inf or not isinstance(training, dict):
            raise ValueError("kind, lr or training are not a name, a positive number and a mapping")
    except CheckpointError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a file of learned weights that l3rs wrote ({type(error).__name__}: {error})") from None
    if schema != SCHEMA or kind not in KINDS:
        raise CheckpointError(f"{path} has schema {schema} and kind {kind!r}; this version of l3rs reads {SCHEMA}, and {', '.join(KINDS)}")
    return LearnedWeights(kind, meta.read(KINDS[kind].shapes, path), lr, str(about.get("name", path.stem)), training)


__all__ = ["KINDS", "LearnedWeights", "load", "read", "save", "starting_weights"]
