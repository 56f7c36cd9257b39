"""Starts servers in processes of their own, to be stopped and killed."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment

LEASE = 1.5
SWEEP = 0.2
"""Seconds, as given to the servers."""
MARGIN = 6.0
"""Seconds on top, for a machine that has other things to do."""


@contextlib.asynccontextmanager
async def doomed(
    env: Environment, *flags: str, more: Mapping[str, str] | None = None
) -> AsyncIterator[harness.ServerProcess]:
    """Starts a server on the environment's database, with its tools and a short lease."""
    async with harness.server_process(
        env.mongo_uri,
        env.database,
        env.model,
        flags=("--agents", str(AGENTS), "--lease", f"{LEASE}s", *flags),
        variables={**env.tool_control.variables, **(more or {})},
    ) as server:
        yield server


def freeze(server: harness.ServerProcess) -> None:
    os.kill(server.pid, signal.SIGSTOP)


def thaw(server: harness.ServerProcess) -> None:
    os.kill(server.pid, signal.SIGCONT)
