"""The supervisor's program. Its settings are in its environment, and were checked before it began."""

import os
import sys
from collections.abc import Mapping

import uvloop

from turnkeeper import interrupts, standard_output
from turnkeeper.bootstrap import exit_at_once, report_error, start_logs
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.store.embedded import DatabaseLost
from turnkeeper.supervision import supervisor
from turnkeeper.supervision.options import SupervisorOptions


def main() -> int:
    """Supervises until SIGTERM or SIGINT, and returns the exit status."""
    interrupts.raise_again()
    try:
        return uvloop.run(_supervise(SupervisorOptions.from_environment(os.environ), os.environ))
    except KeyboardInterrupt:
        return interrupts.INTERRUPTED


async def _supervise(options: SupervisorOptions, environ: Mapping[str, str]) -> int:
    log = start_logs(environ, level=options.log_level, log_format=options.log_format, replica=options.replica)
    shutdown = ShutdownRequest()
    try:
        async with supervisor.serving(options, environ, shutdown) as address:
            with shutdown.by_signals():
                standard_output.announce(address, sys.stdout)
                await shutdown.wait()
    except supervisor.CANNOT_START as error:
        report_error("serve", error)
        return 2
    except (supervisor.NotDrained, DatabaseLost) as error:
        report_error("serve", error)
        return 1
    finally:
        log.stop()
    return exit_at_once()
