"""Shows a client that is cut in mid-message and resumes by its cursor, by raw calls without the client's help."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from tests.demo.approve import log_of
from tests.demo.breaks import Break
from tests.demo.parts import Parts
from tests.demo.received import Received, answer, end, joined, misplaced, numbered
from tests.demo.report import BrokenPromise, Step
from turnkeeper_client import Client
from turnkeeper_client.pb.v1.chat_pb2 import StreamMessageRequest, StreamMessageResponse
from turnkeeper_client.pb.v1.message_pb2 import Part

TITLE = "a client that is cut off resumes at the exact byte"
DELTAS_BEFORE = 12
BYTES_MISSED = 60


async def run(step: Step, parts: Parts) -> None:
    async with parts.client() as observer:
        session = await observer.sessions.create("writer")
        request = StreamMessageRequest(
            session_id=session.id, request_id="story-1", content=[Part(text="Tell me a story.")], previews=True
        )
        step.describe("A client sends a message with the request id `story-1`; its connection is closed in mid-answer.")
        step.begin_text("writer")
        before, cursors = await _until_cut(step, parts, request)
        got = end(before.deltas)
        step.check("`message_completed` received before the cut", before.has("message_completed"), expected=False)
        missed = await _byte_reached(observer, session.id, beyond=got + BYTES_MISSED)
        step.holds(f"it has {got} bytes; the model goes on meanwhile, at least to byte", missed > got, came=missed)
        # The broken demo resumes from an older cursor than its last one.
        request.after = cursors[len(cursors) // 2] if Break.RESUME in parts.broken else cursors[-1]
        step.describe("It comes back on a new connection, with the same request id and its last cursor.")
        step.begin_text("writer")
        after = await _resumed(step, parts, request)
        log = await log_of(session)
        stored = answer(log.durable)
        step.check("the first new delta begins at byte", after.deltas[0].offset, expected=got)
        step.check("deltas out of place", misplaced([*before.deltas, *after.deltas]), expected=[])
        text = joined(before.deltas) + joined(after.deltas)
        step.same_bytes("its text before and after the cut is the stored message", text, expected=stored)
        step.holds("the cut was in the middle of it", 0 < got < len(stored), came=f"byte {got} of {len(stored)}")
        both = before.durable + after.durable
        turn = log.of_turn(both[0].turn_id)
        step.check("the turn's stored events, each received once", numbered(both), expected=numbered(turn))
        step.check("the message was accepted", log.kinds.count("message_received"), expected=1, display="once")


async def _until_cut(step: Step, parts: Parts, request: StreamMessageRequest) -> tuple[Received, list[str]]:
    """Reads until there is enough text, and closes the connection. Returns the events and each batch's cursor."""
    received = Received()
    cursors: list[str] = []
    async with parts.client() as client, aclosing(_responses(client, request)) as responses:
        async for response in responses:
            for event in response.events:
                step.text(received.add(event))
            if received.deltas:
                cursors.append(response.cursor)
            if len(received.deltas) >= DELTAS_BEFORE:
                await client.close()
                return received, cursors
    raise BrokenPromise(f"the stream ended after {len(received.deltas)} deltas, before it could be cut")


async def _byte_reached(observer: Client, session_id: str, *, beyond: int) -> int:
    """Returns how far the message is once another client has received a delta that ends after `beyond`."""
    received = Received()
    async for event in observer.session(session_id).follow():
        received.add(event)
        if received.has("message_completed"):
            return len(answer(received.durable))
        if end(received.deltas) > beyond:
            break
    return end(received.deltas)


async def _resumed(step: Step, parts: Parts, request: StreamMessageRequest) -> Received:
    received = Received()
    async with parts.client() as client, aclosing(_responses(client, request)) as responses:
        async for response in responses:
            for event in response.events:
                step.text(received.add(event))
    return received


async def _responses(client: Client, request: StreamMessageRequest) -> AsyncGenerator[StreamMessageResponse]:
    """Yields the responses of one call; nothing is dropped, and the call is not repeated."""
    call = client.stubs.chat.StreamMessage(request)
    try:
        async for response in call:
            yield response
    finally:
        call.cancel()
