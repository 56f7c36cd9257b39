"""Runs turns as a client does, and reads their logs afterwards. The same client calls floors and subject."""

import asyncio
import random
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

from tests.bench.figures import Invalid
from tests.bench.jobs.patient import responses_of
from tests.bench.runner import Channels
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2, session_pb2, session_pb2_grpc

STREAM_MESSAGE = "/turnkeeper.v1.ChatService/StreamMessage"
_AT_ONCE = 32
"""Calls at once while nothing is measured."""


@dataclass(frozen=True, slots=True)
class StreamedTurn:
    """One call: each response as bytes, with its arrival in seconds after the call's start."""

    session_id: str
    responses: list[tuple[float, bytes]]


async def create_sessions(channels: Channels, *, address: str, count: int, agent: str = "bench") -> list[str]:
    """Creates sessions with this agent. Returns their ids."""
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
    """Runs one turn in each session, `concurrency` at once. Raises Invalid unless each ends COMPLETED with this answer.

    `apart`: callers begin at random times within this many seconds, so that they do not stay in step.
    Returns the `seconds` of all, the `first_text_ms` of each, and the number of all `responses`.
    """
    opened = await channels.to(address)
    calls: list[Any] = [channel.unary_stream(STREAM_MESSAGE) for channel in opened]
    waiting = deque(
        (calls[number % len(calls)], session, _request(session, message)) for number, session in enumerate(sessions)
    )
    streamed: list[StreamedTurn] = []
    chance = random.Random(concurrency)

    async def work(start: float) -> None:
        await asyncio.sleep(start)
        while waiting:
            call, session, request = waiting.popleft()
            began = time.perf_counter()
            # Only kept here; decoded when nothing is measured any more.
            responses = await responses_of(call, request, clock=time.perf_counter)
            streamed.append(StreamedTurn(session, [(at - began, response) for at, response in responses]))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(chance.uniform(0, apart)))
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "first_text_ms": [1000 * first_text(streamed_turn, answer) for streamed_turn in streamed],
        "responses": sum(len(streamed_turn.responses) for streamed_turn in streamed),
    }


async def read_back(channels: Channels, *, address: str, sessions: list[str], answers: list[str]) -> int:
    """Reads the sessions' logs again. Raises Invalid unless each has one whole turn with its answer."""
    stubs = [session_pb2_grpc.SessionServiceStub(channel) for channel in await channels.to(address)]
    limit, logs = asyncio.Semaphore(_AT_ONCE), list[tuple[str, session_pb2.ListEventsResponse]]()

    async def read(number: int, session_id: str) -> None:
        async with limit:
            request = session_pb2.ListEventsRequest(session_id=session_id, page_size=100)
            logs.append((session_id, await stubs[number % len(stubs)].ListEvents(request)))

    async with asyncio.TaskGroup() as group:
        for number, session_id in enumerate(sessions):
            group.create_task(read(number, session_id))
    expected = dict(zip(sessions, answers, strict=True))
    for session_id, log in logs:
        if [event.sequence for event in log.events] != list(range(1, len(log.events) + 1)) or log.more:
            raise Invalid(f"{session_id}: its log has a gap")
        messages = [event.message_completed for event in log.events if event.HasField("message_completed")]
        ends = [event.WhichOneof("payload") for event in log.events[-1:]]
        if [text_of(message.content) for message in messages] != [expected[session_id]] or ends != ["turn_completed"]:
            raise Invalid(f"{session_id}: its log has no whole turn: {messages} {ends}")
    return len(sessions)


def _request(session_id: str, message: str) -> bytes:
    return chat_pb2.StreamMessageRequest(
        session_id=session_id, request_id=uuid.uuid4().hex, content=[message_pb2.Part(text=message)]
    ).SerializeToString()


def first_text(streamed: StreamedTurn, answer: str) -> float:
    """Returns the seconds to the first text. Raises Invalid unless the whole answer came and the turn is COMPLETED."""
    first, shown, whole, state = None, Deltas(), None, chat_pb2.TURN_STATE_UNSPECIFIED
    for at, raw in streamed.responses:
        response = chat_pb2.StreamMessageResponse.FromString(raw)
        for event in response.events:
            if event.HasField("content_delta"):
                shown.take(event.content_delta)
            if event.HasField("message_completed"):
                whole = text_of(event.message_completed.content)
        if first is None and (shown.text or whole):
            first = at
        state = response.turn.state
    if state != chat_pb2.TURN_STATE_COMPLETED or first is None:
        raise Invalid(f"{streamed.session_id}: a turn ended {chat_pb2.TurnState.Name(state)}")
    if whole != answer or not answer.startswith(shown.text):
        raise Invalid(f"{streamed.session_id}: another answer came: {shown.text!r}, then {whole!r}")
    return first


class Deltas:
    """The text of a message as a client shows it while it is written."""

    def __init__(self) -> None:
        self.text = ""
        self._attempt = 0

    def take(self, delta: event_pb2.ContentDelta) -> None:
        """Adds a delta; a higher attempt begins anew. A floor's deltas have no attempts and no offsets."""
        if delta.attempt > self._attempt:
            self._attempt, self.text = delta.attempt, ""
        if delta.attempt and delta.offset != len(self.text.encode()):
            raise Invalid(f"a delta at {delta.offset} came after {len(self.text)} bytes of text")
        self.text += delta.text


def text_of(content: Any) -> str:
    """Returns the text of a message's parts."""
    return "".join(part.text for part in content)
