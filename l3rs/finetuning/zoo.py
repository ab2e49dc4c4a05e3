"""The zoo: pretrained networks of many families, listed in a YAML file, with their images and whether they are for judging only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from l3rs.finetuning.workload import Workload
from l3rs.networks.pretrained import SHIPPED


@dataclass(frozen=True)
class Network:
    """A network of the zoo.

    Attributes:
        name: in the zoo.
        workload: the network, its weights, and the images whose first classes it was pretrained on.
        held_out: whether it is kept for validation and test: no schedule meets it in meta-training.
    """

    name: str
    workload: Workload
    held_out: bool


def read_zoo(path: str | Path, folder: str | Path) -> dict[str, Network]:
    """The networks of a zoo, by name, in the order of the file.

    Args:
        path: a YAML file such as `configs/zoo.yaml`: name to the fields of a `Workload`, and `held_out`.
        folder: where the weights are that are not shipped; whether they are there is seen when a network is made.

    Raises:
        ValueError: the file is no zoo; the message names the network and what is wrong.
    """
    known = {f.name for f in fields(Workload)} - {"from_scratch"}
    try:
        listed = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the zoo {path} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    if not isinstance(listed, dict):
        raise ValueError(f"{path} is no zoo: it must map names of networks to what they are")
    zoo = {}
    for name, given in listed.items():
        values = dict(given) if isinstance(given, dict) else {}
        held_out, weights = values.pop("held_out", None), values.get("weights")
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{name} of {path} has {unknown[0]}, which is not one of {', '.join(sorted(known))}, held_out")
        if not isinstance(held_out, bool):
            raise ValueError(f"{name} of {path}: held_out must be true or false (got {held_out!r})")
        if not isinstance(weights, str):
            raise ValueError(f"{name} of {path}: weights must be a file, or one of {', '.join(SHIPPED)} (got {weights!r})")
        values["weights"] = weights if weights in SHIPPED else str(Path(folder) / weights)
        try:
            zoo[str(name)] = Network(str(name), Workload(**values), held_out)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} of {path}: {error}") from None
    return zoo
