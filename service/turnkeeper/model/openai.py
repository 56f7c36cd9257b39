"""A model on any OpenAI-compatible server, by the `openai` client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Self, cast

import httpx2
import openai
import orjson

from turnkeeper.model.completion import Completion
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest, TextDelta
from turnkeeper.model.deadline_watch import Deadlines, DeadlineWatch
from turnkeeper.model.openai_client import Provider, limit_field_of, new_client, server_of
from turnkeeper.model.openai_failure import openai_failures
from turnkeeper.model.openai_request import body_of
from turnkeeper.model.openai_stream import read_events

_PART_BYTES = 256 * 1024
"""Bytes of a request's body that are sent at a time."""


class OpenAIModel:
    """Implements `Model`. One instance serves any number of calls at once.

    An answer counts only with a finish reason, then `[DONE]`. Text and tool calls together may have
    `max_answer_bytes` (UTF-8); a larger answer is a failure, because half of it would be wrong.
    """

    @classmethod
    def connect(
        cls,
        provider: Provider,
        *,
        deadlines: Deadlines | None = None,
        max_answer_bytes: int = 200 * 1024,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Returns a model at `provider`. Raises ValueError for a bad address, or a key that no header can carry."""
        return cls(
            new_client(provider),
            server=server_of(provider),
            limit_field=provider.limit_field or limit_field_of(httpx2.URL(provider.base_url).host),
            deadlines=deadlines or Deadlines(),
            max_answer_bytes=max_answer_bytes,
            now=now,
        )

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        *,
        server: tuple[str, int],
        limit_field: str,
        deadlines: Deadlines,
        max_answer_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        """See `connect`."""
        timeout = openai.Timeout(None, connect=deadlines.connect.total_seconds())
        self._client = client.with_options(max_retries=0, timeout=timeout)
        self.server = server
        self._limit_field = limit_field
        self._deadlines = deadlines
        self._max_answer_bytes = max_answer_bytes
        self._now = now

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelAnswer]:
        """Yields deltas, then the answer; see `Model.stream`."""
        completion = Completion(request, max_answer_bytes=self._max_answer_bytes)
        watch = DeadlineWatch(self._deadlines, loop=asyncio.get_running_loop())
        with openai_failures(self._now), watch:
            async with self._body(request, watch) as body:
                async for events in read_events(body, watch):
                    tokens = completion.tokens
                    try:
                        for event in events:
                            completion.take(event)
                    except ModelFailure:
                        if text := completion.new_text():
                            yield TextDelta(text=text)
                        raise
                    if text := completion.new_text():
                        yield TextDelta(text=text)
                    if completion.tokens > tokens:
                        watch.token()
        yield completion.finish()

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()

    @asynccontextmanager
    async def _body(self, request: ModelRequest, watch: DeadlineWatch) -> AsyncIterator[AsyncGenerator[bytes]]:
        """Sends the request and yields the answer's body, part by part. Leaving the block ends the call."""
        body = orjson.dumps(body_of(request, limit_field=self._limit_field))
        # Not by the client's method for this endpoint, which examines every message: 50 ms for 400.
        post = self._client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=body if len(body) <= _PART_BYTES else _in_parts(body),
            options={"security": {"bearer_auth": True}, "headers": {"Content-Length": str(len(body))}},
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        response = cast(httpx2.Response, await watch.wait(post))  # the raw response, because `cast_to` asks for it
        try:
            async with aclosing(response.aiter_bytes()) as parts:
                yield parts
        finally:
            await response.aclose()


async def _in_parts(body: bytes) -> AsyncGenerator[bytes]:
    """Yields a long body in parts, so that sending it does not delay the other turns."""
    for start in range(0, len(body), _PART_BYTES):
        yield body[start : start + _PART_BYTES]
