"""The front of all commands: those of this room, and the names of those that run or check a server."""

import contextlib
import inspect
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Final

import typer

from turnkeeper.telemetry.redact import Redactor
from turnkeeper.terminal.console import standard_error
from turnkeeper.terminal.exit_codes import ExitCode

HELP: Final = "Keep the turns of agent conversations: talk to agents, decide on their tool calls, run the service."
EXAMPLES: Final = """\
Examples:

  turnkeeper dev                 a server with all it needs, on one screen
  turnkeeper chat clerk          talk to an agent
  turnkeeper sessions            what there is
  turnkeeper show k3f9q2         what happened in a session
  turnkeeper approvals --watch   what waits for you
  turnkeeper approve             show what waits, and decide
  turnkeeper doctor              what keeps a server from its work

Each command has a page of its own: turnkeeper COMMAND --help

The service is that of --address, TURNKEEPER_CLIENT_ADDRESS or a profile; without one 127.0.0.1:50051.

Exit status: 0 done, 1 a turn failed or a check found something, \
2 an argument is wrong, 3 the turn waits for a person, \
4 nothing answered, 5 the service refused it, 130 Ctrl-C.
"""
USE, DECIDE, LOOK, SERVE = "Talk and read", "Decide", "Look", "Serve"
"""The panels of the help, in their order."""
MODULES: Final = (
    "chat",
    "sessions",
    "show",
    "approvals",
    "delegations",
    "decide",
    "remembered",
    "turns",
    "agents",
    "policy",
    "version",
)
"""The modules with commands, in the order of the help. A new one is a name here."""

app: Final = typer.Typer(
    name="turnkeeper",
    help=HELP,
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def run(arguments: Sequence[str], server_commands: Sequence[tuple[str, str]]) -> int:
    """Runs a command, and returns the exit status.

    `server_commands`: name and help of each command that the caller runs itself. They are here for help and completion.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes onto the screen past us, when a server ends
    load()
    _add_server_commands(tuple(server_commands))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test has put something else in its place
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        status: int | None = app(list(arguments) or ["--help"], prog_name="turnkeeper", standalone_mode=False)
    except typer.TyperException as error:
        _report(error)
        return ExitCode.USAGE
    except typer.Abort:
        return ExitCode.INTERRUPTED
    return status or ExitCode.OK


def load() -> None:
    """Adds every command of this room to the application: its modules do so themselves."""
    for module in MODULES:
        import_module(f"turnkeeper.terminal.{module}")
    for commands in (app, *(group.typer_instance for group in app.registered_groups)):
        for command in commands.registered_commands if commands is not None else ():
            command.help = _unwrapped(command.help or inspect.getdoc(command.callback) or "")


def _unwrapped(text: str) -> str:
    """Returns a text with each of its paragraphs on one line: a help page is as wide as the terminal."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


@cache
def _add_server_commands(server_commands: tuple[tuple[str, str], ...]) -> None:
    for name, text in server_commands:
        app.command(name, help=f"{text[0].upper()}{text[1:]}.", rich_help_panel=SERVE)(_of_the_caller)


def _of_the_caller() -> None:
    """Stands for a command of the caller, which runs it before it calls `run`."""


def _report(error: typer.TyperException) -> None:
    """Prints a mistake on the command line as one sentence, in which what looks like a secret is hidden."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "turnkeeper"
    message = Redactor()(error.format_message()).rstrip(".").replace(". Did you mean", ", did you mean")
    if path == "turnkeeper" and message.startswith("No such option"):
        message += "; the flags of a command stand after it"
    end = " See" if message.endswith("?") else "; see"
    standard_error().show(f"{path}: {message[:1].lower()}{message[1:]}{end} {path} --help")
