"""The command `turnkeeper dev`: its flags, and the settings of the server that they stand for."""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Final

import uvloop

from turnkeeper import descriptors, interrupts, settings_sources, standard_output
from turnkeeper.bootstrap import report_error
from turnkeeper.event_loop import EventLoop
from turnkeeper.health_command import SERVING, status_of
from turnkeeper.settings import Settings
from turnkeeper.start_errors import PortTaken, SettingError

DESCRIPTION: Final = """\
Run database, model and server on this machine, for one person who tries agents
and tools. Shows the agents, what the policy does with each tool, and then each
turn and each decision as it happens. The files are read again when they change.
"""
EXAMPLES: Final = """\
examples:
  something to talk to, and something to approve:
    turnkeeper dev
    turnkeeper chat clerk                  in another terminal
  your own tools and agents:
    turnkeeper dev --tools desk.py --agents agents.toml
  with a real model:
    OPENAI_API_KEY=… turnkeeper dev
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 turnkeeper dev
  each step of each turn:
    turnkeeper dev --log-level DEBUG

Without a model of yours, agents without tools talk through a small local one.
For agents with tools a script stands in: it calls a tool when a message has the
tool's name and arguments, such as `refund A-17 1990`.

The variables of `turnkeeper serve` count here, too. Ctrl-C ends it and keeps
all sessions. Exit status: 0 ended by Ctrl-C, 2 it cannot start (the reason is on
standard error), 1 the database was lost.
"""
CANNOT_START: Final = 2
LOG_FILE: Final = "server.log"
OUTBOX_FILE: Final = "outbox.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's description and arguments to `parser`; `run` takes the parsed arguments."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--agents", metavar="FILE", help="file of agents, TOML [two samples]")
    parser.add_argument("--tools", metavar="FILE.py", help="Python file of tools [those of installed packages]")
    parser.add_argument("--catalogue", metavar="FILE", help="file of tool servers and limits of tools, TOML")
    parser.add_argument("--port", metavar="PORT", help="port to listen on [50051]")
    parser.add_argument("--data-dir", metavar="FOLDER", help="folder of all data, made if it is missing [.turnkeeper]")
    parser.add_argument("--model", metavar="NAME", help="name of the model, for agents that name none")
    parser.add_argument("--log-level", metavar="LEVEL", help="DEBUG: also show each step of each turn [WARNING]")
    parser.set_defaults(config=None)


def run(args: argparse.Namespace) -> int:
    """Runs until Ctrl-C, and returns the exit status."""
    standard_output.replace_missing()
    descriptors.raise_limit()
    shown_level = args.log_level or "WARNING"
    try:
        settings = _settings(args)
        _check_port(settings)
    except (SettingError, PortTaken) as error:
        report_error("dev", error)
        return CANNOT_START
    interrupts.raise_again()
    if sys.stdout.isatty():
        print("  starting", end="\r", flush=True)  # the imports take a while; the next line stands in its place
    from turnkeeper.dev import development  # noqa: PLC0415 - it takes most of the start; a wrong flag is reported before

    return uvloop.run(development.run(settings, shown_level=shown_level), loop_factory=EventLoop)


def _settings(args: argparse.Namespace) -> Settings:
    """Returns the settings of `serve`, with what one person on one machine needs. Raises SettingError."""
    args.embedded = args.local_model = "true"
    args.processes, args.record_content, args.drain_grace, args.drain_delay = "1", "true", "0s", "0s"
    if args.log_level != "DEBUG":
        args.log_level = "INFO" if args.log_level in (None, "WARNING", "ERROR") else args.log_level
    settings = settings_sources.load(args)
    os.environ.setdefault("TURNKEEPER_SAMPLE_OUTBOX", str(Path(settings.data_dir, OUTBOX_FILE).absolute()))
    return settings.with_replica_name().with_memory()


def _check_port(settings: Settings) -> None:
    """Raises PortTaken before anything is started, and SettingError if a server of ours has the port."""
    if settings.host.startswith("unix:") or not settings.port:
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        try:
            probe.bind((settings.host.strip("[]"), settings.port))
            probe.listen(1)
        except OSError as error:
            address = settings.address(settings.port)
            if status_of(address) == SERVING:
                raise SettingError(
                    f"a Turnkeeper server is at {address} already: end it with Ctrl-C in its terminal, "
                    "or choose another --port"
                ) from None
            raise PortTaken(address, error) from None
