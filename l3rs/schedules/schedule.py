"""A learned schedule: its config, the layers it knows by name, its meta-parameters, and the file that keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l3rs.controller.config import L3RSConfig
from l3rs.controller.decide import meta_shapes, unflatten
from l3rs.controller.features import feature_names
from l3rs.schedules.learned import training_config, training_facts
from l3rs.schedules.seal import CheckpointError, read_sealed, write_sealed
from l3rs.schedules.sizes import log_sizes


@dataclass(frozen=True, eq=False)
class LearnedSchedule:
    """A learned schedule: meta-training makes it, and checkpoints keep it.

    Attributes:
        config: everything about it that is not learned.
        layers: the names of the parameters with an embedding or MLP of their own; empty for a generalist, which fits any network.
        theta: float32 (n,), the meta-parameters in the order of `meta_shapes(config, layers)`.
        name: in messages.
        training: how it was meta-trained; free-form, for people.
        sizes: of `layers` when meta-training began, as in `log_sizes`; None for those of the head, which is new for each task. Empty where
            they were not kept, as in files of older versions.
        source: the file that it was read from; None if there was none, as after `dataclasses.replace`.
    """

    config: L3RSConfig
    layers: tuple[str, ...]
    theta: Tensor
    name: str = "unnamed"
    training: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[float | None, ...] = ()
    source: Path | None = field(default=None, init=False)
    kind = "l3rs"

    def slots(self, count: int, names: Sequence[str] | None, match: str = "name") -> list[int]:
        """Finds the place in `layers` of each of `count` layers of a network; empty for a generalist.

        Prefixes of wrappers do not count (DistributedDataParallel, torch.compile, a module that holds the network). Slots may stay unused.
        A head of another name gets the slots of the head, the module of the last of `layers`: it is the network's only unknown module.

        Args:
            names: of the layers, or None.
            match: `name`, or `position`: the first layer takes the first slot, and so on.

        Raises:
            ValueError: a layer has no slot; the message names the first few and the cure.
        """
        if not self.layers:
            return []
        if match == "position":
            if count > len(self.layers):
                raise ValueError(f"{self.name} has slots for {len(self.layers)} layers, and there are {count}, with match='position'")
            return list(range(count))
        advice = "; use learned='auto', a generalist, or match='position' if the layers come in the same order"
        if names is None:
            raise ValueError(f"{self.name} knows layers by name, and the parameters have none: pass model.named_parameters(){advice}")
        number = {layer: i for i, layer in enumerate(self.layers)}
        variants = [self._with_known_head(variant) for variant in without_wrappers(names)]
        missing = [[name for name in variant if name not in number] for variant in variants]
        best = min(range(len(variants)), key=lambda i: len(missing[i]))
        if missing[best]:
            shown, more = ", ".join(missing[best][:3]), len(missing[best]) - 3
            raise ValueError(
                f"{self.name} knows {len(self.layers)} layers by name, but not {shown}{f' and {more} more' if more > 0 else ''}{advice}"
            )
        return [number[name] for name in variants[best]]

    def knows(self, names: Sequence[str]) -> bool:
        """Whether each of these layers has a slot by its name."""
        try:
            return bool(self.slots(len(names), names))
        except ValueError:
            return False

    def apart(self, named: Sequence[tuple[str, Tensor]]) -> float | None:
        """How far the sizes of the layers of a network are from those here, in nats, for the median layer but for the head.

        Args:
            named: parameters of the network, all of which have a slot by their names.

        Returns:
            None where it cannot be told: no sizes were kept, the parameters have no values yet, or they are of the head alone.
        """
        if not self.sizes:
            return None
        kept = [self.sizes[slot] for slot in self.slots(len(named), [name for name, _ in named])]
        body = [(size, p) for size, (_, p) in zip(kept, named, strict=True) if size is not None]
        found = log_sizes([p for _, p in body]) if body else None
        return None if found is None else float(torch.tensor([a - b for a, (b, _) in zip(found, body, strict=True)]).abs().median())

    def _with_known_head(self, names: list[str]) -> list[str]:
        """Renames a head of another name to the head here."""
        head = self.layers[-1].rpartition(".")[0]
        unknown = [name for name in names if name not in set(self.layers)]
        modules = {name.rpartition(".")[0] for name in unknown}
        if len(modules) != 1 or len(unknown) == len(names) or any(name.startswith(f"{head}.") for name in names if name not in unknown):
            return names
        renamed = {name: f"{head}.{name.rpartition('.')[2]}" for name in unknown}
        return [renamed.get(name, name) for name in names] if set(renamed.values()) <= set(self.layers) else names

    # -- describing it ---------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, str]:
        """Facts that tell one schedule from another, for tables; unknown ones are empty."""
        config = training_config(self.training)
        model = f"{config.get('model', 'resnet34')}, " if config else ""
        layers = self.layers
        return {
            "optimizer": "L3RS",
            "fits": f"{model}{len(layers)} layers by name: {layers[0]} to {layers[-1]}" if layers else "any network",
            "directions": ", ".join(self.config.directions),
            **training_facts(self),
        }

    def settings(self) -> dict[str, Any]:
        """Its layers and its config."""
        if not self.layers:
            return {**vars(self.config)}
        body = [size for size in self.sizes if size is not None]
        sizes = f"of {len(body)} layers, by which auto knows their network" if body else "not kept, so that auto never takes it"
        return {"layers": f"{len(self.layers)} by name, {self.layers[0]} to {self.layers[-1]}", "sizes": sizes, **vars(self.config)}

    def usage(self, given: str) -> tuple[str, ...]:
        """Lines of Python that make its optimizer."""
        return "from l3rs import L3RS", "", f'optimizer = L3RS(model.named_parameters(), total_steps=100, learned="{given}")'

    # -- its file ----------------------------------------------------------------------------------------------------------------

    def write(self, path: str | Path) -> None:
        """Writes it: each meta-parameter as a tensor of its own, everything else as JSON in the metadata."""
        about = {
            "name": self.name,
            "config": asdict(self.config),
            "features": feature_names(self.config),
            "layers": self.layers,
            "training": self.training,
            **({"sizes": self.sizes} if self.sizes else {}),
        }
        write_sealed(path, about, unflatten(self.theta, meta_shapes(self.config, self.layers)))

    @classmethod
    def read(cls, path: str | Path) -> LearnedSchedule:
        """Reads a file of `write`; nothing in it is executed.

        Raises:
            CheckpointError: there is no such file, it is truncated, damaged, not of l3rs, of another schema version, or inconsistent.
        """
        about, tensors = read_sealed(path)
        if "kind" in about:
            own = about["kind"] == "image classifier"
            kind, reader = ("an image classifier", "load_classifier") if own else (f"a {about['kind']}", "learners.load")
            raise CheckpointError(f"{path} holds {kind}, not a schedule of L3RS; l3rs.{reader} reads it")
        try:
            config = L3RSConfig(**about["config"])
            layers, training, sizes = tuple(about["layers"]), about.get("training", {}), tuple(about.get("sizes", ()))
            if not all(isinstance(layer, str) for layer in layers) or not isinstance(training, dict):
                raise ValueError("layers or training are not a list of names and a mapping")
            if sizes and (len(sizes) != len(layers) or not all(s is None or (isinstance(s, float) and math.isfinite(s)) for s in sizes)):
                raise ValueError(f"sizes are not a number, or null, for each of {len(layers)} layers")
            expected = feature_names(config)
            if tuple(about["features"]) != expected:
                different = sorted(set(about["features"]) ^ set(expected))
                raise CheckpointError(f"{path} was meta-trained on other features; those that differ: {', '.join(different[:3])}")
            shapes = meta_shapes(config, layers)
            found = {name: tuple(t.shape) for name, t in tensors.items()}
            if found != shapes:
                wrong = next(n for n in sorted({*shapes, *found}) if shapes.get(n) != found.get(n))
                raise CheckpointError(f"{path} holds {wrong} of shape {found.get(wrong)}; its config asks for {shapes.get(wrong)}")
            strange = next((n for n in shapes if not tensors[n].is_floating_point()), None)
            if strange is not None:
                raise ValueError(f"{strange} is of {tensors[strange].dtype}, and floating ones are read")
            theta = torch.cat([tensors[name].float().flatten() for name in shapes])
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{path} has l3rs metadata that this version cannot read: {error}") from None
        learned = cls(config, layers, theta, str(about.get("name", Path(path).stem)), training, sizes)
        object.__setattr__(learned, "source", Path(path))
        return learned


def without_wrappers(names: Sequence[str]) -> Iterator[list[str]]:
    """Yields `names` without `_orig_mod.` and `module.`, and then without each module that holds all the others."""
    names = [name.replace("_orig_mod.", "").removeprefix("module.") for name in names]
    yield names
    while names and all("." in name for name in names) and len({name.split(".", 1)[0] for name in names}) == 1:
        names = [name.split(".", 1)[1] for name in names]
        yield names
