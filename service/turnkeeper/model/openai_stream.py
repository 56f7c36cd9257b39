"""Reads the body of an answer: parts of bytes in, whole events out, within the deadlines of the call."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta

import aiohttp
import httpx2

from turnkeeper.model.deadline_watch import DeadlineWatch
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.sse import DONE, EventReader, EventTooLong

_MAX_EVENT_BYTES = 2 * 1024 * 1024
"""Bytes of one event of a stream, at most; a larger one fails the call."""
_LAST_BYTES = timedelta(milliseconds=100)
"""The time for the rest of a body after `[DONE]`; after it the connection is closed."""


async def read_events(body: AsyncGenerator[bytes], watch: DeadlineWatch) -> AsyncGenerator[list[bytes]]:
    """Yields the events that arrived together, up to `[DONE]`. Raises ModelFailure if the body ends before it."""
    reader = EventReader(max_event_bytes=_MAX_EVENT_BYTES)
    ended = Reason.EMPTY
    while True:
        data = await watch.wait(anext(body, None))
        if data is None:
            raise failure(ended)
        ended = Reason.NO_END
        try:
            events = reader.feed(data)
        except EventTooLong:
            raise failure(Reason.MALFORMED) from None
        if DONE in events:
            yield events[: events.index(DONE) + 1]
            await _drain(body)
            return
        if events:
            yield events


async def _drain(body: AsyncGenerator[bytes]) -> None:
    """Reads the end of the body, most of which has arrived, so that the connection can serve another call."""
    with suppress(TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_LAST_BYTES.total_seconds()):
            async for _ in body:
                pass
