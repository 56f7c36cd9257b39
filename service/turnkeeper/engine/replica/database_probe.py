"""Finds out whether the database answers: readiness depends on it, streams and liveness do not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, Protocol

logger = logging.getLogger(__name__)

PINGS: Final = 6
"""How many pings there are in the time after which a silent database counts."""
LEAST_FAILED: Final = 3
"""Pings in a row that must have failed as well: a process that was frozen finds one that came to no end."""
GOOD_AGAIN: Final = 2
"""Good pings in a row after which the database counts as answering again."""
SOON: Final = 5
"""After a failed ping the next one comes so many times sooner."""


class Pinged(Protocol):
    """A store."""

    async def ping(self) -> None:
        """Raises an exception unless the database answers."""
        ...


class DatabaseProbe:
    """Pings the database, and reports when it is silent for too long, and when it answers again."""

    def __init__(self, store: Pinged, *, patience: timedelta, report: Callable[[bool], Awaitable[None]]) -> None:
        """`patience`: how long the database may be silent. `report` is called with each change; True: it answers."""
        self._store = store
        self._patience = patience.total_seconds()
        self._interval = self._patience / PINGS
        self._report = report

    async def run(self) -> None:
        """Pings until it is cancelled."""
        clock = asyncio.get_running_loop().time
        answered_at, failed, good, answers = clock(), 0, 0, True
        while True:
            if await self._ping(within=answered_at + self._patience - clock()):
                answered_at, failed, good = clock(), 0, good + 1
            else:
                failed, good = failed + 1, 0
            if answers and failed >= LEAST_FAILED and clock() - answered_at >= self._patience:
                answers = False
                logger.warning(
                    "the database has not answered for %.3g s: health is NOT_SERVING until it has answered twice; "
                    "streams go on, and turns are kept",
                    clock() - answered_at,
                )
                await self._report(answers)
            elif not answers and good >= GOOD_AGAIN:
                answers = True
                logger.warning("the database answers again: health is SERVING")
                await self._report(answers)
            await asyncio.sleep(self._interval / SOON if failed or not answers else self._interval)

    async def _ping(self, *, within: float) -> bool:
        """Returns True if the database answers within an interval, and in less time where `within` seconds are left."""
        shortest = self._interval / SOON
        try:
            async with asyncio.timeout(min(self._interval, max(within, shortest)) if within > 0 else self._interval):
                await self._store.ping()
        except Exception:  # noqa: BLE001 - whatever it is, the database has not answered
            return False
        return True
