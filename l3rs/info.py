"""What is installed, shipped and downloaded, in a few lines; and what a learned schedule is."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from l3rs._version import __version__
from l3rs.controller.decide import meta_shapes
from l3rs.learners import load
from l3rs.optimizer.kernels.native import library
from l3rs.schedules import find
from l3rs.schedules.find import SHIPPED, SHIPPED_WEIGHTS, SPECIALISTS
from l3rs.schedules.hub import cached
from l3rs.schedules.learned import Learned, training_config
from l3rs.schedules.seal import CheckpointError
from l3rs.schedules.variants import TABLE_2, TABLE_3, TABLE_4
from l3rs.text import printable, table


def overview() -> Iterator[str]:
    """Lines on this installation, the shipped schedules, and the variants of the paper's tables with their numbers of meta-parameters."""
    yield f"l3rs {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    native = library()
    if native is None:
        yield "Step on CPU: torch operations. The native kernel, which is faster, was not built: it needs a C compiler at installation."
    else:
        threads = torch.get_num_threads() if native.parallel else 1
        yield f"Step on CPU: native kernel, {threads} thread{'s' if threads > 1 else ''}."
    yield "\nShipped schedules (l3rs info NAME tells more)"
    for name in SHIPPED:
        schedule = find.load(name)
        knows = f"knows {len(schedule.layers)} layers by name" if schedule.layers else "fits any network"
        yield f"  {name:{max(map(len, SHIPPED))}} {len(schedule.theta):6,} meta-parameters, {knows}"
    layers = find.load(SPECIALISTS[0]).layers
    yield f"\nVariants, with their meta-parameters for the {len(layers)} layers of ResNet-34"
    for title, variants in (("Table 2", TABLE_2), ("Table 3", TABLE_3), ("Table 4", TABLE_4)):
        for name, config in variants.items():
            shapes = meta_shapes(config, layers if config.by_layer else ())
            yield f"  {title}  {name:46} {sum(torch.Size(shape).numel() for shape in shapes.values()):9,}"


def listing() -> Iterator[str]:
    """Lines on the schedules and networks that are shipped, and on what the Hub's cache on this machine has for l3rs."""
    from huggingface_hub import constants

    yield "Shipped, as L3RS(..., learned=NAME), or Celo2(..., NAME) of l3rs.learned; l3rs info NAME tells more"
    yield from _columns([(name, load(name)) for name in (*SHIPPED, *SHIPPED_WEIGHTS)])
    yield f"\nFrom the Hub, in the cache {constants.HF_HUB_CACHE}: L3RS(..., learned=NAME)"
    found = []
    for name, path in cached():
        try:
            found.append((name, load(path)))
        except CheckpointError:
            continue  # a network, or whatever else is called model.safetensors
    yield from _columns(found) if found else ["  none; l3rs info OWNER/NAME fetches one"]
    yield "\nShipped networks: l3rs.networks.pretrained.pretrained(num_classes, weights=NAME)"
    for file in sorted((Path(__file__).parent / "networks" / "weights").glob("*.json")):
        about = json.loads(file.read_text())
        config, accuracy = about["config"], about["validation_accuracy"]
        size = f"{config['model']} at width {config['width']}"
        yield f"  {config['split']}  {size}, pretrained on {about['classes']} classes: {accuracy:.3f} on their validation images"


def _columns(schedules: Sequence[tuple[str, Learned]]) -> Iterator[str]:
    """A table, as wide as its columns need."""
    rows = [{key: printable(value) for key, value in {"name": name, **learned.facts()}.items()} for name, learned in schedules]
    for row in rows:
        row["fits"] = row["fits"].partition(":")[0]
    lines = table([tuple(rows[0]), *(tuple(row.values()) for row in rows)], left=range(len(rows[0])))
    yield from (f"  {line}" for line in lines)


def describe(learned: Learned) -> Iterator[str]:
    """Lines on one schedule, or on the weights of another learned optimizer: size, settings, and how it was meta-trained."""
    yield f"{printable(learned.name)}: {len(learned.theta):,} meta-parameters"
    for name, value in learned.settings().items():
        yield f"  {name}: {printable(str(value))}"
    training = {k: v for k, v in learned.training.items() if k != "config"}
    settings = {k: v for k, v in training_config(learned.training).items() if k not in ("name", "schedule")}  # these are above
    for key, value in {**settings, **training}.items():
        yield f"  meta-training, {printable(str(key))}: {printable(str(value))}"
