"""Plan a meta-training at the paper's scale: operations, processes, days, bytes; from a config and one measured rate.

    python evaluate/meta_plan.py --config configs/meta_train/imagenet25_l3rs.yaml --images-per-second 2000

The rate is that of forward and backward pass on one GPU, which you measure; all runs are counted, of generations, of validations and of
the choice at the end. A process runs one candidate at a time, whichever is free takes the next, and all candidates of a generation run the
same tasks: so a generation takes as many rounds as the candidates fill the processes, and no more processes help than there are candidates.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import yaml
from options import ROOT
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from l3rs.data.embedded import SETS
from l3rs.finetuning.variety import whole_number
from l3rs.learners import LEARNERS
from l3rs.meta.config import MetaTrainConfig, read_config
from l3rs.networks.create import create
from l3rs.text import first_line


def network_of(config: MetaTrainConfig) -> nn.Module:
    """The network, without its weights."""
    return create(config.workload.model, config.workload.width, config.workload.in_chans, config.task.classes, config.workload.model_args)


def operations(config: MetaTrainConfig) -> tuple[float, float]:
    """Floating-point operations of a forward, and of a forward and backward pass, for one image."""
    network = network_of(config)
    side = config.workload.input_side
    inputs = torch.randn(2, config.workload.in_chans, side, side)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(inputs)
    with FlopCounterMode(display=False) as both:
        F.cross_entropy(network(inputs), torch.tensor([0, 1])).backward()
    return forward.get_total_flops() / 2, both.get_total_flops() / 2


def meta_parameters(config: MetaTrainConfig) -> int:
    """How many numbers a candidate is."""
    return len(LEARNERS[config.optimizer].start(config.beginning, "", lambda: network_of(config)).theta)


def plan(config: MetaTrainConfig, rate: float) -> str:
    """The plan, as people read it.

    Args:
        rate: images a second through forward and backward pass on one GPU.
    """
    forward, both = operations(config)
    t, n = config.task, meta_parameters(config)
    drawn = [whole_number(config.steps, (i + 0.5) / 1000, config.steps_distribution == "log-uniform") for i in range(1000)]
    steps = round(sum(drawn) / len(drawn))
    runs = config.nes.population * config.meta_batch
    run_images = steps * t.batch_size + t.evaluation_size * forward / both  # an evaluation is a forward pass
    validated = 1 + math.ceil(config.generations / config.validate_every)  # before the first generation, and after the last one too
    validations = validated * config.validation_tasks + min(config.finalists, validated) * config.final_tasks
    images = config.generations * runs * run_images + validations * (
        sum(config.validation_steps) * t.batch_size + len(config.validation_steps) * t.evaluation_size * forward / both
    )
    candidate = config.meta_batch * run_images / rate
    lines = [
        f"{config.workload.model} at {config.workload.input_side} px: {both / 1e9:.1f} billion operations an image, forward and backward; "
        f"{n:,} meta-parameters",
        f"a step, batch {t.batch_size}: {both * t.batch_size / 1e12:.2f} trillion; a run of {steps:g} steps with its evaluation: "
        f"{both * run_images / 1e12:.0f} trillion",
        f"a generation, {config.nes.population} candidates x {config.meta_batch} tasks: {both * run_images * runs / 1e15:.1f} quadrillion, "
        f"{runs * run_images / rate / 3600:.2f} GPU hours at {rate:g} images a second",
        f"{config.generations} generations and their validations: {images / rate / 86400:.0f} GPU days; in four days, "
        f"{math.ceil(images / rate / 86400 / 4)} GPUs",
        f"to a process for each candidate: {4 * n / 1e3:.1f} kB of meta-parameters, {16 * config.meta_batch} bytes of task seeds and "
        "lengths; back: 12 bytes; images: none",
        "",
        "processes  rounds  seconds a generation  busy",
    ]
    sizes = sorted({2**i for i in range(1, 10) if 2**i <= 2 * config.nes.population} | {config.nes.population})
    for processes in sizes:
        rounds = math.ceil(config.nes.population / processes)
        lines.append(f"{processes:>9}  {rounds:>6}  {rounds * candidate:>20.0f}  {config.nes.population / (rounds * processes):>4.0%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "meta_train" / "imagenet25_l3rs.yaml", help="of meta-training")
    parser.add_argument("--images-per-second", type=float, required=True, help="through forward and backward pass on one GPU")
    args = parser.parse_args()
    if not 0 < args.images_per_second < math.inf:
        parser.error(f"--images-per-second must be positive and finite (got {args.images_per_second})")
    if not args.config.is_file():
        parser.error(f"--config must be a file (got {args.config})")
    try:
        split = yaml.safe_load(args.config.read_text()).get("split", "icons")
        config = read_config(args.config, **({} if split in SETS else {"data": "."}))  # no image is read
        if config.search != "nes" or config.zoo.file is not None:
            raise ValueError(
                f"the plan is of evolution strategies on one network; {args.config} has search {config.search}, zoo.file {config.zoo.file}"
            )
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        parser.error(first_line(error))
    print(plan(config, args.images_per_second))


if __name__ == "__main__":
    main()
