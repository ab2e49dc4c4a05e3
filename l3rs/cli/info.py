"""`l3rs info`: what is installed, or what a schedule is."""

from __future__ import annotations

from jsonargparse import Namespace

from l3rs.cli.parser import Parser
from l3rs.info import describe, overview
from l3rs.learners import load

ABOUT = """
Show what is installed and shipped, and the number of meta-parameters of every variant of the paper's tables; or, given a
schedule, what it is and how it was meta-trained.
"""


def parser() -> Parser:
    """A schedule, or nothing."""
    parser = Parser("[SCHEDULE]", ABOUT)
    text = "a name that `l3rs list` prints, a path, or a Hub id, OWNER/NAME[@REVISION]"
    parser.add_argument("schedule", type=str, nargs="?", metavar="SCHEDULE", help=text)
    return parser


def run(args: Namespace, parser: Parser) -> None:
    """Prints it."""
    print(*(overview() if args.schedule is None else describe(load(args.schedule))), sep="\n")
