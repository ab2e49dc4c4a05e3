"""`l3rs meta-train`: searches the meta-parameters of a schedule."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from l3rs.cli.cache import WORKLOAD
from l3rs.cli.options import Options, values_of
from l3rs.cli.parser import Parser
from l3rs.controller.config import CONTROLLERS, UNITS, L3RSConfig
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import PRECISIONS
from l3rs.finetuning.variety import ZooConfig
from l3rs.finetuning.workload import Workload
from l3rs.learners import LEARNERS, refuse_unused
from l3rs.meta.config import CENTER_OPTIMIZERS, DEVICES, DISTRIBUTIONS, OBJECTIVES, SEARCHES, GradientConfig, MetaTrainConfig, NESConfig
from l3rs.processes import exit_code

ABOUT = """
Meta-train a schedule by evolution strategies or meta-gradients, on Icons25 or on classes of your own, and write the schedule that did
best on meta-validation classes, its curve and its config to --out.

Stop it when you like: the same command resumes it. Settings come from --config and from the options; the last one counts. Most runs
need no more than the first group.
"""
BASIC_IMAGES = ("split", "data", "model", "weights", "from_scratch")
BASIC_SEARCH = ("optimizer", "generations", "steps", "workers")
PARTS: Mapping[str, tuple[type, str]] = {
    "schedule": (L3RSConfig, "advanced options of the schedule (--optimizer l3rs)"),
    "nes": (NESConfig, "advanced options of the evolution strategies"),
    "gradient": (GradientConfig, "advanced options of meta-gradients (--search gradient or both)"),
    "task": (TaskConfig, "advanced options of the tasks"),
    "zoo": (ZooConfig, "advanced options of many networks (in the place of one and of the options of the tasks)"),
}
CHOICES = {
    "search": SEARCHES, "optimizer": tuple(LEARNERS), "steps_distribution": DISTRIBUTIONS, "objective": OBJECTIVES, "precision": PRECISIONS,
    "device": DEVICES,
}  # fmt: skip
PART_CHOICES = {"controller": CONTROLLERS, "unit": UNITS, "optimizer": CENTER_OPTIMIZERS}


def parser() -> Parser:
    """Every field of the config as an option: first the basic ones, then the advanced groups."""
    parser = Parser("--out FOLDER [--config FILE] [options]", ABOUT)
    parser.add_config_file("a YAML file of settings, such as those in configs/meta_train; may be given again")
    parser.add_argument("--out", type=str, required=True, metavar="FOLDER", help="folder of the run (required)")
    search = Options(
        MetaTrainConfig, choices=CHOICES, metavars={"optimizer": "NAME", "start": "FILE|NAME", "ray_address": "HOST:PORT"},
        texts={"specialist": "learns nothing by layer name: a generalist, which fits any network"},
    )  # fmt: skip
    search.add(parser, "name")
    WORKLOAD.add(parser, *BASIC_IMAGES)
    search.add(parser, *BASIC_SEARCH)
    shown = {"name", "workload", *BASIC_IMAGES, *BASIC_SEARCH, *PARTS}
    WORKLOAD.add(parser, *(f.name for f in fields(Workload) if f.name not in shown), title="advanced options of the images and the network")
    search.add(parser, *(f.name for f in fields(MetaTrainConfig) if f.name not in shown), title="advanced options of the search")
    for name, (part, title) in PARTS.items():
        options = Options(part, f"{name}.", PART_CHOICES, metavars={"directions": "NAME"}, texts={"classes": "classes of a task"})
        options.add(parser, *(f.name for f in fields(part)), title=title)
    return parser


def config_of(args: Namespace) -> MetaTrainConfig:
    """Makes the config from parsed options."""
    given: dict[str, Any] = vars(args)
    parts = {name: part(**values_of(part, vars(given[name]))) for name, (part, _) in PARTS.items()}
    own = {name: value for name, value in values_of(MetaTrainConfig, given).items() if name not in PARTS}
    config = MetaTrainConfig.of(**values_of(Workload, given), **own, **parts)
    if config.search == "gradient":  # a study, which gives its settings to searches of both kinds, may have them
        refuse_unused(replace(config.nes, seed=NESConfig().seed), "search gradient", "nes.")
    return config


def run(args: Namespace) -> None:
    """Meta-trains, or resumes."""
    config = config_of(args)
    from l3rs.meta.folder import last_generation  # only now that the settings are right: EvoTorch takes seconds
    from l3rs.meta.problem import MetaTrainingError
    from l3rs.meta.train import meta_train

    out = Path(args.out)
    try:
        chosen = meta_train(config, args.out)
    except MetaTrainingError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        print(f"\nStopped. {args.out} holds the run up to generation {last_generation(out)}; the same command resumes it.")
        sys.exit(exit_code())
    accuracy = chosen.training["validation_accuracy"]
    print(f"Wrote {out / chosen.name}.safetensors: generation {chosen.training['generation']}, {accuracy:.3f} on meta-validation.")
