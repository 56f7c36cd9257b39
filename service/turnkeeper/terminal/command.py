"""Makes a command of a coroutine function: with the connection's options, `--json`, and errors as one paragraph."""

import asyncio
import functools
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, Final, ParamSpec

import typer

from turnkeeper import interrupts
from turnkeeper.terminal import connection
from turnkeeper.terminal.app import app
from turnkeeper.terminal.connection import ConnectionOptions
from turnkeeper.terminal.console import Output, standard_error, standard_output
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed, explained
from turnkeeper.terminal.reader_shell import program
from turnkeeper_client import Client

P = ParamSpec("P")
JSON: Final = Annotated[
    bool, typer.Option("--json", help="print the service's response as JSON", rich_help_panel="Output")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """What a command works with."""

    connection: ConnectionOptions
    output: Output
    errors: Output
    json: bool
    """True for JSON on the output, and nothing else there."""
    flags: str = ""
    """The connection's flags as they were typed."""

    def shell(self, text: str) -> str:
        """Returns a command of this program that works in the reader's shell, for the same service."""
        return f"{program()} {text}{self.flags}"

    def client(self) -> Client:
        """Returns a client of the service, to be closed by the caller: `async with terminal.client() as client`."""
        return self.connection.open()


Command = Callable[Concatenate[Terminal, P], Awaitable[ExitCode | None]]


def command(
    name: str, *, panel: str, examples: Sequence[str] = (), json: bool = True
) -> Callable[[Command[P]], Command[P]]:
    """Adds a coroutine function to the application, and returns it as it is. Its docstring is the command's help.

    The first parameter is the Terminal, the others are typer's. None as its result is ExitCode.OK. `examples`: lines
    of a shell, without `turnkeeper`. `json`: the command has the option `--json`.
    """

    def add(function: Command[P]) -> Command[P]:
        app.command(name, rich_help_panel=panel, epilog=examples_text(examples))(runnable(function, json=json))
        return function

    return add


def examples_text(examples: Sequence[str]) -> str | None:
    """Returns the examples as the end of a help page."""
    return "\n".join(("Examples:\n", *(f"  $ turnkeeper {example}" for example in examples))) if examples else None


def runnable(function: Command[P], *, json: bool, is_group: bool = False) -> Callable[..., None]:
    """Returns the function as typer takes it: with the options that all commands have.

    `is_group`: it is what a group of commands does by itself, and does not run where one of its commands is called.
    """

    @functools.wraps(function)
    def run(**values: Any) -> None:
        context = values.pop("context", None)
        if context is not None and context.invoked_subcommand is not None:
            return
        given = {key: values.pop(key) for key in connection.NAMES}
        profile, as_json = values.pop("profile"), values.pop("json", False)
        raise typer.Exit(_run(function, given, profile, values, as_json=as_json))

    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    group = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)] if is_group else []
    options = [inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JSON)]
    every = [*group, *own, *(options if json else []), *connection.parameters()]
    every = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in every]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # typer reads the options from it
    del run.__wrapped__
    return run


def _run(
    function: Callable[..., Awaitable[ExitCode | None]],
    given: Mapping[str, str | None],
    profile: str | None,
    values: Mapping[str, Any],
    *,
    as_json: bool,
) -> ExitCode:
    """Runs the command. Prints an error, and returns the exit status."""
    output, errors = standard_output(), standard_error()
    address = connection.ADDRESS

    async def work() -> ExitCode:
        return await function(terminal, **values) or ExitCode.OK

    try:
        chosen = ConnectionOptions.chosen(given, profile=profile)
        address = chosen.address
        flags = connection.typed_flags({**given, "profile": profile}, os.environ)
        terminal = Terminal(connection=chosen, output=output, errors=errors, json=as_json, flags=flags)
        interrupts.raise_again()
        return asyncio.run(work())
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - what is not a command's own error is raised again
        message, status = explained(error, address)
        errors.show(("turnkeeper: ", "dim"), (message, "red" if not isinstance(error, CommandFailed) else ""))
        return status
