"""`l3rs COMMAND ...`: finds the command, imports only its libraries, and ends every error in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from l3rs._version import __version__
from l3rs.cli.errors import fail, of_an_error
from l3rs.extras import what_to_install
from l3rs.processes import exit_code, on_sigterm, terminate
from l3rs.text import meant

if TYPE_CHECKING:
    from l3rs.cli.parser import Parser

COMMANDS = {
    "finetune": "fine-tune on new classes, against tuned baselines; with --data, on your own images",
    "predict": "classify images with a model that finetune --data has trained",
    "evaluate": "judge such a model on labelled images",
    "export": "write such a model as ONNX or torch.export, or push it to the Hub",
    "split": "divide the classes of your own images among meta-training and evaluation",
    "cache": "decode your own images once, before meta-training",
    "meta-train": "meta-train a schedule",
    "info": "show this installation, or one schedule",
    "list": "list the schedules and networks on this machine",
}
"""Commands, and the line about each in `l3rs --help`."""
CLOSED_PIPE = 128 + 13  # as after SIGPIPE


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `l3rs COMMAND ...`; wrong input ends in one line and exit code 2."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend, which its shell commands inherit, may not be installed here
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as with `>&-` and by some that start services
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (as long as the process)
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # so that no name stops the command
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            with on_sigterm(terminate):
                _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:  # as in `l3rs list | head -1`
        if not _stdout_is_closed():
            fail(of_an_error(error))
        sys.exit(CLOSED_PIPE)
    except ModuleNotFoundError as error:
        missing = what_to_install(f"l3rs {words[0]}", error.name or "")
        if missing is None:
            raise
        fail(missing)
    except KeyboardInterrupt:  # the command has saved nothing to resume from
        print("\nStopped.")
        sys.exit(exit_code())
    except (ValueError, OSError, RecursionError) as error:
        fail(of_an_error(error))


def parser_of(command: str) -> Parser:
    """The options of a command."""
    parser: Parser = _module(command).parser()
    parser.prog = f"l3rs {command}"
    return parser


def _module(command: str) -> ModuleType:
    """The file of a command, which imports the libraries that it needs."""
    return import_module(f"l3rs.cli.{command.replace('-', '_')}")


def _run(words: Sequence[str]) -> None:
    if words[:1] == ["--version"]:
        print(f"l3rs {__version__}")
        return
    if words[:1] in ([], ["--help"], ["-h"]):
        width = max(map(len, COMMANDS))
        print("usage: l3rs COMMAND [options]\n\nFine-tune with a learned schedule.\n\ncommands:")
        print(*(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()), sep="\n")
        print("\n`l3rs COMMAND --help` explains the options of a command, `l3rs --version` prints the version.")
        return
    command = words[0]
    if command not in COMMANDS:
        fail(f"no command is called {command!r}{meant(command, COMMANDS)} (there are {', '.join(COMMANDS)})")
    for word in words:
        if "\0" in word:
            fail(f"an argument must have no NUL character (got {word!r})")
    _module(command).run(parser_of(command).parse_args(words[1:]))


def _stdout_is_closed() -> bool:
    """Whether nobody reads stdout any more. If so, it discards the rest, so that Python's own last flush is quiet."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
