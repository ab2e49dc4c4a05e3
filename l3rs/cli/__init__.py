"""The command `l3rs`: one file a command, from the dataclass of its settings to options and back."""

from l3rs.cli.dispatch import COMMANDS, main, parser_of

__all__ = ["COMMANDS", "main", "parser_of"]
