"""The load on the service while it is replaced, by its own Python client, whose retries are the only ones."""

import asyncio
import time
from dataclasses import dataclass, field

from turnkeeper_client import Client
from turnkeeper_client.errors import SessionError, TransportError
from turnkeeper_client.pb.v1 import chat_pb2
from turnkeeper_client.session import Session

PAUSE = 0.05
"""Seconds between two unary calls of one caller."""
LEAST_EVENTS = 16
"""The least events of a whole session: four turns of four events."""
TALES = 4
"""Messages in one session; then the session ends, and a new one begins."""


def tale(name: str) -> str:
    """Returns the model's answer to `tell NAME`."""
    return f"{name}: once upon a time, in a plain and quiet place, a keeper counted to ten, 永遠に, and never lost one."


SCRIPT = r"""
[[reply]]
match = '^tell (?P<name>\S+)'
chunk = 6
delay = "60ms"
text = "TALE"
""".replace("TALE", tale("{name}"))


@dataclass(slots=True)
class Counts:
    """The counts of a load. `failed` and `wrong` hold a line for each failure."""

    unary: int = 0
    turns: int = 0
    streams: int = 0
    slowest_unary: float = 0.0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Load:
    """Runs talkers that stream, askers that make unary calls, and followers that watch, until `stop` is set."""

    def __init__(self, target: str) -> None:
        self.counts = Counts()
        self.stop = asyncio.Event()
        self._target = target

    async def run(self, *, talkers: int, askers: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(talkers):
                group.create_task(self._talk(number))
            for _ in range(askers):
                group.create_task(self._ask())

    async def _talk(self, number: int) -> None:
        """Opens session after session; each is followed from its first event to its end."""
        async with Client(self._target) as client:
            count = 0
            while not self.stop.is_set():
                count += 1
                try:
                    await self._session(client, f"r-{number}-{count}")
                except* (SessionError, TransportError, TimeoutError) as group:
                    self.counts.failed += [f"session r-{number}-{count}: {error!r}" for error in group.exceptions]

    async def _session(self, client: Client, name: str) -> None:
        session = await client.sessions.create("talker", session_id=name)
        self.counts.unary += 1
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._follow(client.session(name)))
            for number in range(TALES):
                await self._tell(session, f"{name}-{number}")
            await client.sessions.end(name)
            self.counts.unary += 1
            await asyncio.wait_for(following, 60)

    async def _tell(self, session: Session, label: str) -> None:
        shown, stream = "", session.stream(f"tell {label}", request_id=label)
        async for text in stream.text():
            shown = text[:] if text.restart else shown + text
        self.counts.streams += 1
        turn = stream.turn
        if turn is None or turn.state != chat_pb2.TURN_STATE_COMPLETED:
            self.counts.wrong.append(f"{label}: its stream ended with {turn}")
            return
        self.counts.turns += 1
        answer = "".join(part.text for part in turn.answer)
        if shown != tale(label) or answer != tale(label):
            self.counts.wrong.append(f"{label}: {shown!r} was streamed, {answer!r} is stored")

    async def _follow(self, session: Session) -> None:
        """Follows the session to its end, and checks that every durable event arrives once and in order."""
        given = [event.sequence async for event in session.follow(previews=False)]
        stored = [event.sequence async for event in session.follow(previews=False, until_caught_up=True)]
        self.counts.streams += 1
        if given != stored or len(given) < LEAST_EVENTS:
            self.counts.wrong.append(f"{session.id}: events {given} were given, {stored} are stored")

    async def _ask(self) -> None:
        """Makes short calls, all the time."""
        async with Client(self._target) as client:
            session = await client.sessions.create("talker")
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    await client.sessions.get(session.id)
                except (SessionError, TransportError) as error:
                    self.counts.failed.append(f"GetSession: {error!r}")
                self.counts.unary += 1
                self.counts.slowest_unary = max(self.counts.slowest_unary, time.monotonic() - began)
                await asyncio.sleep(PAUSE)
