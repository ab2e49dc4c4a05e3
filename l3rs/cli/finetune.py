"""`l3rs finetune`: the comparison on Icons, or with --data, a folder of images."""

from __future__ import annotations

import sys
from dataclasses import fields

from jsonargparse import Namespace

from l3rs.cli.options import Options, values_of
from l3rs.cli.parser import Parser
from l3rs.data.transform import AUGMENTATIONS
from l3rs.finetuning.arms import OURS
from l3rs.finetuning.compare import OPTIMIZERS, FinetuneConfig, Results, finetune, schedule_for
from l3rs.finetuning.tasks import HEADS
from l3rs.networks.pretrained import shipped_weights
from l3rs.own_images.config import BALANCES, LOGGERS, PRECISIONS, OwnImagesConfig
from l3rs.own_images.rivals import COMPARED, UNTUNED, there
from l3rs.processes import exit_code
from l3rs.schedules.learned import identity
from l3rs.schedules.seal import fingerprint

USAGE = "[options]\n       l3rs finetune --data FOLDER [options]"
ABOUT = """
Without --data: fine-tune the shipped ResNet-34 on new classes of Icons with the learned schedule and with tuned baselines, on the
same tasks; print a table, and write runs.csv, curves.csv and finetune.png to --out. Finished runs are kept.

With --data: fine-tune a model of timm on your own images, FOLDER/CLASS/IMAGE or FOLDER/{train,val}/CLASS/IMAGE, with the learned
schedule; write the best weights, the confusion matrix, the curves, and the schedule's decisions to --out. If it stops, the same
command resumes it.
"""
BOTH = {
    "steps": "steps of training; without --data one or more lengths, each a run of its own (default: 10 25 50; with --data by the images)",
    "learned": "the schedule: auto, a name that `l3rs list` prints, a path, or a Hub id (default: auto)",
    "seed": "seed of every random draw; without --data, tasks come from the seeds N, N + 1, ... (default: 0)",
    "out": "folder of the results (default: l3rs-out; with --data l3rs-NAME, after the images' folder)",
    "workers": "without --data, processes, 0 being one for each core; with --data, those that decode (default: 0, or by the machine)",
}
"""Options of both, and their help."""


def parser() -> Parser:
    """Options of both configs; None marks those that are not given."""
    parser = Parser(USAGE, ABOUT)
    comparison = Options(
        FinetuneConfig,
        choices={"optimizers": OPTIMIZERS, "head": HEADS},
        metavars={"out": "FOLDER", "optimizers": "NAME", "learned": "NAME"},
        texts=BOTH,
    )
    own = Options(
        OwnImagesConfig,
        choices={"compare": COMPARED, "precision": PRECISIONS, "balance": BALANCES, "logger": LOGGERS, "augment": AUGMENTATIONS},
        metavars={"data": "FOLDER", "compare": "NAME[=LR[,LR]]", "weights": "FILE", "labels": "FILE", "model": "NAME", "logger": "NAME"},
        texts={"head_start": "begins with a random head", "refresh": "judges by BatchNorm's running statistics"},
        alone={"compare": UNTUNED},
    )
    comparison.add(parser, *BOTH, only_given=True)
    comparison.add(parser, *only_of(FinetuneConfig), title="the comparison (without --data)", only_given=True)
    own.add(parser, *only_of(OwnImagesConfig), title="your own images (with --data)", only_given=True)
    return parser


def only_of(config: type) -> list[str]:
    """Lists the fields of one config that the other lacks."""
    return [f.name for f in fields(config) if f.name not in BOTH]


def run(args: Namespace) -> None:
    """Fine-tunes on Icons, or on your own images."""
    given = {name for name, value in vars(args).items() if value is not None}
    other = only_of(OwnImagesConfig) if args.data is None else only_of(FinetuneConfig)
    wrong = [name for name in other if name in given]
    if wrong and args.data is None:
        raise ValueError(f"{_shown(wrong[0], args)} goes with --data: give --data FOLDER, the folder of your images, or leave it out")
    if wrong:
        raise ValueError(f"{_shown(wrong[0], args)} goes with the comparison on Icons: leave it out, or --data")
    empty = [name for name in ("steps", "optimizers") if args[name] == ()]
    if empty:
        raise ValueError(f"--{empty[0]} must be followed by at least one value")
    if args.data is None:
        values = values_of(FinetuneConfig, vars(args))
        if "optimizers" in values:
            values["optimizers"] = tuple(dict.fromkeys(values["optimizers"]))  # each once
        compare(FinetuneConfig(**values))
    elif args.steps is not None and len(args.steps) != 1:
        raise ValueError(f"--steps must be one whole number with --data (got {' '.join(map(str, args.steps))})")
    else:
        values = values_of(OwnImagesConfig, vars(args)) | ({} if args.steps is None else {"steps": args.steps[0]})
        if values.get("compare") == UNTUNED:
            values["compare"], left_out = there(UNTUNED)
            print(*left_out, sep="\n", end="\n" * bool(left_out), file=sys.stderr)
            values["compare"] = tuple(values["compare"])
        on_own_images(OwnImagesConfig(**values))


def compare(config: FinetuneConfig) -> None:
    """The comparison on new classes of Icons."""
    chosen = schedule_for(config)
    network = fingerprint(*(t for _, t in sorted(shipped_weights().items())))[:12]
    about = {"network": network, "head": config.head, "statistics": "recent"}
    if OURS in config.optimizers:
        about["schedule"] = identity(chosen.schedule)
    with Results(config.out, about) as results:
        try:
            finetune(config, chosen, results)
        except KeyboardInterrupt:
            print(f"\nStopped. {config.out} holds the finished runs; the same command resumes it.")
            sys.exit(exit_code())


def on_own_images(config: OwnImagesConfig) -> None:
    """The run on a folder of images."""
    from l3rs.own_images.run import Stopped, finetune_own  # only now that the settings are right: Lightning takes seconds

    try:
        finetune_own(config)
    except Stopped as stop:
        where = "" if stop.step is None else f" at step {stop.step}"
        print(f"\nStopped{where}. {config.folder} holds the run; the same command resumes it from the last checkpoint.")
        sys.exit(stop.code)


def _shown(name: str, args: Namespace) -> str:
    """Spells an option as it was given."""
    return f"--{'no-' * (args[name] is False)}{name}".replace("_", "-")
