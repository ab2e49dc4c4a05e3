"""From a dataclass to options and back: fields become options, the docstring their help, and defaults their defaults."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ActionYesNo

from l3rs.cli.parser import Parser

METAVARS = {int: "N", float: "X"}
NOT_IN_HELP = re.compile(r" \[(?:choice|paper)[^\]]*\]")  # where a value comes from


@dataclass(frozen=True)
class Options:
    """Shows the fields of a dataclass as options.

    Attributes:
        config: the dataclass.
        prefix: before the names, as in `schedule.`.
        choices: by field, the names to choose from.
        names: by field, another name of the option.
        metavars: by field, the word for a value; by default N, X, or the name.
        texts: by field, a help to replace the docstring's, as for `--no-x`, whose docstring tells of x.
        alone: by field, the values of an option that is given without any.
    """

    config: type
    prefix: str = ""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    metavars: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    alone: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def add(self, parser: Parser, *names: str, title: str | None = None, only_given: bool = False) -> None:
        """Adds options for fields, in this order.

        Args:
            title: of their group, if they have one of their own.
            only_given: leaves None for options that are not on the command line.
        """
        where = parser if title is None else parser.add_argument_group(title)
        kinds, texts = get_type_hints(self.config), attributes(self.config)
        known = {f.name: f for f in fields(self.config)}
        for name in names:
            default = default_of(known[name])
            default = str(default) if isinstance(default, Path) else default
            text = self.texts.get(name) or texts.get(name, "")
            option = f"--{self.prefix}{self.names.get(name, name)}".replace("_", "-")
            if kinds[name] is bool:
                yes_no = ActionYesNo(no_prefix="no-")
                action = where.add_argument(option, action=yes_no, nargs="?", default=None if only_given else default, help=text)
                action.negated = default is True
                continue
            metavar = self._metavar(name, kinds[name])
            if any(choice not in text + metavar for choice in self.choices.get(name, ())):
                text += f": {', '.join(self.choices[name])}"
            action = where.add_argument(
                option,
                type=str if kinds[name] is Path else kinds[name],  # a name of a file may be no text, and only str takes that
                default=None if only_given or default is MISSING else default,
                metavar=metavar,
                help=text if "(default" in text else text + shown(default),
            )
            action.several, action.alone = element(kinds[name]), self.alone.get(name, ())

    def _metavar(self, name: str, kind: Any) -> str:
        several = element(kind)
        plain = next((k for k in (int, float) if k in (several, kind, *get_args(kind))), str)
        word = self.metavars.get(name) or METAVARS.get(plain, name.upper())
        if name in self.choices and several is None and name not in self.metavars:
            word = f"{{{','.join(self.choices[name])}}}"
        if several is None:
            return word
        return f"{word} [{word} ...]" if get_args(kind)[-1] is ... else " ".join([word] * len(get_args(kind)))


def element(kind: Any) -> type | None:
    """The type of a tuple's elements; None for other types."""
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def default_of(known: Any) -> Any:
    """The default of a field; MISSING if it has none."""
    return known.default if known.default_factory is MISSING else known.default_factory()


def shown(default: Any) -> str:
    """Formats a default for the help of an option; empty if the text tells of it."""
    if default is MISSING or default in (None, "", ()):
        return ""
    values = default if isinstance(default, tuple) else (default,)
    return f" (default: {' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)})"


def attributes(config: type) -> dict[str, str]:
    """Reads the help of each field from the docstring of a dataclass."""
    _, _, section = inspect.cleandoc(config.__doc__ or "").partition("\nAttributes:\n")
    section = section.partition("\n\n")[0]
    said: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section):
        names, _, text = " ".join(entry.split()).partition(": ")
        text = re.sub(r"\bNone (?:is|takes) ", "by default ", NOT_IN_HELP.sub("", text)).replace("`", "").rstrip(".")
        said |= dict.fromkeys(names.split(", "), text)
    return said


def values_of(config: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the fields of a dataclass from parsed options, without those that are None."""
    kinds = get_type_hints(config)
    given = {f.name: args[f.name] for f in fields(config) if args.get(f.name) is not None}
    return {name: Path(value) if kinds[name] is Path else value for name, value in given.items()}
