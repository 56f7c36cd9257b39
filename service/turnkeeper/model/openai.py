"""A model on any OpenAI-compatible server, by the `openai` client."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Self, TypeVar, cast

import aiohttp
import httpx2
import openai
import orjson

from turnkeeper.model.completion import Completion
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest, TextDelta
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import openai_failures
from turnkeeper.model.openai_request import body_of
from turnkeeper.model.sse import DONE, EventReader, EventTooLong

_PART_BYTES = 256 * 1024
"""Bytes of a request's body that are sent at a time."""
_MAX_EVENT_BYTES = 2 * 1024 * 1024
"""Bytes of one event of a stream, at most; a larger one fails the call."""
_LAST_BYTES = timedelta(milliseconds=100)
"""The time for the rest of a body after `[DONE]`; after it the connection is closed."""
_MOST_CONNECTIONS = 1000
"""Connections to one provider, at most."""
_IDLE_CONNECTION = timedelta(seconds=5)
"""The time after which an idle connection is closed."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long one call may take.

    A token is output of the model: a comment, a role or a keep-alive is none.
    """

    connect: timedelta = timedelta(seconds=10)
    """To a connection."""
    first_token: timedelta = timedelta(seconds=60)
    """From the call's start to its first token."""
    between_tokens: timedelta = timedelta(seconds=30)
    """From one token to the next."""
    total: timedelta = timedelta(minutes=10)
    """From the call's start to the answer's end, also if this process is the slow side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a model is, and what is special about its server."""

    base_url: str
    api_key: str
    close_connections: bool = False
    """Sends `Connection: close` with every call, for servers that drop kept-alive connections."""
    limit_field: str = ""
    """The server's name for the output limit; empty: as the address suggests."""


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
            _client(provider),
            server=_server(provider),
            limit_field=provider.limit_field or _limit_field(httpx2.URL(provider.base_url).host),
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
        watch = _DeadlineWatch(self._deadlines, loop=asyncio.get_running_loop())
        with openai_failures(self._now), watch:
            async with self._body(request, watch) as body:
                async for events in _read(body, watch):
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
    async def _body(self, request: ModelRequest, watch: "_DeadlineWatch") -> AsyncIterator[AsyncGenerator[bytes]]:
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


async def _read(body: AsyncGenerator[bytes], watch: "_DeadlineWatch") -> AsyncGenerator[list[bytes]]:
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


class _DeadlineWatch:
    """Watches the deadlines of one call.

    One timer serves the whole call. A token moves the deadline, not the timer: when the timer expires, it is set again
    for the moved deadline. A deadline ends a call only while the call waits for the server. What has arrived is read
    to its end first, so that a server that sends comments all the time cannot outlast the deadline.
    """

    def __init__(self, deadlines: Deadlines, *, loop: asyncio.AbstractEventLoop) -> None:
        """Begins the call now."""
        self._loop = loop
        self._between = deadlines.between_tokens.total_seconds()
        self._until = loop.time() + deadlines.first_token.total_seconds()
        self._reason = Reason.START_TIMEOUT
        self._end = loop.time() + deadlines.total.total_seconds()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._waiting: asyncio.Task[object] | None = None
        self._over = False

    def __enter__(self) -> None:
        """Begins nothing: the deadlines run from the start."""

    def __exit__(self, *_: object) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def token(self) -> None:
        """Records that a token arrived: the time to the next one begins."""
        self._until = self._loop.time() + self._between
        self._reason = Reason.STALL_TIMEOUT

    async def wait(self, reply: Awaitable[T]) -> T:
        """Waits for the server; returns its reply. Raises ModelFailure if a deadline passes first."""
        due = min(self._until, self._end)
        if due < self._timer_at:
            self._set_timer(due)
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        self._waiting = task
        try:
            return await reply
        except asyncio.CancelledError:
            if self._over and task.cancelling() == cancels + 1:
                raise failure(self._reason if self._until < self._end else Reason.TOTAL_TIMEOUT) from None
            raise
        finally:
            self._waiting = None
            if self._over:
                task.uncancel()
                self._over = False  # if the client swallowed the cancellation, the next wait sees the deadline

    def _set_timer(self, due: float) -> None:
        """Sets the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._check)
        self._timer_at = due

    def _check(self) -> None:
        """Ends the wait if a deadline has passed, or sets the timer for the next one."""
        self._timer_at = math.inf
        due = min(self._until, self._end)
        if due > self._loop.time():
            self._set_timer(due)
        elif self._waiting is not None:
            self._over = True
            self._waiting.cancel()


def _client(provider: Provider) -> openai.AsyncOpenAI:
    """Returns a client for the provider. Raises ValueError for a bad address or key."""
    url, key = httpx2.URL(provider.base_url), provider.api_key
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("the model's address must begin with http:// or https://, then a host")
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("the model's API key is empty or holds characters that no HTTP header can carry")
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=key,
        default_headers={"Connection": "close"} if provider.close_connections else None,
        http_client=openai.DefaultAioHttpClient(
            # A proxy from the environment is not used for this machine itself.
            trust_env=not _is_loopback(url.host),
            limits=httpx2.Limits(max_connections=_MOST_CONNECTIONS, keepalive_expiry=_idle(provider).total_seconds()),
        ),
    )


def _idle(provider: Provider) -> timedelta:
    """Returns how long an idle connection is kept: `Connection: close` alone leaves the closing to the server."""
    return timedelta() if provider.close_connections else _IDLE_CONNECTION


def _server(provider: Provider) -> tuple[str, int]:
    """Returns the host and the port of the provider's address."""
    url = httpx2.URL(provider.base_url)
    return url.host, url.port or (80 if url.scheme == "http" else 443)


def _is_loopback(host: str) -> bool:
    """Returns True if the host is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _limit_field(host: str) -> str:
    """Returns the field of the output limit: OpenAI and Azure have renamed it, most others know the first name only."""
    return "max_completion_tokens" if host.endswith(("openai.com", "openai.azure.com")) else "max_tokens"
