"""Streams of events that resume by themselves."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc import aio

from turnkeeper_client.calls import errors_as_ours
from turnkeeper_client.errors import SessionError, TransportError, UnknownEvent
from turnkeeper_client.pb.v1.chat_pb2 import StreamMessageResponse, Turn
from turnkeeper_client.pb.v1.event_pb2 import Event
from turnkeeper_client.resume import Patience, ResumePolicy
from turnkeeper_client.seen import Seen
from turnkeeper_client.text import TextAssembler, TextPiece


class Response(Protocol):
    """What WatchEventsResponse and StreamMessageResponse have in common."""

    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def cursor(self) -> str: ...
    @property
    def through_sequence(self) -> int: ...
    @property
    def caught_up(self) -> bool: ...


# Starts the call at a cursor; at the stream's own start when that is empty.
Open = Callable[[str], aio.UnaryStreamCall[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What arrived at once. Without events: a heartbeat."""

    events: tuple[Event, ...]
    # The place after these events.
    cursor: str
    # Every durable event up to this number was delivered or filtered out.
    through_sequence: int
    # True once in each connection: what follows is live.
    caught_up: bool


class EventStream:
    """The events of a session or a turn, each once and in order, over any number of connections.

    Iterate over it, or over its `batches()`. A broken connection is opened again at the last cursor; a final error is
    raised as a SessionError or TransportError. Leaving the loop closes the call; another loop goes on at `cursor`.
    """

    def __init__(self, open_call: Open, *, start: str, policy: ResumePolicy) -> None:
        self._open = open_call
        self._policy = policy
        self._cursor = start
        self._seen = Seen()
        self._through_sequence = 0
        self._caught_up = False

    @property
    def cursor(self) -> str:
        """The place after the last event you were given, or shortly before it: pass it as `after` to go on."""
        return self._cursor

    @property
    def through_sequence(self) -> int:
        """Every durable event up to this number was delivered or filtered out."""
        return self._through_sequence

    @property
    def caught_up(self) -> bool:
        """Whether all that was there before has been delivered."""
        return self._caught_up

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        async with aclosing(self._responses()) as responses:
            async for response in responses:
                for place, event in enumerate(response.events, start=1):
                    fresh = self._admit(event)
                    if fresh is None:
                        continue
                    if place == len(response.events):
                        self._settle(response)
                    yield fresh
                self._settle(response)

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """The same with its surroundings: a cursor for each batch, heartbeats, and `caught_up`."""
        async with aclosing(self._responses()) as responses:
            async for response in responses:
                events = tuple(fresh for event in response.events if (fresh := self._admit(event)) is not None)
                self._settle(response)
                yield Batch(
                    events=events,
                    cursor=response.cursor,
                    through_sequence=response.through_sequence,
                    caught_up=response.caught_up,
                )

    def _admit(self, event: Event) -> Event | None:
        """The event, or what is new of it. Raises UnknownEvent."""
        known = event.WhichOneof("payload") is not None
        if not known and not event.ignorable:
            raise UnknownEvent(event)
        fresh = self._seen.admit(event)
        return fresh if known else None

    def _settle(self, response: Response) -> None:
        """All of the response was delivered."""
        self._cursor = response.cursor or self._cursor
        self._through_sequence = max(self._through_sequence, response.through_sequence)
        self._caught_up = self._caught_up or response.caught_up

    async def _responses(self) -> AsyncGenerator[Response, None]:
        """The responses of one connection after another."""
        patience = Patience(self._policy)
        while True:
            try:
                async with aclosing(self._connection()) as responses:
                    async for response in responses:
                        patience.responded()
                        yield response
                return
            except (SessionError, TransportError) as error:
                pause = patience.pause_after(error)
                if isinstance(error, SessionError):
                    self._cursor = self._next_cursor(error)
            await asyncio.sleep(pause)

    def _next_cursor(self, error: SessionError) -> str:
        """Returns where the stream goes on.

        A planned end (no wait) may be further on than the last response, by events that were filtered out. The cursor
        of any other end is never further on than what was delivered.
        """
        ours, its = self._cursor, error.cursor
        return its or ours if error.retry_after is None else ours or its

    async def _connection(self) -> AsyncGenerator[Response, None]:
        """The responses of one call, from the cursor on."""
        with errors_as_ours():
            call = self._open(self._cursor)
        try:
            while (response := await self._next(call)) is not None:
                yield response
        finally:
            call.cancel()

    async def _next(self, call: aio.UnaryStreamCall[Any, Any]) -> Response | None:
        """The next response, or None at the end. Raises TransportError after too long a silence."""
        silence = self._policy.silence.total_seconds()
        try:
            async with asyncio.timeout(silence):
                with errors_as_ours():
                    response: Response | None = await anext(aiter(call), None)
                    return response
        except TimeoutError:
            message = f"the stream was silent for {silence:g} s, without even a heartbeat"
            raise TransportError(grpc.StatusCode.UNAVAILABLE, message) from None


class TurnStream(EventStream):
    """The events of one message's turn. Ends when the turn has ended or waits, raises the error of a failed turn.

    Another loop sends nothing again: it goes on where this one ended, for example after an approval was decided.
    """

    def __init__(self, open_call: Open, *, start: str, policy: ResumePolicy, request_id: str) -> None:
        super().__init__(open_call, start=start, policy=policy)
        self.request_id = request_id
        self._turn: Turn | None = None
        self._texts = TextAssembler()

    @property
    def turn(self) -> Turn | None:
        """The turn as it was at the stream's end; None before."""
        return self._turn

    async def text(self) -> AsyncGenerator[TextPiece, None]:
        """What the model says, piece by piece. Joined from the last piece with `restart`, it is exact."""
        async with aclosing(aiter(self)) as events:
            async for event in events:
                piece = self._texts.add(event)
                if piece is not None:
                    yield piece

    def _settle(self, response: Response) -> None:
        super()._settle(response)
        if isinstance(response, StreamMessageResponse) and response.HasField("turn"):
            self._turn = response.turn
