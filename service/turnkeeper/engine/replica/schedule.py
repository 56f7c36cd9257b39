"""Runs a background job again and again, and logs its failures."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from turnkeeper.durations import jittered
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.isolation import ends_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JitteredInterval:
    """The pause between two runs of a job, spread by ±25 % so that replicas do not act at the same time."""

    seconds: float
    jitter: Callable[[], float]
    """Returns a random number from 0 to 1."""

    def __call__(self) -> float:
        """Returns the next pause in seconds."""
        return jittered(self.seconds, self.jitter())


async def every(
    interval: Callable[[], float],
    work: Callable[[], Awaitable[object]],
    *,
    failure: str,
    at_once: bool = False,
    pause_when_unavailable: float = 0.0,
    pause_after_error: float = 0.0,
) -> NoReturn:
    """Runs `work` every `interval()` seconds until it is cancelled; the first time after one interval, or `at_once`.

    A failed run is logged, and the next run tries again. `failure` begins its log line: what was not done. The pauses
    come on top of the interval, in seconds: after a run that found the database unavailable, after any other error.
    """
    pause = 0.0 if at_once else interval()
    while True:
        await asyncio.sleep(pause)
        pause = interval()
        try:
            await work()
        except ServiceUnavailable:
            pause += pause_when_unavailable
            logger.warning("%s: the database is unavailable; retrying in %.1f s", failure, pause)
        except BaseException as error:
            if ends_task(error):
                raise
            pause += pause_after_error
            logger.exception("%s; retrying in %.1f s", failure, pause)
