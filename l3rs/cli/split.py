"""`l3rs split`: divides classes among purposes."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from l3rs.cli.options import Options
from l3rs.cli.parser import Parser
from l3rs.data.splits import PURPOSES
from l3rs.finetuning.splitting import SHARES, SplitConfig, as_table, make_split, wanted
from l3rs.finetuning.tasks import TaskConfig

ABOUT = """
Divide the classes of a folder of images, FOLDER/CLASS/IMAGE or FOLDER/{train,val}/CLASS/IMAGE, among four purposes, and write the
class split that `l3rs meta-train --split` takes.

A purpose asks for a share of all classes (0.5), a number of them (40), their names, or @FILE with a name a line. Names come first;
the other classes are drawn at random.
"""


def parser() -> Parser:
    """The folder, the wish of each purpose, and the size of the tasks to come."""
    parser = Parser("FOLDER [options]", ABOUT)
    parser.add_argument(
        "folder", type=str, metavar="FOLDER", help="folder of the images; without val/, a fifth of each class is for validation"
    )
    for purpose in PURPOSES:
        shown = f"{SHARES[purpose]:g}"
        text = f"classes of {purpose} (default: {shown})"
        parser.add_argument(f"--{purpose}", type=str, nargs="+", default=[shown], metavar="WANTED", help=text)
    Options(SplitConfig, metavars={"out": "FILE"}).add(parser, "seed", "name", "out")
    size = Options(TaskConfig, names={"classes": "classes-per-task"}, texts={"classes": "classes of a task"})
    size.add(
        parser,
        "classes",
        "batch_size",
        "evaluation_size",
        title="the tasks to come, which need enough classes and images",
    )
    return parser


def run(args: Namespace) -> None:
    """Draws the split, writes it, and prints it."""
    shares = {purpose: wanted(purpose, args[purpose.replace("-", "_")]) for purpose in PURPOSES}
    task = TaskConfig(args.classes_per_task, args.batch_size, args.evaluation_size)
    split, tree = make_split(SplitConfig(Path(args.folder), Path(args.out), args.name, args.seed, shares, task))
    print(f"{as_table(split, tree)}\n\nWrote {args.out}.")
