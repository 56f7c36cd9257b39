"""Writes the list of all commands for docs/reference/commands.md, from the commands themselves."""

from collections.abc import Iterator
from typing import Any, Final

import typer

from turnkeeper.terminal import connection
from turnkeeper.terminal.app import SERVE, app, load

_SHARED: Final = {*connection.NAMES, "profile", "json", "help"}


def commands() -> str:
    """Returns a section for each command of this room: what it does, its arguments and its flags, examples."""
    load()
    group: Any = typer.main.get_command(app)
    return "\n".join(_sections("turnkeeper", group))


def connection_flags() -> str:
    """Returns a table of the flags that all commands share."""
    rows = (
        f"| `--{name.replace('_', '-')}` | `{connection.PREFIX}{name.upper()}` | {text} |"
        for name, text in connection.help_texts().items()
    )
    return "\n".join(("| flag | variable | meaning |", "| --- | --- | --- |", *rows))


def _sections(path: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        if command.rich_help_panel == SERVE:
            continue
        whole = f"{path} {name}"
        yield f"## {whole}\n\n{' '.join((command.help or '').split())}\n"
        rows = [row for parameter in command.params if (row := _row(parameter))]
        if rows:
            yield "\n".join(("| argument or flag | meaning |", "| --- | --- |", *rows)) + "\n"
        if command.epilog:
            lines = [line.strip().removeprefix("$ ") for line in command.epilog.splitlines()[2:]]
            yield "\n".join(("```sh", *lines, "```", ""))
        if hasattr(command, "commands"):
            yield from _sections(whole, command)


def _row(parameter: Any) -> str:
    if parameter.name in _SHARED:
        return ""
    names = ", ".join(f"`{name}`" for name in parameter.opts if name.startswith("-"))
    default = parameter.default
    shown = f"; without it {default}" if default not in (None, "", False, ()) and not callable(default) else ""
    return f"| {names or f'`{parameter.metavar}`'} | {parameter.help}{shown} |"
