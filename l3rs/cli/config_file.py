"""`--config FILE`: checks a YAML file of settings before jsonargparse reads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 50  # settings are nested twice; a reader of YAML calls itself once a level


def check(given: str) -> None:
    """Checks that a file holds settings, or that the word itself does, as `{generations: 2}`.

    Raises:
        ValueError: there is no such file, or it holds no settings; the message names it.
    """
    inline = given.lstrip().startswith("{")
    name = "--config" if inline else given
    try:
        text = given if inline else Path(given).read_text(encoding="utf-8")
        if deepest(text) > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        settings = yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror})") from None
    except UnicodeError:
        raise ValueError(f"{name} holds no settings (it is not UTF-8)") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{name} holds no settings ({error})") from None
    if settings is None:
        raise ValueError(f"{name} is empty; it must hold settings, as in `generations: 100`")
    if not isinstance(settings, dict):
        raise ValueError(f"{name} must hold settings, as in `generations: 100` (got {str(settings)[:40]!r})")
    for word in strings([settings]):
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in word):
            raise ValueError(f"{name} holds {word!r}, which has a character that no name may have")


def deepest(text: str) -> int:
    """Measures how deep YAML is nested, without recursion."""
    depth = most = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        most = max(most, depth)
        if most > DEEPEST:
            break
    return most


def strings(values: Iterable[Any]) -> Iterable[str]:
    """Yields all strings among values, also in lists and mappings."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from strings([*value, *value.values()])
        elif isinstance(value, list):
            yield from strings(value)
