"""Ends a server in order: what was accepted is kept, and no caller waits for long."""

import asyncio
import logging
from typing import Final

from turnkeeper.database_state import DatabaseState
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.inbox import Inbox
from turnkeeper.rpc.interceptor import Boundary
from turnkeeper.rpc.server import Server
from turnkeeper.settings import Settings

GOAWAY_PAUSE: Final = 0.05
"""Seconds from the GOAWAY to the end of the streams, so that clients do not attach to this server again."""
FLUSH_TIME: Final = 0.25
"""Seconds for the last answers to be sent, after their calls have ended."""

logger = logging.getLogger("turnkeeper")


async def drain(  # noqa: PLR0913 - the parts that end
    server: Server,
    boundary: Boundary,
    *,
    worker: Worker,
    feeds: Feeds,
    inbox: Inbox,
    settings: Settings,
    interrupted: bool,
) -> None:
    """Fails health checks, then sends GOAWAY, ends the streams, hands turns over, and waits for the last calls.

    Skips the drain delay after Ctrl-C and unless the private database is UP, the grace of calls and turns if it is
    LOST.
    """
    grace = 0.0 if server.database is DatabaseState.LOST else settings.drain_grace.total_seconds()
    waits = server.database is DatabaseState.UP and not interrupted
    delay = settings.drain_delay.total_seconds() if waits else 0.0
    logger.info(
        "draining: health checks fail now; new calls are accepted for %g s; calls and turns then have %g s to end; "
        "a second signal ends the process at once",
        delay,
        grace,
    )
    await server.set_serving(False)
    await asyncio.sleep(delay)
    worker.draining = True
    stopping = asyncio.create_task(server.stop(grace))
    await asyncio.sleep(GOAWAY_PAUSE)
    feeds.drain()
    inbox.drain()
    await worker.drain(grace=grace)
    idle = asyncio.create_task(boundary.until_idle())
    await asyncio.wait([stopping, idle], return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    await server.stop(FLUSH_TIME)  # only streams of Health.Watch are still open
    await stopping
    logger.info("drained: the process ends")
