"""What is installed and shipped, in a few lines; and what a learned schedule is."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import fields

import torch

import l3rs
from l3rs.checkpoint import SHIPPED, SPECIALISTS, CheckpointError, load
from l3rs.controller import meta_shapes
from l3rs.kernels.native import library
from l3rs.learned.weights import LearnedWeights, read
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
        yield f"  {name:18} {len(schedule.theta):6,} meta-parameters, {knows}"
    layers = load(SPECIALISTS[0]).layers
    yield f"\nVariants, with their meta-parameters for the {len(layers)} layers of ResNet-34"
    for title, variants in (("Table 2", TABLE_2), ("Table 3", TABLE_3), ("Table 4", TABLE_4)):
        for name, config in variants.items():
            shapes = meta_shapes(config, layers if config.by_layer else ())
            yield f"  {title}  {name:46} {sum(torch.Size(shape).numel() for shape in shapes.values()):9,}"


def find(name_or_path: str) -> LearnedSchedule | LearnedWeights:
    """A schedule, shipped or from a path, or the weights of another learned optimizer, from a path. Raises CheckpointError."""
    try:
        return load(name_or_path)
    except CheckpointError as error:
        try:
            return read(name_or_path)
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
    settings = {k: v for k, v in training.pop("config", {}).items() if k not in ("name", "schedule")}  # these are above
    for key, value in {**settings, **training}.items():
        yield f"  meta-training, {key}: {value}"
