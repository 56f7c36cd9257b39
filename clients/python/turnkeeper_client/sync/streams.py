# Generated from ../streams.py by `make sync-client`. Do not edit.
"""Streams of events that resume by themselves."""

from collections.abc import Callable, Generator
from contextlib import closing
from datetime import timedelta
from time import monotonic

from turnkeeper_client.batch import Batch, Response
from turnkeeper_client.delivered import DeliveredEvents
from turnkeeper_client.errors import SessionError, TransportError, Unauthenticated, UnknownEvent
from turnkeeper_client.helpers import message_of
from turnkeeper_client.pb.v1.chat_pb2 import StreamMessageResponse, Turn
from turnkeeper_client.pb.v1.event_pb2 import Event
from turnkeeper_client.pb.v1.message_pb2 import Message
from turnkeeper_client.resume import Patience, ResumePolicy
from turnkeeper_client.sync.tokens import Tokens
from turnkeeper_client.sync.wire import StreamCall, responses_of, sleep, translated_errors
from turnkeeper_client.text import TextAssembler, TextPiece

# Starts the call after a cursor; at the stream's own start if the cursor is empty.
Open = Callable[[str], StreamCall]


class EventStream:
    """The events of a session or a turn, each once and in order, over any number of connections.

    Iterate over it, or over its `batches()`. A broken connection is opened again at the last cursor; a final error is
    raised as a SessionError or TransportError. Leaving the loop closes the call; another loop goes on at `cursor`.
    """

    def __init__(self, open_call: Open, *, start: str, policy: ResumePolicy, tokens: Tokens | None = None) -> None:
        self._open = open_call
        self._policy = policy
        self._tokens = tokens
        self._cursor = start
        self._delivered = DeliveredEvents()
        self._through_sequence = 0
        self._caught_up = False
        self._away_since: float | None = None

    @property
    def away_for(self) -> timedelta:
        """How long the service has been away: it does not answer, or refuses the stream for now. Zero otherwise.

        The stream tries again by itself meanwhile.
        """
        return timedelta() if self._away_since is None else timedelta(seconds=monotonic() - self._away_since)

    @property
    def cursor(self) -> str:
        """The cursor after the last event that was yielded, or shortly before it: pass it as `after` to go on."""
        return self._cursor

    @property
    def through_sequence(self) -> int:
        """Every durable event up to this number was delivered or filtered out."""
        return self._through_sequence

    @property
    def caught_up(self) -> bool:
        """True once every event that existed when the stream began has been delivered."""
        return self._caught_up

    def __iter__(self) -> Generator[Event, None, None]:
        with closing(self._responses()) as responses:
            for response in responses:
                for number, event in enumerate(response.events, start=1):
                    fresh = self._admit(event)
                    if fresh is None:
                        continue
                    if number == len(response.events):
                        self._settle(response)
                    yield fresh
                self._settle(response)

    def batches(self) -> Generator[Batch, None, None]:
        """Yields the events in batches, each with its cursor and `caught_up`; keep-alives are empty batches."""
        with closing(self._responses()) as responses:
            for response in responses:
                events = tuple(fresh for event in response.events if (fresh := self._admit(event)) is not None)
                self._settle(response)
                yield Batch(
                    events=events,
                    cursor=response.cursor,
                    through_sequence=response.through_sequence,
                    caught_up=response.caught_up,
                )

    def _admit(self, event: Event) -> Event | None:
        """Returns the event, or the part of it that is new. Raises UnknownEvent."""
        known = event.WhichOneof("payload") is not None
        if not known and not event.ignorable:
            raise UnknownEvent(event)
        fresh = self._delivered.admit(event)
        return fresh if known else None

    def _settle(self, response: Response) -> None:
        """Moves the cursor after a response whose events were all delivered."""
        self._cursor = response.cursor or self._cursor
        self._through_sequence = max(self._through_sequence, response.through_sequence)
        self._caught_up = self._caught_up or response.caught_up

    def _responses(self) -> Generator[Response, None, None]:
        """Yields the responses of one connection after another."""
        patience = Patience(self._policy, may_renew=self._tokens is not None)
        while True:
            token = self._tokens.get() if self._tokens is not None else ""
            try:
                with closing(self._connection()) as responses:
                    for response in responses:
                        patience.responded()
                        self._away_since = None
                        yield response
                return
            except (SessionError, TransportError) as error:
                pause = patience.pause_after(error)
                if self._tokens is not None and isinstance(error, Unauthenticated):
                    self._tokens.reject(token)
                if isinstance(error, SessionError):
                    self._cursor = self._next_cursor(error)
            if pause and self._away_since is None:
                self._away_since = monotonic()
            sleep(pause)

    def _next_cursor(self, error: SessionError) -> str:
        """Returns where the stream goes on.

        A planned end (no wait) may be further on than the last response, by events that were filtered out. The cursor
        of any other end is never further on than what was delivered.
        """
        ours, error_cursor = self._cursor, error.cursor
        return error_cursor or ours if error.retry_after is None else ours or error_cursor

    def _connection(self) -> Generator[Response, None, None]:
        """Yields the responses of one call, from the cursor on."""
        with translated_errors():
            call = self._open(self._cursor)
        with closing(responses_of(call, silence=self._policy.silence.total_seconds())) as responses:
            for response in responses:
                yield response


class TurnStream(EventStream):
    """The events of one message's turn. Ends when the turn has ended or waits, raises the error of a failed turn.

    Another loop sends nothing again: it goes on where this one ended, for example after an approval was decided.
    """

    def __init__(
        self, open_call: Open, *, start: str, policy: ResumePolicy, request_id: str, tokens: Tokens | None = None
    ) -> None:
        super().__init__(open_call, start=start, policy=policy, tokens=tokens)
        self.request_id = request_id
        self._turn: Turn | None = None
        self._texts = TextAssembler()

    @property
    def turn(self) -> Turn | None:
        """The turn as it was at the stream's end; None before."""
        return self._turn

    def text(self) -> Generator[TextPiece, None, None]:
        """Yields the model's text as it arrives. `print(piece, end="")` in a loop shows it exactly, on a terminal, too.

        The pieces from the last one with `restart` on, joined, are the exact text.
        """
        with closing(iter(self)) as events:
            for event in events:
                text = self._texts.add(event)
                if text is not None:
                    yield text

    def messages(self) -> Generator[Message, None, None]:
        """Yields the model's messages, each once it is whole: the answer, and those that ask for tools before it."""
        with closing(iter(self)) as events:
            for event in events:
                if event.HasField("message_completed"):
                    yield message_of(event)

    def _settle(self, response: Response) -> None:
        super()._settle(response)
        if isinstance(response, StreamMessageResponse) and response.HasField("turn"):
            self._turn = response.turn
