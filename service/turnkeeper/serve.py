"""The command `turnkeeper serve`: serves in this process, or becomes the supervisor of several."""

import argparse
import contextlib
import gc
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

import uvloop

from turnkeeper import descriptors, faults, interrupts, settings_sources, standard_output
from turnkeeper.bootstrap import exit_at_once, report_error, start_logs
from turnkeeper.event_loop import EventLoop
from turnkeeper.settings import Settings, environment
from turnkeeper.start_errors import SettingError
from turnkeeper.store.embedded import DatabaseLost
from turnkeeper.supervision.parent_link import ParentLink

CANNOT_START = 2
"""The exit status of a server that cannot start."""
YOUNG_OBJECTS = 5_000
"""How many new objects start the search for cycles; Python's default is 700."""


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT, and returns the exit status: 2 if it cannot start."""
    standard_output.replace_missing()
    descriptors.raise_limit()
    link = None if args.lifeline is None else ParentLink(args.lifeline)
    try:
        settings = settings_sources.load(args).with_replica_name().with_memory()
        armed = faults.arm(os.environ)
    except (SettingError, ValueError) as error:
        report_error("serve", error)
        return CANNOT_START
    if settings.processes > 1:
        _become_supervisor(settings)
    interrupts.raise_again()
    return uvloop.run(_serve(settings, link, armed), loop_factory=EventLoop)


def _become_supervisor(settings: Settings) -> NoReturn:
    """Replaces this program by the supervisor's, in the same process.

    It reads its settings from the environment. So it never holds the libraries that have read and checked them here:
    they would take more memory than the supervisor itself. With -P no file of the working directory is imported.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-P", "-m", "turnkeeper.supervision", settings.replica]
    os.execve(sys.executable, command, environment(settings, os.environ))  # noqa: S606 - no shell, our own program


async def _serve(settings: Settings, link: ParentLink | None, armed: Sequence[str]) -> int:
    own_output = standard_output.claim()  # before anything of a tool's package is loaded
    own_errors = standard_output.own_errors()
    log = start_logs(
        os.environ,
        level=settings.log_level,
        log_format=settings.log_format,
        replica=settings.replica,
        stream=own_errors,
    )
    if armed:
        logging.getLogger("turnkeeper").warning("fault points armed by %s: %s", faults.VARIABLE, ", ".join(armed))
    try:
        status = await _serve_until_requested(settings, link, own_output)
    finally:
        log.stop()
        for stream in (own_output, own_errors):
            if stream is not None:
                with contextlib.suppress(OSError):  # what it could not take is written once more
                    stream.close()
    return status if status == CANNOT_START else exit_at_once(status)


async def _serve_until_requested(settings: Settings, link: ParentLink | None, own_output: TextIO | None) -> int:
    """Serves until the drain is requested, and drains. Returns the exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to standard error past the log, at each failed dial
    gc.disable()  # what is imported stays: the searches for cycles among it were a sixth of the start
    try:
        from turnkeeper import app, cannot_start  # noqa: PLC0415 - it takes most of the start; a wrong setting is reported before
    except ValueError as error:
        if "OTEL_" not in str(error):  # OpenTelemetry reads some of its variables when it is imported
            raise
        return _report_failure(error, link)
    finally:
        gc.freeze()
        gc.enable()
    from turnkeeper.shutdown_signals import ShutdownRequest  # noqa: PLC0415

    shutdown = ShutdownRequest()
    try:
        async with app.serving(settings, os.environ, share_port=link is not None, shutdown=shutdown) as running:
            _tune_garbage_collection()
            with shutdown.by_signals():
                if link is None:
                    standard_output.announce(running.address, own_output)
                else:
                    link.report_serving(shutdown, on_database=running.set_database)
                await shutdown.wait()
    except cannot_start.ERRORS as error:
        return _report_failure(error, link)
    except DatabaseLost as error:
        report_error("serve", error)
        return 1
    return 0


def _report_failure(error: Exception, link: ParentLink | None) -> int:
    """Reports why the server cannot start. Returns the exit status."""
    if link is None:
        report_error("serve", error)
    else:
        link.report_failure(str(error))
    return CANNOT_START


def _tune_garbage_collection() -> None:
    """Excludes the objects of the start, too, from the search for cycles.

    Searching them again and again stopped every turn for 90 ms at a time, and took 4 % of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
