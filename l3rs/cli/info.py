"""`l3rs info`: this installation, or one schedule."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch
from jsonargparse import Namespace

from l3rs._version import __version__
from l3rs.cli.parser import Parser
from l3rs.controller.decide import meta_shapes
from l3rs.learners import load
from l3rs.optimizer.kernels.native import library
from l3rs.optimizer.kernels.triton_kernel import unusable
from l3rs.schedules import find
from l3rs.schedules.find import SHIPPED, SPECIALISTS
from l3rs.schedules.learned import Learned, training_config
from l3rs.schedules.variants import TABLE_2, TABLE_3, TABLE_4
from l3rs.text import printable

ABOUT = """
Show this installation, the shipped schedules, and the number of meta-parameters of every variant in the paper's tables. Given a
schedule, show its settings and its meta-training.
"""


def parser() -> Parser:
    """A schedule, or nothing."""
    parser = Parser("[SCHEDULE]", ABOUT)
    text = "a name that `l3rs list` prints, a path, or a Hub id, OWNER/NAME[@REVISION]"
    parser.add_argument("schedule", type=str, nargs="?", metavar="SCHEDULE", help=text)
    return parser


def run(args: Namespace) -> None:
    """Prints it."""
    print(*(overview() if args.schedule is None else describe(load(args.schedule))), sep="\n")


def overview() -> Iterator[str]:
    """Lines on this installation, the shipped schedules, and the variants in the paper's tables."""
    yield f"l3rs {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    native = library()
    if native is None:
        yield "Step on CPU: torch operations. The native kernel, which is faster, was not built: it needs a C compiler at installation."
    else:
        threads = torch.get_num_threads() if native.parallel else 1
        yield f"Step on CPU: native kernel, {threads} thread{'s' if threads > 1 else ''}."
    if torch.cuda.is_available():
        why = unusable(torch.device("cuda"))
        yield "Step on CUDA: Triton." if why is None else f"Step on CUDA: torch operations, which are slower. {why}."
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


def describe(learned: Learned) -> Iterator[str]:
    """Lines on one schedule, or on the weights of another learned optimizer: its size, settings and meta-training."""
    yield f"{printable(learned.name)}: {len(learned.theta):,} meta-parameters"
    for name, value in learned.settings().items():
        yield f"  {name}: {printable(str(value))}"
    training = {k: v for k, v in learned.training.items() if k != "config"}
    settings = {k: v for k, v in training_config(learned.training).items() if k not in ("name", "schedule")}  # these are above
    for key, value in {**settings, **training}.items():
        yield f"  meta-training, {printable(str(key))}: {printable(str(value))}"
