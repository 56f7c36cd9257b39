"""Callers behind the proxy: each talks in several sessions at once, streams, waits and reads, and checks every byte."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from tests.chaos import tenants
from tests.mesh.call_records import FOREIGN, INEXACT, PATIENCE, CallRecords
from tests.mesh.script import WORKER, texts_of, work
from turnkeeper_client import Client
from turnkeeper_client.errors import TurnkeeperError
from turnkeeper_client.pb.v1.chat_pb2 import TURN_STATE_CANCELLED, TURN_STATE_COMPLETED, TURN_STATE_FAILED, Turn
from turnkeeper_client.pb.v1.event_pb2 import Event
from turnkeeper_client.session import Session
from turnkeeper_client.streams import EventStream
from turnkeeper_client.text import TextAssembler, TextPiece

TURNS: Final = 2
"""Turns in one session; then it ends, and a new one begins."""
READ_EVERY: Final = 4.0
WAIT: Final = timedelta(seconds=60)
TURN_TIME: Final = 180.0
"""Seconds after which a turn that has not ended counts as wrong."""
FOLLOW_TIME: Final = 90.0
"""Seconds after its session's end that a reader has for the rest."""
_ENDED: Final = (TURN_STATE_COMPLETED, TURN_STATE_FAILED, TURN_STATE_CANCELLED)

Waiting = asyncio.Task[Turn | None]


class Caller:
    """One caller of a tenant, with a connection of its own. The same numbers in both tenants have the same ids."""

    def __init__(
        self, number: int, tenant: str, client: Client, records: CallRecords, *, rng: random.Random, stop: asyncio.Event
    ) -> None:
        self._name = f"c{number}"
        self._tenant = tenant
        self._client = client
        self._records = records
        self._rng = rng
        self._stop = stop

    async def live(self, *, lanes: int) -> None:
        """Talks in so many sessions at a time until stopped, and then to the end of each."""
        async with asyncio.TaskGroup() as group:
            for lane in range(lanes):
                group.create_task(self._talk(lane))

    async def _talk(self, lane: int) -> None:
        await asyncio.sleep(self._rng.uniform(0, 15))
        count = 0
        while not self._stop.is_set():
            count += 1
            await self._session(f"{self._name}-{lane}-{count}", chosen=count % 2 == 0)

    async def _session(self, name: str, *, chosen: bool) -> None:
        """Opens a session, has its turns, and ends it; a reader follows it. `chosen`: the caller chooses the id."""
        ours, request = (f"s-{name}", "") if chosen else ("", name)
        session = await self._records.answered(
            "CreateSession", lambda: self._client.sessions.create(WORKER, session_id=ours, request_id=request)
        )
        if session is None:
            await asyncio.sleep(1)
            return
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._follow(self._client.session(session.id)))
            group.create_task(self._read(session, over))
            for number in range(TURNS):
                if self._stop.is_set():
                    break
                await self._turn(session, tenants.label(self._tenant, f"{name}-{number}"))
            over.set()
            await self._records.answered("EndSession", session.end)
            await asyncio.wait([following], timeout=FOLLOW_TIME)
            if not following.done():
                self._inexact(session.id, "its reader was not given the session's end")
                following.cancel()

    async def _turn(self, session: Session, label: str) -> None:
        self._records.counts["turns"] += 1
        if self._rng.random() < 0.5:
            await self._stream(session, label)
            return
        turn = await self._records.answered(
            "SendMessage", lambda: session.send(work(label), wait=WAIT, request_id=label)
        )
        if turn is not None:
            self._expect_answer(turn if turn.state in _ENDED else await self._waited(session, turn.turn_id), label)

    async def _stream(self, session: Session, label: str) -> None:
        """Streams a turn, and waits for it by a unary call at the same time."""
        stream, shown, waiting = session.stream(work(label), request_id=label), Shown(), list[Waiting]()
        texts = TextAssembler()

        def read(event: Event) -> None:
            if not waiting:
                waiting.append(asyncio.create_task(self._waited(session, event.turn_id)))
            self._expect_ours(event, label)
            if (text := texts.add(event)) is not None:
                shown.add(text)

        if await self._to_its_end("StreamMessage", label, stream, read):
            if shown.texts != list(texts_of(label)):
                self._inexact(label, f"{shown.texts} was streamed")
            self._expect_answer(stream.turn, label)
        for task in waiting:
            self._expect_answer(await task, label)

    async def _to_its_end(self, rpc: str, label: str, stream: EventStream, read: Callable[[Event], None]) -> bool:
        """Reads a stream to its end. Returns False if it ended with an error.

        A stream that could not be opened, or opened again, is opened once more if the error advises the same call.
        """
        first: float | None = None
        while True:
            try:
                async for event in stream:
                    read(event)
                self._records.counts["streams"] += 1
                return True
            except TurnkeeperError as error:
                first = first or time.monotonic()
                if not await self._records.repeats(rpc, error, until=first + PATIENCE):
                    self._inexact(label, f"its stream ended with {error!r}")
                    return False

    async def _waited(self, session: Session, turn_id: str) -> Turn | None:
        """Returns the turn once it has ended: one that was taken over may run for longer than a wait."""
        until = time.monotonic() + TURN_TIME
        while True:
            turn = await self._records.answered("GetTurn", lambda: session.turn(turn_id, wait=WAIT))
            if turn is None or turn.state in _ENDED or time.monotonic() > until:
                return turn

    async def _follow(self, session: Session) -> None:
        """Follows a session to its end, and compares what came with what is stored."""
        given = list[Event]()

        def read(event: Event) -> None:
            self._expect_ours(event, session.id)
            given.append(event)

        if not await self._to_its_end("WatchEvents", session.id, session.follow(previews=False), read):
            return

        async def stored() -> list[Event]:
            return [event async for event in session.events()]

        events = await self._records.answered("ListEvents", stored)
        if events is not None and given != events:
            ours, theirs = ([event.sequence for event in some] for some in (given, events))
            self._inexact(session.id, f"events {ours} were given, {theirs} are stored, or their contents differ")

    async def _read(self, session: Session, over: asyncio.Event) -> None:
        """Makes short calls until the session is over."""
        while not over.is_set():
            await self._records.answered("GetSession", session.get)
            await asyncio.sleep(READ_EVERY * (0.5 + self._rng.random()))

    def _expect_ours(self, event: Event, where: str) -> None:
        if tenants.is_foreign(event.SerializeToString(), self._tenant):
            self._records.line(FOREIGN, call=where, error=f"event {event.sequence} has a text of another tenant")

    def _expect_answer(self, turn: Turn | None, label: str) -> None:
        """Checks the answer of a turn; one whose call failed is counted already."""
        if turn is None:
            return
        answer = "".join(part.text for part in turn.answer)
        if turn.state != TURN_STATE_COMPLETED or answer != texts_of(label)[-1]:
            self._inexact(label, f"its turn ended as {turn.state} with {answer!r}")

    def _inexact(self, what: str, why: str) -> None:
        self._records.line(INEXACT, call=what, error=why)


class Shown:
    """The messages of a turn, as a reader's screen has them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str]] = []

    @property
    def texts(self) -> list[str]:
        return [shown for _, shown in self._messages]

    def add(self, text: TextPiece) -> None:
        """Adds a piece; one that restarts takes the unfinished message before it away."""
        if text.restart and self._messages:
            self._messages.pop()
        if self._messages and self._messages[-1][0] == text.message_id:
            self._messages[-1] = (text.message_id, self._messages[-1][1] + text)
            return
        self._messages.append((text.message_id, "" + text))
