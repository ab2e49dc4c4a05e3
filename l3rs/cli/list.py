"""`l3rs list`: the schedules and networks on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import resources

from huggingface_hub import constants
from jsonargparse import Namespace

from l3rs.cli.parser import Parser
from l3rs.learners import load
from l3rs.networks.pretrained import SHIPPED as NETWORKS
from l3rs.schedules.find import SHIPPED, SHIPPED_WEIGHTS
from l3rs.schedules.hub import cached
from l3rs.schedules.learned import Learned
from l3rs.schedules.seal import CheckpointError
from l3rs.text import printable, table

ABOUT = """
List the shipped schedules, the schedules in the Hub's cache on this machine, and the shipped networks. It downloads nothing.

Pass the name of a schedule to `L3RS(..., learned=NAME)`, `l3rs.load(NAME)`, `l3rs info NAME` or `l3rs finetune --learned NAME`.
They download any other Hub id, OWNER/NAME[@REVISION], first.
"""


def parser() -> Parser:
    """No options but --help."""
    return Parser("", ABOUT)


def run(args: Namespace) -> None:
    """Prints it."""
    print(*listing(), sep="\n")


def listing() -> Iterator[str]:
    """Lines on the shipped schedules and networks, and on the Hub's cache on this machine."""
    yield "Shipped, as L3RS(..., learned=NAME), or Celo2(..., NAME) of l3rs.learned; l3rs info NAME tells more"
    yield from _columns([(name, load(name)) for name in (*SHIPPED, *SHIPPED_WEIGHTS)])
    yield f"\nFrom the Hub, in the cache {constants.HF_HUB_CACHE}: L3RS(..., learned=NAME)"
    found = []
    for name, path in cached():
        try:
            found.append((name, load(path)))
        except CheckpointError:
            continue  # a network, or another file called model.safetensors
    yield from _columns(found) if found else ["  none; l3rs info OWNER/NAME fetches one"]
    yield "\nShipped networks: l3rs.networks.pretrained.pretrained(num_classes, weights=NAME)"
    width = max(map(len, NETWORKS))
    for network in NETWORKS:
        about = json.loads((resources.files("l3rs.networks") / "weights" / f"resnet34-w16-{network}.json").read_text())
        config, accuracy = about["config"], about["validation_accuracy"]
        size = f"{config['model']} at width {config['width']}"
        yield f"  {network:<{width}}  {size}, pretrained on {about['classes']} classes: {accuracy:.3f} on their validation images"


def _columns(schedules: Sequence[tuple[str, Learned]]) -> Iterator[str]:
    """A table, as wide as its columns need."""
    rows = [{key: printable(value) for key, value in {"name": name, **learned.facts()}.items()} for name, learned in schedules]
    for row in rows:
        row["fits"] = row["fits"].partition(":")[0]
    lines = table([tuple(rows[0]), *(tuple(row.values()) for row in rows)], left=range(len(rows[0])))
    yield from (f"  {line}" for line in lines)
