"""The command line."""

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
from turnkeeper.bootstrap import named
from turnkeeper.model import command as scripted
from turnkeeper.model.local import LocalModel, LocalModelError
from turnkeeper.shutdown_signals import signals
from turnkeeper.supervision import supervisor
from turnkeeper.supervision.parent_link import Lifeline
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
"""How many more objects than before there are when the collector looks for cycles; Python's own is 700."""
SECRET_LENGTH = 8
"""A shorter key is a placeholder, such as `none`: hiding it would hide words of the log."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
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
    line = None if args.lifeline is None else Lifeline(args.lifeline)
    try:
        chosen = named(settings.load(args, os.environ))
        armed = faults.arm(os.environ)
    except (settings.SettingError, ValueError) as error:
        return _complain("serve", error)
    key = os.environ.get("OPENAI_API_KEY", "")
    log = logs.start(
        level=chosen.log_level,
        replica=chosen.replica,
        secrets=[key] if len(key) >= SECRET_LENGTH else [],
        as_json=chosen.log_format == "json" or None,
    )
    if armed:
        logging.getLogger("turnkeeper").warning("armed to die, by %s: %s", faults.VARIABLE, ", ".join(armed))
    try:
        async with _served(chosen, share_port=line is not None) as address:
            _spare_the_collector()
            with signals() as asked:
                if line is None:
                    print(f"turnkeeper: serving on {address}", flush=True)
                else:
                    line.serves(cut=asked.set)
                await asked.wait()
    except _cannot_start(chosen) as error:
        if line is None:
            return _complain("serve", error)
        line.cannot_start(str(error))
        return 2
    except supervisor.NotDrained as error:
        return _complain("serve", error, status=1)
    finally:
        log.stop()
    return _leave()


def _spare_the_collector() -> None:
    """What is there by now stays: going through it all again stopped every turn for 90 ms, and cost 4 % of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)


@contextlib.asynccontextmanager
async def _served(chosen: settings.Settings, *, share_port: bool) -> AsyncIterator[str]:
    """The address, while it is served: by this process, or by several others."""
    if chosen.processes > 1:
        async with supervisor.serving(chosen, os.environ) as address:
            yield address
        return
    from turnkeeper import app  # noqa: PLC0415 - most of the start, and a supervisor needs nothing of it

    async with app.serving(chosen, os.environ, share_port=share_port) as running:
        yield running.address


def _cannot_start(chosen: settings.Settings) -> tuple[type[Exception], ...]:
    """What tells why it cannot serve."""
    if chosen.processes > 1:
        return supervisor.CANNOT_START
    from turnkeeper import app  # noqa: PLC0415 - as above

    return app.CANNOT_START


def _leave() -> NoReturn:
    """Everything is drained and closed. The driver's threads may still wait for a database that is gone; who stopped
    the server must not wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def _local_model(_args: argparse.Namespace) -> int:
    try:
        async with LocalModel() as url:
            with signals() as asked:
                print(f"local model: {url}", flush=True)
                await asked.wait()
    except LocalModelError as error:
        return _complain("model local", error)
    return 0


def _complain(command: str, error: Exception, *, status: int = 2) -> int:
    print(f"turnkeeper {command}: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
