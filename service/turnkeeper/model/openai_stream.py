"""Reads the body of an answer: parts of bytes in, text out, within the deadlines of the call."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import aiohttp
import httpx2

from turnkeeper.event_loop import Slices, off_loop
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.collected import Body
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.deadline_watch import DeadlineWatch
from turnkeeper.model.read_pauses import ReadPauses
from turnkeeper.model.read_ticks import ReadTicks
from turnkeeper.model.timed_reads import PART_BYTES, TimedReads, is_plain

_LARGE_EVENT = 64 * 1024
"""Bytes of an event, or of an answer in one piece, that are read in a thread."""
_LAST_BYTES = timedelta(milliseconds=100)
"""The time for the rest of a body after `[DONE]`; after it the connection is closed."""


async def read_text(
    body: Body,
    reader: AnswerReader,
    watch: DeadlineWatch,
    pauses: ReadPauses,
    *,
    show: Callable[[str], bool] | None = None,
    ticks: ReadTicks | None = None,
) -> AsyncGenerator[str]:
    """Reads the answer to its end; yields its text as it arrives, what arrives in one read together.

    After the first text it pauses between two reads, and what is read then may go to `show` instead (see
    `ModelRequest`). `ticks` ends the pauses together with those of other answers. Raises ModelFailure if there is no
    answer; the text up to there is yielded before.
    """
    data: bytes | None = b""
    unread, begun = b"", False
    failed: ModelFailure | None = None
    timed = TimedReads(body, reader, watch, pauses, show, ticks)
    while failed is None and not reader.done:
        tokens = reader.tokens
        data = unread or body.collected() or await watch.wait(body.read())
        failed, unread = await _take(reader, data), b""
        if reader.tokens > tokens and failed is None:
            watch.token()
        if text := reader.new_text():
            begun = True
            yield text
        if begun and data and failed is None:
            unread, failed = await timed.pause(len(data))
    if failed is not None:
        if text := reader.new_text():
            yield text
        raise failed
    if data is not None:
        await _drain(body)


async def _take(reader: AnswerReader, data: bytes | None) -> ModelFailure | None:
    """Reads the next part, or the end of the body for None. Returns the failure that it shows, if any."""
    try:
        if data is None:
            await _end(reader)
        elif is_plain(data, reader):
            reader.feed(data)
        else:
            await _feed(reader, data)
    except ModelFailure as failed:
        return failed
    return None


async def _feed(reader: AnswerReader, data: bytes) -> None:
    """Reads what arrived together, part by part: a server may send millions of lines, and compress them, too."""
    slices, start = Slices(), 0
    while start < len(data):
        cut = data.rfind(b"\n\n", start, start + PART_BYTES)  # whole events are read faster
        end = cut + 2 if cut > start else start + PART_BYTES
        await off_loop(partial(reader.feed, data[start:end]), large=reader.size > _LARGE_EVENT)
        start = end
        await slices.step()


async def _end(reader: AnswerReader) -> None:
    """Reads the end of the body, in a thread if the whole answer comes with it."""
    await off_loop(reader.end, large=reader.size > _LARGE_EVENT)


async def _drain(body: Body) -> None:
    """Reads the end of the body, most of which has arrived, so that the connection can serve another call."""
    with suppress(TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_LAST_BYTES.total_seconds()):
            while await body.read():
                pass
