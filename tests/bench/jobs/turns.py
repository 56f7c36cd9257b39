"""Turns, as a client makes them, and what is read of them afterwards. The same client calls floors and subject."""

import asyncio
import random
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

from tests.bench.figures import Invalid
from tests.bench.runner import Channels
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2, session_pb2, session_pb2_grpc

STREAM_MESSAGE = "/turnkeeper.v1.ChatService/StreamMessage"
_AT_ONCE = 32
"""Calls at once while nothing is measured."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One call: each response as bytes, and when it came, in seconds after the call's start."""

    session_id: str
    responses: list[tuple[float, bytes]]


async def create_sessions(channels: Channels, *, address: str, count: int, agent: str = "bench") -> list[str]:
    """Sessions with this agent."""
    ids = [f"bench-{uuid.uuid4().hex}" for _ in range(count)]
    stubs = [session_pb2_grpc.SessionServiceStub(channel) for channel in await channels.to(address)]
    limit = asyncio.Semaphore(_AT_ONCE)

    async def create(number: int, session_id: str) -> None:
        async with limit:
            request = session_pb2.CreateSessionRequest(session_id=session_id, agent=agent)
            await stubs[number % len(stubs)].CreateSession(request)

    async with asyncio.TaskGroup() as group:
        for number, session_id in enumerate(ids):
            group.create_task(create(number, session_id))
    return ids


async def stream_turns(
    channels: Channels,
    *,
    address: str,
    sessions: list[str],
    message: str,
    answer: str,
    concurrency: int,
    apart: float = 0.0,
) -> dict[str, Any]:
    """One turn in each session, so many at once; each must end COMPLETED with exactly this answer.

    `apart`: callers begin at random times within so many seconds; all at one moment would stay in step for ever.
    Gives `seconds` for all, `first_text_ms` of each, `responses` in all, and the ids of the turns.
    """
    opened = await channels.to(address)
    calls: list[Any] = [channel.unary_stream(STREAM_MESSAGE) for channel in opened]
    waiting = deque(
        (calls[number % len(calls)], session, _request(session, message)) for number, session in enumerate(sessions)
    )
    heard: list[Heard] = []
    chance = random.Random(concurrency)

    async def work(start: float) -> None:
        await asyncio.sleep(start)
        while waiting:
            call, session, request = waiting.popleft()
            began = time.perf_counter()
            # Only noted here; read when nothing is measured any more.
            responses = [(time.perf_counter() - began, response) async for response in call(request)]
            heard.append(Heard(session, responses))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(chance.uniform(0, apart)))
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "first_text_ms": [1000 * first_text(each, answer) for each in heard],
        "responses": sum(len(each.responses) for each in heard),
    }


async def read_back(channels: Channels, *, address: str, sessions: list[str], answer: str) -> int:
    """The sessions whose log, read again, has one whole turn with this answer. Raises Invalid for any other."""
    stubs = [session_pb2_grpc.SessionServiceStub(channel) for channel in await channels.to(address)]
    limit, logs = asyncio.Semaphore(_AT_ONCE), list[tuple[str, session_pb2.ListEventsResponse]]()

    async def read(number: int, session_id: str) -> None:
        async with limit:
            request = session_pb2.ListEventsRequest(session_id=session_id, page_size=100)
            logs.append((session_id, await stubs[number % len(stubs)].ListEvents(request)))

    async with asyncio.TaskGroup() as group:
        for number, session_id in enumerate(sessions):
            group.create_task(read(number, session_id))
    for session_id, found in logs:
        if [event.sequence for event in found.events] != list(range(1, len(found.events) + 1)) or found.more:
            raise Invalid(f"{session_id}: its log has a gap")
        said = [event.message_completed for event in found.events if event.HasField("message_completed")]
        ends = [event.WhichOneof("payload") for event in found.events[-1:]]
        if [_text(each.content) for each in said] != [answer] or ends != ["turn_completed"]:
            raise Invalid(f"{session_id}: its log has no whole turn: {said} {ends}")
    return len(sessions)


def _request(session_id: str, message: str) -> bytes:
    return chat_pb2.StreamMessageRequest(
        session_id=session_id, request_id=uuid.uuid4().hex, content=[message_pb2.Part(text=message)]
    ).SerializeToString()


def first_text(heard: Heard, answer: str) -> float:
    """Seconds to the first text. Raises Invalid unless the whole answer came, and the turn is COMPLETED."""
    first, said, whole, state = None, _Deltas(), None, chat_pb2.TURN_STATE_UNSPECIFIED
    for at, raw in heard.responses:
        response = chat_pb2.StreamMessageResponse.FromString(raw)
        for event in response.events:
            if event.HasField("content_delta"):
                said.take(event.content_delta)
            if event.HasField("message_completed"):
                whole = _text(event.message_completed.content)
        if first is None and (said.text or whole):
            first = at
        state = response.turn.state
    if state != chat_pb2.TURN_STATE_COMPLETED or first is None:
        raise Invalid(f"{heard.session_id}: a turn ended {chat_pb2.TurnState.Name(state)}")
    if whole != answer or not answer.startswith(said.text):
        raise Invalid(f"{heard.session_id}: another answer came: {said.text!r}, then {whole!r}")
    return first


class _Deltas:
    """The text of a message as a client shows it while it is written."""

    def __init__(self) -> None:
        self.text = ""
        self._attempt = 0

    def take(self, delta: event_pb2.ContentDelta) -> None:
        """A higher attempt begins anew; a floor knows no attempts, and no offsets."""
        if delta.attempt > self._attempt:
            self._attempt, self.text = delta.attempt, ""
        if delta.attempt and delta.offset != len(self.text.encode()):
            raise Invalid(f"a delta at {delta.offset} came after {len(self.text)} bytes of text")
        self.text += delta.text


def _text(content: Any) -> str:
    return "".join(part.text for part in content)
