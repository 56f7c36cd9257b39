"""Any OpenAI-compatible server, through the `openai` client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Self, TypeVar

import httpx2
import openai

from turnkeeper.model.completion import Completion
from turnkeeper.model.contract import ModelAnswer, ModelRequest, TextDelta
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import openai_failures
from turnkeeper.model.openai_request import body_of
from turnkeeper.model.sse import DONE, EventReader, EventTooLong

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
            limit_field=provider.limit_field or _limit_field(httpx2.URL(provider.base_url).host),
            deadlines=deadlines or Deadlines(),
            max_answer_bytes=max_answer_bytes,
            now=now,
        )

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        *,
        limit_field: str,
        deadlines: Deadlines,
        max_answer_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        patience = openai.Timeout(None, connect=deadlines.connect.total_seconds())
        self._client = client.with_options(max_retries=0, timeout=patience)
        self._limit_field = limit_field
        self._deadlines = deadlines
        self._max_answer_bytes = max_answer_bytes
        self._now = now

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelAnswer]:
        patience = _Patience(self._deadlines, clock=asyncio.get_running_loop().time)
        completion = Completion(request, max_answer_bytes=self._max_answer_bytes)
        with openai_failures(self._now):
            async with self._events(request, patience) as events:
                async for event in events:
                    tokens = completion.tokens
                    text = completion.tail() if event == DONE else completion.take(event)
                    if text:
                        yield TextDelta(text=text)
                    if completion.tokens > tokens:
                        patience.token()
        yield completion.finish()

    async def close(self) -> None:
        await self._client.close()

    @asynccontextmanager
    async def _events(self, request: ModelRequest, patience: "_Patience") -> AsyncIterator[AsyncGenerator[bytes]]:
        """The call's events, `[DONE]` the last; leaving ends the call."""
        body = body_of(request, limit_field=self._limit_field)
        create = self._client.chat.completions.with_streaming_response.create
        async with AsyncExitStack() as stack:
            # The history as `extra_body`: the client's own transformation of 400 messages costs 50 ms.
            call = create(model=request.model, messages=[], stream=True, extra_body=body)
            response = (await patience.wait(stack.enter_async_context(call))).http_response
            pieces = await stack.enter_async_context(aclosing(response.aiter_bytes()))
            yield await stack.enter_async_context(aclosing(_read(pieces, patience)))


async def _read(pieces: AsyncGenerator[bytes], patience: "_Patience") -> AsyncGenerator[bytes]:
    """Whole events from a body's pieces, to `[DONE]`. A body that ends before it is a failure."""
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
        for event in events:
            if event == DONE:
                await _drain(pieces)
                yield event
                return
            yield event


async def _drain(pieces: AsyncGenerator[bytes]) -> None:
    """Read the end of the body, which is mostly there by now, so that the connection can serve another call."""
    with suppress(TimeoutError, httpx2.HTTPError, OSError):
        async with asyncio.timeout(_LAST_BYTES.total_seconds()):
            async for _ in pieces:
                pass


class _Patience:
    """How long one call may still be silent.

    A timer fires only while a task waits. A read from a connection always does, if only for one turn of the loop, so
    that a server with a comment ready at all times cannot outlast its deadline.
    """

    def __init__(self, deadlines: Deadlines, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._between = deadlines.between_tokens.total_seconds()
        self._until = clock() + deadlines.first_token.total_seconds()
        self._reason = Reason.START_TIMEOUT
        self._end = clock() + deadlines.total.total_seconds()

    def token(self) -> None:
        """The model made something; it may be silent again."""
        self._until = self._clock() + self._between
        self._reason = Reason.STALL_TIMEOUT

    async def wait(self, what: Awaitable[T]) -> T:
        """Whatever waits for the server goes through here. Raises ModelFailure when a deadline passes."""
        try:
            async with asyncio.timeout_at(min(self._until, self._end)):
                return await what
        except TimeoutError:
            raise failure(self._reason if self._until < self._end else Reason.TOTAL_TIMEOUT) from None


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


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _limit_field(host: str) -> str:
    """OpenAI and Azure have renamed the output limit; most others know the first name only."""
    return "max_completion_tokens" if host.endswith(("openai.com", "openai.azure.com")) else "max_tokens"
