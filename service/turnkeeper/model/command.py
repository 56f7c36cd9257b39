"""The command `turnkeeper model scripted`, which serves a scripted model."""

import argparse
import asyncio
import errno
import signal
import sys
from pathlib import Path

from turnkeeper.model.script import ScriptError
from turnkeeper.model.script_file import load_script

_DESCRIPTION = """\
Serve an OpenAI-compatible model on this machine that plays a script: its answers, tool calls and failures. Without
a script it echoes. The script format: docs/reference/scripted-model.md
"""
_EXAMPLES = """\
examples:
  turnkeeper model scripted
  turnkeeper model scripted --script tour.toml --port 8400
  curl http://127.0.0.1:8400/requests      the requests that it received, as JSON

Prints its base URL once it serves. SIGTERM or Ctrl-C ends it. Exit status: 0 ended by a signal, 2 it cannot serve.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's description and arguments to `parser`; `run` takes the parsed arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--script", type=Path, metavar="FILE", help="the script, TOML (default: an echo)")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="append each request's body to it, a JSON line each"
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default: %(default)s)")


async def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT and returns the exit status. Writes an error to standard error in one line."""
    from turnkeeper.model.scripted import ScriptedModel  # noqa: PLC0415 - a server's command line is this one, too

    try:
        script = load_script(args.script) if args.script else None
        _check_record(args.record)
        async with ScriptedModel(script, host=args.host, port=args.port, record=args.record) as model:
            stop = _stop_on_signals()
            print(f"scripted model: {model.base_url}", flush=True)
            await stop.wait()
    except (ScriptError, ValueError) as error:
        return _complain(str(error))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _complain(f"port {args.port} on {args.host} is taken; choose another, or --port 0 for a free one")
        return _complain(f"cannot serve on {args.host} port {args.port}: {error.strerror}")
    return 0


def _check_record(file: Path | None) -> None:
    """Raises ValueError if the file cannot be appended to, before the first request needs it."""
    try:
        if file is not None:
            file.open("ab").close()
    except OSError as error:
        raise ValueError(f"{file}: cannot be written: {error.strerror}") from None


def _stop_on_signals() -> asyncio.Event:
    """Returns an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _complain(text: str) -> int:
    """Writes an error and returns the exit status for it."""
    print(f"turnkeeper model scripted: {text}", file=sys.stderr)
    return 2
