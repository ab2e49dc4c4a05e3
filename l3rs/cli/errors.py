"""Error messages of the command: in one line, in plain words, with a guess at the right word."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import NoReturn

from l3rs.text import meant, printable

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list, as in [10,100]"}
AROUND = 40  # characters shown on either side of one that cannot be written


def fail(message: str) -> NoReturn:
    """Prints an error in one line, and ends with exit code 2."""
    print(f"l3rs: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)


def of_an_error(error: Exception) -> str:
    """Words an error, and names its file."""
    if isinstance(error, UnicodeEncodeError):
        near = error.object[max(0, error.start - AROUND) : error.end + AROUND]
        return f"{near!r} has a character that cannot be written as {error.encoding}; give another name"
    if isinstance(error, RecursionError):
        return "a file is nested too deep to be read"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def reworded(message: str, options: Iterable[str]) -> str:
    """Rewords the messages of argparse and jsonargparse; leaves others as they are."""
    if found := re.match(r"""Parser key "(\S+?)"(?: element \d+)?: .*?Expected a <class '(\w+)'>.*?(?:Got|Given) value: (.*)""", message):
        if found[2] in KINDS:
            return f"{_option(found[1])} must be {KINDS[found[2]]} (got {found[3]})"
    elif found := re.match(r"""Parser key "(\S+)": Expected a tuple with (\d+) elements\. Got value: \[(.*)\]""", message):
        return f"{_option(found[1])} must be {found[2]} values (got {found[3] or 'none'})"
    elif found := re.match(r"argument (--[^\s/]+)/\S+: invalid _boolean_type value: '(.*)'", message):
        return f"{found[1]} must be true or false (got {found[2]})"
    elif found := re.match(r"argument (--[^\s/]+)\S*: expected (.*)", message):
        return f"{found[1]} must be followed by {found[2].replace('argument', 'value')}"
    elif found := re.match(r"[Uu]nrecognized arguments: (--[^\s=]+)", message):
        return f"no option is called {found[1]}{meant(found[1], options)}"
    elif found := re.match(r"Option '(\S+)' is not accepted", message):
        return f"no setting is called {found[1]}{meant(found[1], [word[2:].replace('-', '_') for word in options])}"
    return message


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"
