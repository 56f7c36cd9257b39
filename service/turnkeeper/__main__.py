"""The command line: `turnkeeper serve`, and models to run beside it."""

import argparse
import contextlib
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import NoReturn

import uvloop

from turnkeeper import faults, settings
from turnkeeper.bootstrap import with_replica_name
from turnkeeper.model import command as scripted
from turnkeeper.model.local import LocalModel, LocalModelError
from turnkeeper.shutdown_signals import shutdown_requested
from turnkeeper.supervision import supervisor
from turnkeeper.supervision.parent_link import ParentLink
from turnkeeper.telemetry import logs

SERVE_EXAMPLES = """\
examples:
  turnkeeper serve --embedded --local-model            everything on this machine, nothing else needed
  OPENAI_API_KEY=… turnkeeper serve --embedded         with a cloud model
  MONGODB_URI=mongodb://… OPENAI_BASE_URL=http://127.0.0.1:8000/v1 turnkeeper serve --agents my.toml
  turnkeeper serve --embedded --port 0 --lease 5s      a free port (printed), a short lease
  turnkeeper serve --processes 4                       four processes share the port, one for each core

Prints `turnkeeper: serving on HOST:PORT` once it serves. SIGTERM and Ctrl-C drain it; a second one ends it at once.
Exit status: 0 drained, 2 it cannot start (the reason is on standard error), 1 one of several processes was lost in
the drain.
"""
YOUNG_OBJECTS = 5_000
"""How many new objects start the search for cycles; Python's default is 700."""
SECRET_LENGTH = 8
"""Characters of the shortest API key that is redacted in the log; a shorter one is a placeholder such as `none`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        status: int = uvloop.run(args.run(args))
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turnkeeper", description="Keeps the turns of agent conversations: a gRPC service over MongoDB."
    )
    parser.add_argument("--version", action="version", version=f"turnkeeper {version('turnkeeper')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve the API",
        description="Serve the API. Every flag is also a variable, named in brackets with the default; the flag wins.",
        epilog=SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    settings.add_arguments(serve)
    serve.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)  # given by the supervisor alone
    serve.set_defaults(run=_serve)
    model = commands.add_parser("model", help="serve a model on this machine").add_subparsers(
        required=True, metavar="KIND"
    )
    script = model.add_parser("scripted", help="a model that plays a script, failures included")
    scripted.add_arguments(script)
    script.set_defaults(run=scripted.run)
    local = model.add_parser("local", help="a small real model", description="Serve the small local model.")
    local.set_defaults(run=_local_model)
    return parser


async def _serve(args: argparse.Namespace) -> int:
    link = None if args.lifeline is None else ParentLink(args.lifeline)
    try:
        chosen = with_replica_name(settings.load(args, os.environ))
        armed = faults.arm(os.environ)
    except (settings.SettingError, ValueError) as error:
        return _report_error("serve", error)
    key = os.environ.get("OPENAI_API_KEY", "")
    log = logs.start(
        level=chosen.log_level,
        replica=chosen.replica,
        secrets=[key] if len(key) >= SECRET_LENGTH else [],
        as_json=chosen.log_format == "json" or None,
    )
    if armed:
        logging.getLogger("turnkeeper").warning("fault points armed by %s: %s", faults.VARIABLE, ", ".join(armed))
    try:
        async with _served(chosen, share_port=link is not None) as address:
            _tune_garbage_collection()
            with shutdown_requested() as requested:
                if link is None:
                    print(f"turnkeeper: serving on {address}", flush=True)
                else:
                    link.report_serving(on_drain=requested.set)
                await requested.wait()
    except _cannot_start(chosen) as error:
        if link is None:
            return _report_error("serve", error)
        link.report_failure(str(error))
        return 2
    except supervisor.NotDrained as error:
        return _report_error("serve", error, status=1)
    finally:
        log.stop()
    return _exit()


def _tune_garbage_collection() -> None:
    """Excludes the objects of the start from the search for cycles.

    Searching them again and again stopped every turn for 90 ms at a time, and took 4 % of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)


@contextlib.asynccontextmanager
async def _served(chosen: settings.Settings, *, share_port: bool) -> AsyncIterator[str]:
    """Serves, and yields the address: from this process, or from several that it supervises."""
    if chosen.processes > 1:
        async with supervisor.serving(chosen, os.environ) as address:
            yield address
        return
    from turnkeeper import app  # noqa: PLC0415 - it takes most of the start, and a supervisor does not need it

    async with app.serving(chosen, os.environ, share_port=share_port) as running:
        yield running.address


def _cannot_start(chosen: settings.Settings) -> tuple[type[Exception], ...]:
    """Returns the errors whose message tells the operator why the server cannot start."""
    if chosen.processes > 1:
        return supervisor.CANNOT_START
    from turnkeeper import app  # noqa: PLC0415 - as above

    return app.CANNOT_START


def _exit() -> NoReturn:
    """Ends the process at once; everything is drained and closed by now.

    The driver's threads may still wait for a database that is gone, and Python would wait for them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def _local_model(_args: argparse.Namespace) -> int:
    try:
        async with LocalModel() as url:
            with shutdown_requested() as requested:
                print(f"local model: {url}", flush=True)
                await requested.wait()
    except LocalModelError as error:
        return _report_error("model local", error)
    return 0


def _report_error(command: str, error: Exception, *, status: int = 2) -> int:
    print(f"turnkeeper {command}: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
