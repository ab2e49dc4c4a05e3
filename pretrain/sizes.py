"""Writes into files of specialists how large the layers are of the network that they were meta-trained on.

`learned="auto"` knows the network by that. Meta-training writes it by itself; this is for files that are older.

    python pretrain/sizes.py FILE...    (without files: the shipped specialists)
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import torch

from l3rs.finetuning.workload import Workload
from l3rs.learners import sizes_of
from l3rs.schedules.find import CHECKPOINTS, SHIPPED
from l3rs.schedules.learned import training_config
from l3rs.schedules.schedule import LearnedSchedule


def write_sizes(path: Path) -> str:
    """Writes the sizes into a file, in whose record of its training the network stands; meta-parameters stay as they are, to the bit.

    Returns:
        What was done, in a line.

    Raises:
        ValueError: the file cannot be read, or its network has other layers.
    """
    learned = LearnedSchedule.read(path)
    if not learned.layers:
        return f"{path} is a generalist, and knows no network"
    config = training_config(learned.training)
    network = Workload(**{f.name: config[f.name] for f in fields(Workload) if f.name in config}).network(2)
    if tuple(name for name, _ in network.named_parameters()) != learned.layers:
        raise ValueError(f"{path} must be of the network in the record of its training, whose layers have other names")
    replace(learned, sizes=sizes_of(network)).write(path)
    written = LearnedSchedule.read(path)
    if not torch.equal(written.theta, learned.theta) or written.training != learned.training:
        raise ValueError(f"{path} must keep its meta-parameters and its record, and did not")
    return f"{path} knows its network by the sizes of {sum(size is not None for size in written.sizes)} layers"


def main() -> None:
    """Does so for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    for path in parser.parse_args().files or [CHECKPOINTS / f"{name}.safetensors" for name in SHIPPED]:
        print(write_sizes(path))


if __name__ == "__main__":
    main()
