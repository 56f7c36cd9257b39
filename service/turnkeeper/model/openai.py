"""Any OpenAI-compatible server, through the `openai` client."""

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

_PIECE_BYTES = 256 * 1024
_MAX_EVENT_BYTES = 2 * 1024 * 1024
_LAST_BYTES = timedelta(milliseconds=100)
_MOST_CONNECTIONS = 1000
_IDLE_CONNECTION = timedelta(seconds=5)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long one call may take: to connect, to its first token, from one token to the next, in all.

    A token is something a model made: a comment, a role, a heartbeat of any kind is none. `total` counts from the
    call's start, whoever is slow.
    """

    connect: timedelta = timedelta(seconds=10)
    first_token: timedelta = timedelta(seconds=60)
    between_tokens: timedelta = timedelta(seconds=30)
    total: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a model is, and its server's ways.

    `close_connections` sends `Connection: close` with every call, for servers that drop kept-alive connections.
    `limit_field` is what the server calls the output limit; empty: as the address suggests.
    """

    base_url: str
    api_key: str
    close_connections: bool = False
    limit_field: str = ""


class OpenAIModel:
    """Implements `Model`. One instance serves any number of calls at once.

    An answer counts only with a finish reason, then `[DONE]`. Text and tool calls together may have
    `max_answer_bytes` (UTF-8); a larger answer is a failure, for half of it would be a lie.
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
        """A model at `provider`. Raises ValueError for a bad address, or a key that no header can carry."""
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
        patience = openai.Timeout(None, connect=deadlines.connect.total_seconds())
        self._client = client.with_options(max_retries=0, timeout=patience)
        self.server = server
        self._limit_field = limit_field
        self._deadlines = deadlines
        self._max_answer_bytes = max_answer_bytes
        self._now = now

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelAnswer]:
        completion = Completion(request, max_answer_bytes=self._max_answer_bytes)
        patience = _Patience(self._deadlines, loop=asyncio.get_running_loop())
        with openai_failures(self._now), patience:
            async with self._body(request, patience) as pieces:
                async for events in _read(pieces, patience):
                    tokens = completion.tokens
                    try:
                        for event in events:
                            completion.take(event)
                    except ModelFailure:
                        if text := completion.news():
                            yield TextDelta(text=text)
                        raise
                    if text := completion.news():
                        yield TextDelta(text=text)
                    if completion.tokens > tokens:
                        patience.token()
        yield completion.finish()

    async def close(self) -> None:
        await self._client.close()

    @asynccontextmanager
    async def _body(self, request: ModelRequest, patience: "_Patience") -> AsyncIterator[AsyncGenerator[bytes]]:
        """The answer's body, piece by piece; leaving ends the call."""
        body = orjson.dumps(body_of(request, limit_field=self._limit_field))
        # By the client's way for any endpoint: its own for this one looks through every message, 50 ms for 400.
        post = self._client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=body if len(body) <= _PIECE_BYTES else _in_pieces(body),
            options={"security": {"bearer_auth": True}, "headers": {"Content-Length": str(len(body))}},
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        response = cast(httpx2.Response, await patience.wait(post))  # a stream as it came, for `cast_to` says so
        try:
            async with aclosing(response.aiter_bytes()) as pieces:
                yield pieces
        finally:
            await response.aclose()


async def _in_pieces(body: bytes) -> AsyncGenerator[bytes]:
    """A long body as its reader takes it, so that the other turns are not held up."""
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


async def _read(pieces: AsyncGenerator[bytes], patience: "_Patience") -> AsyncGenerator[list[bytes]]:
    """The events that came together, to `[DONE]`. A body that ends before it is a failure."""
    reader = EventReader(max_event_bytes=_MAX_EVENT_BYTES)
    ended = Reason.EMPTY
    while True:
        piece = await patience.wait(anext(pieces, None))
        if piece is None:
            raise failure(ended)
        ended = Reason.NO_END
        try:
            events = reader.feed(piece)
        except EventTooLong:
            raise failure(Reason.MALFORMED) from None
        if DONE in events:
            yield events[: events.index(DONE) + 1]
            await _drain(pieces)
            return
        if events:
            yield events


async def _drain(pieces: AsyncGenerator[bytes]) -> None:
    """Read the end of the body, which is mostly there by now, so that the connection can serve another call."""
    with suppress(TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_LAST_BYTES.total_seconds()):
            async for _ in pieces:
                pass


class _Patience:
    """How long one call may still be silent.

    One timer serves the whole call. Each token puts its time off, which it notices when it rings, so that a token
    costs no timer. It fires only while a task waits; an answer with a comment ready at all times is read to the end of
    what is there, then waited for, so that it cannot outlast its deadline.
    """

    def __init__(self, deadlines: Deadlines, *, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._between = deadlines.between_tokens.total_seconds()
        self._until = loop.time() + deadlines.first_token.total_seconds()
        self._reason = Reason.START_TIMEOUT
        self._end = loop.time() + deadlines.total.total_seconds()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        self._waiting: asyncio.Task[object] | None = None
        self._over = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def token(self) -> None:
        """The model made something; it may be silent again."""
        self._until = self._loop.time() + self._between
        self._reason = Reason.STALL_TIMEOUT

    async def wait(self, what: Awaitable[T]) -> T:
        """Whatever waits for the server goes through here. Raises ModelFailure when a deadline passes."""
        due = min(self._until, self._end)
        if due < self._rings_at:
            self._wake_at(due)
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        self._waiting = task
        try:
            return await what
        except asyncio.CancelledError:
            if self._over and task.cancelling() == cancels + 1:
                raise failure(self._reason if self._until < self._end else Reason.TOTAL_TIMEOUT) from None
            raise
        finally:
            self._waiting = None
            if self._over:
                task.uncancel()
                self._over = False  # whoever swallowed it meets the next one

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._ring)
        self._rings_at = due

    def _ring(self) -> None:
        self._rings_at = math.inf
        due = min(self._until, self._end)
        if due > self._loop.time():
            self._wake_at(due)
        elif self._waiting is not None:
            self._over = True
            self._waiting.cancel()


def _client(provider: Provider) -> openai.AsyncOpenAI:
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
            # A proxy from the environment is never the way to this machine itself.
            trust_env=not _is_loopback(url.host),
            limits=httpx2.Limits(max_connections=_MOST_CONNECTIONS, keepalive_expiry=_idle(provider).total_seconds()),
        ),
    )


def _idle(provider: Provider) -> timedelta:
    """How long a connection waits for another call. The header alone leaves it to the server."""
    return timedelta() if provider.close_connections else _IDLE_CONNECTION


def _server(provider: Provider) -> tuple[str, int]:
    """Returns the host and the port of the provider's address."""
    url = httpx2.URL(provider.base_url)
    return url.host, url.port or (80 if url.scheme == "http" else 443)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _limit_field(host: str) -> str:
    """OpenAI and Azure have renamed the output limit; most others know the first name only."""
    return "max_completion_tokens" if host.endswith(("openai.com", "openai.azure.com")) else "max_tokens"
