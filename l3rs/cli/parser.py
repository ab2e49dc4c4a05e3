"""A parser whose help reads as a person writes it, and whose errors are one line."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import jsonargparse
from jsonargparse import ActionYesNo, Namespace

from l3rs.cli.config_file import check
from l3rs.cli.errors import fail, reworded

NEGATIVE = re.compile(r"-\.?(\d|inf|nan)", re.IGNORECASE)  # what begins so is a number: -1e-3, -.5, -.inf


class Formatter(argparse.HelpFormatter):
    """Shows help texts as they are written, booleans by the word that changes them, and paragraphs."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _expand_help(self, action: argparse.Action) -> str:
        return action.help or ""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, ActionYesNo):
            return action.option_strings[getattr(action, "negated", False)]
        return super()._format_action_invocation(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
        return "\n\n".join(textwrap.fill(part, width, initial_indent=indent, subsequent_indent=indent) for part in paragraphs)


class Parser(jsonargparse.ArgumentParser):
    """The options of a command.

    Args:
        usage: the words after the command's name.
        about: paragraphs above the options.
    """

    def __init__(self, usage: str, about: str) -> None:
        self._words_after, self._file, self._last_file = usage, "", ""
        super().__init__(description=about, formatter_class=Formatter, add_help=False, print_config="--print-config", allow_abbrev=False)
        self._negative_number_matcher = NEGATIVE
        self._positionals.title, self._optionals.title = "arguments", "options"
        self.add_argument("-h", "--help", action="help", help="show this help, and exit")

    def add_config_file(self, text: str) -> None:
        """Adds `--config FILE`."""
        self.add_argument("--config", action="config", metavar="FILE", help=text)
        (shown,) = (action for action in self._actions if "--print-config" in action.option_strings)
        shown.help, shown.metavar = "print all settings as YAML, for a file, and exit", ""

    def format_usage(self) -> str:
        return f"usage: {self.prog} {self._words_after}".rstrip() + "\n"

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        self.usage = f"{self.prog} {self._words_after}".rstrip()
        return super().format_help(*args, **kwargs)

    def options(self) -> list[str]:
        """All options, by their names."""
        return [word for action in self._actions for word in action.option_strings]

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Reads words of a command line; `--batch_size` is `--batch-size`, and `--steps 10 25` is `--steps [10,25]`."""
        words = list(args or ())
        wants_help = {"-h", "--help"} & {*words}  # before any error, as in `--data --help`
        return super().parse_args(["--help"] if wants_help else self._as_it_parses(words), *rest, **kwargs)

    def parse_path(self, path: Any, *rest: Any, **kwargs: Any) -> Namespace:
        """Reads `--config FILE`; an error names the file."""
        self._file = self._last_file = f"{path}: "
        settings: Namespace = super().parse_path(path, *rest, **kwargs)
        self._file = ""
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        file = self._last_file if "is not accepted" in message else self._file  # unknown keys come up after the file is read
        fail(file + reworded(" ".join(str(message).split()), self.options()))

    def _as_it_parses(self, words: Sequence[str]) -> list[str]:
        lists = {word: action for action in self._actions for word in action.option_strings if getattr(action, "several", None)}
        folders = {word for action in self._actions for word in action.option_strings if action.metavar == "FOLDER"}
        out: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                name = name.replace("_", "-")
                word = name + equals + value
            if name == "--config" and (equals or rest):
                check(value if equals else rest[0])
            if name in folders and (not value if equals else rest[:1] == [""]):  # else it would be this one, as from an unset variable
                self.error(f"{name} must be the path of a folder (got '')")
            if name in lists:
                values = [value] if value else []
                while not equals and rest and (not rest[0].startswith("-") or NEGATIVE.match(rest[0])):
                    values.append(rest.pop(0))
                values = values or list(lists[name].alone if not equals else ())  # type: ignore[attr-defined]
                if not values:
                    self.error(f"argument {name}: expected at least one value")
                word = f"{name}={as_list(values, texts=lists[name].several is str)}"  # type: ignore[attr-defined]
            out.append(word)
        return out


def as_list(values: Sequence[str], texts: bool) -> str:
    """Writes words as jsonargparse reads a list; one word may be a list already."""
    if len(values) == 1 and values[0].startswith("["):
        return values[0]
    return json.dumps(values) if texts else f"[{','.join(values)}]"
