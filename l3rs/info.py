"""What is installed, shipped and downloaded, in a few lines; and what a learned schedule is."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch

import l3rs
from l3rs.checkpoint import SHIPPED, SHIPPED_WEIGHTS, SPECIALISTS, CheckpointError, load, locate
from l3rs.checkpoint import read as read_schedule
from l3rs.controller import meta_shapes
from l3rs.hub import cached
from l3rs.kernels.native import library
from l3rs.learned.weights import LearnedWeights
from l3rs.learned.weights import read as read_weights
from l3rs.schedule import LearnedSchedule
from l3rs.variants import TABLE_2, TABLE_3, TABLE_4


def overview() -> Iterator[str]:
    """Lines on this installation, the shipped schedules, and the variants of the paper's tables with their numbers of meta-parameters."""
    yield f"l3rs {l3rs.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    native = library()
    if native is None:
        yield "Step on CPU: torch operations. The native kernel, which is faster, was not built: it needs a C compiler at installation."
    else:
        threads = torch.get_num_threads() if native.parallel else 1
        yield f"Step on CPU: native kernel, {threads} thread{'s' if threads > 1 else ''}."
    yield "\nShipped schedules (l3rs info NAME tells more)"
    for name in SHIPPED:
        schedule = load(name)
        knows = f"knows {len(schedule.layers)} layers by name" if schedule.layers else "fits any network"
        yield f"  {name:{max(map(len, SHIPPED))}} {len(schedule.theta):6,} meta-parameters, {knows}"
    layers = load(SPECIALISTS[0]).layers
    yield f"\nVariants, with their meta-parameters for the {len(layers)} layers of ResNet-34"
    for title, variants in (("Table 2", TABLE_2), ("Table 3", TABLE_3), ("Table 4", TABLE_4)):
        for name, config in variants.items():
            shapes = meta_shapes(config, layers if config.by_layer else ())
            yield f"  {title}  {name:46} {sum(torch.Size(shape).numel() for shape in shapes.values()):9,}"


def listing() -> Iterator[str]:
    """Lines on the schedules and networks that are shipped, and on what the Hub's cache on this machine has for l3rs."""
    from huggingface_hub import constants

    yield "Shipped, as L3RS(..., learned=NAME), or Celo2(..., NAME) of l3rs.learned; l3rs info NAME tells more"
    yield from _columns([(name, find(name)) for name in (*SHIPPED, *SHIPPED_WEIGHTS)])
    yield f"\nFrom the Hub, in the cache {constants.HF_HUB_CACHE}: L3RS(..., learned=NAME)"
    found = []
    for name, path in cached():
        try:
            found.append((name, find(path)))
        except CheckpointError:
            continue  # a network, or whatever else is called model.safetensors
    yield from _columns(found) if found else ["  none; l3rs info OWNER/NAME fetches one"]
    yield "\nShipped networks: l3rs.backbones.pretrained(num_classes, weights=NAME)"
    for file in sorted((Path(__file__).parent / "weights").glob("*.json")):
        about = json.loads(file.read_text())
        config, accuracy = about["config"], about["validation_accuracy"]
        size = f"{config['model']} at width {config['width']}"
        yield f"  {config['split']}  {size}, pretrained on {about['classes']} classes: {accuracy:.3f} on their validation images"


def facts(learned: LearnedSchedule | LearnedWeights) -> dict[str, str]:
    """What tells schedules apart, for tables; what is not known is empty."""
    layers = learned.layers if isinstance(learned, LearnedSchedule) else ()
    config = learned.training.get("config")
    model = f"{config.get('model', 'resnet34')}, " if isinstance(config, dict) else ""
    accuracy = learned.training.get("validation_accuracy")
    return {
        "optimizer": learned.kind if isinstance(learned, LearnedWeights) else "L3RS",
        "fits": f"{model}{len(layers)} layers by name: {layers[0]} to {layers[-1]}" if layers else "any network",
        "directions": ", ".join(learned.config.directions) if isinstance(learned, LearnedSchedule) else "",
        "meta-parameters": f"{len(learned.theta):,}",
        "generations": str(learned.training.get("generation", "")),
        "meta-validation": f"{accuracy:.3f}" if isinstance(accuracy, float) else "",
    }


def _columns(schedules: Sequence[tuple[str, LearnedSchedule | LearnedWeights]]) -> Iterator[str]:
    """A table, as wide as its columns need."""
    rows = [{"name": name, **facts(learned)} for name, learned in schedules]
    for row in rows:
        row["fits"] = row["fits"].partition(":")[0]
    table = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def find(given: str | Path) -> LearnedSchedule | LearnedWeights:
    """A schedule, or the weights of another learned optimizer: shipped, from a path, or from the Hub. Raises CheckpointError."""
    path = locate(given)
    try:
        return read_schedule(path)
    except CheckpointError as error:
        try:
            return read_weights(path)
        except CheckpointError:
            raise error from None


def describe(learned: LearnedSchedule | LearnedWeights) -> Iterator[str]:
    """Lines on one schedule, or on the weights of another learned optimizer: size, layers, config, and how it was meta-trained."""
    yield f"{learned.name}: {len(learned.theta):,} meta-parameters"
    if isinstance(learned, LearnedWeights):
        yield f"  optimizer: {learned.kind}"
        yield f"  lr: {learned.lr:g}"
    else:
        if learned.layers:
            yield f"  layers: {len(learned.layers)} by name, {learned.layers[0]} to {learned.layers[-1]}"
        for field in fields(learned.config):
            yield f"  {field.name}: {getattr(learned.config, field.name)}"
    training = dict(learned.training)
    config = training.pop("config", {})
    settings = {k: v for k, v in config.items() if k not in ("name", "schedule")} if isinstance(config, dict) else {}  # these are above
    for key, value in {**settings, **training}.items():
        yield f"  meta-training, {key}: {value}"
