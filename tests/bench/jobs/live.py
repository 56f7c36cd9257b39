"""Runs turns whose answers come at a model's pace, each in a session of its own."""

import asyncio
import random
import time
from typing import Any

from tests.bench import pacing
from tests.bench.figures import Invalid
from tests.bench.jobs.patient import responses_of
from tests.bench.jobs.turns import STREAM_MESSAGE, Deltas, text_of
from tests.bench.pacing import Pace
from tests.bench.runner import Channels
from tests.chaos.figures import quantile
from turnkeeper.pb.v1 import chat_pb2, message_pb2

Responses = list[tuple[float, bytes]]
"""Each response of a call, with the monotonic clock at its arrival."""


async def stream_live(
    channels: Channels, *, address: str, sessions: list[str], pace: list[int], concurrency: int, creates: bool = True
) -> dict[str, Any]:
    """Runs one turn in each session, `concurrency` at once. `pace`: chunks, ms apart, ms to the first.

    `creates`: the turns create their sessions, else these exist.

    Callers begin at random times within an answer's length. Raises Invalid unless every answer came whole and exact.
    Returns the `seconds` of all, the chunks' `late_ms` as p50 and p99, the number of `responses`, and the `answers`.
    """
    chosen = Pace(*pace)
    calls: list[Any] = [channel.unary_stream(STREAM_MESSAGE) for channel in await channels.to(address)]
    requests = [request_of(session, chosen, creates=creates) for session in sessions]
    waiting, streamed = iter(enumerate(requests)), dict[int, Responses]()
    chance = random.Random(concurrency)

    async def work(start: float) -> None:
        await asyncio.sleep(start)
        for number, request in waiting:
            # Only kept here; decoded when nothing is measured any more.
            streamed[number] = await responses_of(calls[number % len(calls)], request, clock=time.monotonic)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(chance.uniform(0, chosen.seconds)))
    seconds = time.perf_counter() - began
    read = [read_answer(sessions[number], streamed[number], chosen) for number in range(len(sessions))]
    late = [1000 * second for _, seconds_late in read for second in seconds_late]
    return {
        "seconds": seconds,
        "late_ms": [quantile(late, 0.5), quantile(late, 0.99)],
        "responses": sum(map(len, streamed.values())),
        "answers": [text for text, _ in read],
    }


def request_of(session_id: str, pace: Pace, *, creates: bool = True) -> bytes:
    """Returns a request for an answer at this pace; its turn creates its session, unless told otherwise."""
    request = chat_pb2.StreamMessageRequest(
        session_id=session_id, request_id=session_id, content=[message_pb2.Part(text=pace.message)]
    )
    if creates:
        request.create_session.agent = "bench"
    return request.SerializeToString()


def read_answer(session_id: str, responses: Responses, pace: Pace) -> tuple[str, list[float]]:
    """Returns the whole answer, and by how many seconds each of its chunks was late.

    Raises Invalid unless the turn is COMPLETED with an exact answer, and its deltas make a beginning of that answer.
    What no delta showed came with the whole message.
    """
    shown, whole, state, arrivals = Deltas(), "", chat_pb2.TURN_STATE_UNSPECIFIED, list[tuple[float, int]]()
    for at, raw in responses:
        response = chat_pb2.StreamMessageResponse.FromString(raw)
        for event in response.events:
            if event.HasField("content_delta"):
                shown.take(event.content_delta)
                arrivals.append((at, len(shown.text)))
            elif event.HasField("message_completed"):
                whole = text_of(event.message_completed.content)
                arrivals.append((at, len(whole)))
        state = response.turn.state
    if state != chat_pb2.TURN_STATE_COMPLETED:
        raise Invalid(f"{session_id}: a turn ended {chat_pb2.TurnState.Name(state)}")
    if not pacing.is_whole(whole, pace) or not whole.startswith(shown.text):
        raise Invalid(f"{session_id}: another answer came: {shown.text!r}, then {whole!r}")
    return whole, pacing.lateness(arrivals, whole, pace)
