"""`l3rs list`: what is here."""

from __future__ import annotations

from jsonargparse import Namespace

from l3rs.cli.parser import Parser
from l3rs.info import listing

ABOUT = """
List the schedules that are shipped, those of l3rs in the Hub's cache on this machine, and the networks that are shipped. It
downloads nothing.

A name of the first two is what `L3RS(..., learned=NAME)`, `l3rs.load(NAME)`, `l3rs info NAME` and `l3rs finetune --learned NAME`
take. Any other Hub id, OWNER/NAME[@REVISION], is downloaded by them first.
"""


def parser() -> Parser:
    """No options but --help."""
    return Parser("", ABOUT)


def run(args: Namespace, parser: Parser) -> None:
    """Prints it."""
    print(*listing(), sep="\n")
