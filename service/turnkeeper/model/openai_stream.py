"""Reads the body of an answer: parts of bytes in, text out, within the deadlines of the call."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta

import aiohttp
import httpx2

from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.deadline_watch import DeadlineWatch

_LAST_BYTES = timedelta(milliseconds=100)
"""The time for the rest of a body after `[DONE]`; after it the connection is closed."""


async def read_text(body: AsyncGenerator[bytes], reader: AnswerReader, watch: DeadlineWatch) -> AsyncGenerator[str]:
    """Reads the answer to its end; yields its text as it arrives, what arrives in one read together.

    Raises ModelFailure if there is no answer; the text up to there is yielded before.
    """
    data: bytes | None = b""
    while not reader.done:
        tokens = reader.tokens
        data = await watch.wait(anext(body, None))
        failed: ModelFailure | None = None
        try:
            reader.end() if data is None else reader.feed(data)
        except ModelFailure as error:
            failed = error
        if text := reader.new_text():
            yield text
        if failed is not None:
            raise failed
        if reader.tokens > tokens:
            watch.token()
    if data is not None:
        await _drain(body)


async def _drain(body: AsyncGenerator[bytes]) -> None:
    """Reads the end of the body, most of which has arrived, so that the connection can serve another call."""
    with suppress(TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_LAST_BYTES.total_seconds()):
            async for _ in body:
                pass
