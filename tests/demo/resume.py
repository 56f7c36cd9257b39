"""A client that is cut in mid-message and resumes by its cursor; on the wire, without the client's own help."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from tests.demo.approve import log_of
from tests.demo.breaks import Break
from tests.demo.heard import Heard, answer, end, joined, misplaced, numbered
from tests.demo.parts import Parts
from tests.demo.report import BrokenPromise, Step
from turnkeeper_client import Client
from turnkeeper_client.pb.v1.chat_pb2 import StreamMessageRequest, StreamMessageResponse
from turnkeeper_client.pb.v1.message_pb2 import Part

TITLE = "a client is cut in mid-message and resumes at the exact byte"
PIECES_BEFORE = 12
BYTES_MISSED = 60


async def run(step: Step, parts: Parts) -> None:
    async with parts.client() as observer:
        session = await observer.sessions.create("writer")
        request = StreamMessageRequest(
            session_id=session.id, request_id="story-1", content=[Part(text="Tell me a story.")], previews=True
        )
        step.say("A client sends a message with the request id `story-1`; its connection is closed in mid-answer.")
        step.begin_text("writer")
        before, cursors = await _until_cut(step, parts, request)
        got = end(before.deltas)
        step.check("`message_completed` seen before the cut", before.has("message_completed"), expected=False)
        missed = await _went_on(observer, session.id, beyond=got + BYTES_MISSED)
        step.holds(f"it has {got} bytes; the model goes on without it, at least to byte", missed > got, came=missed)
        # The broken demo goes on from an older place than the one that it had reached.
        request.after = cursors[len(cursors) // 2] if parts.broken is Break.RESUME else cursors[-1]
        step.say("It comes back on a new connection: the same request id, and its last cursor.")
        step.begin_text("writer")
        after = await _resumed(step, parts, request)
        log = await log_of(session)
        stored = answer(log.durable)
        step.check("the first new piece begins at byte", after.deltas[0].offset, expected=got)
        step.check("pieces out of place", misplaced([*before.deltas, *after.deltas]), expected=[])
        text = joined(before.deltas) + joined(after.deltas)
        step.same_bytes("what it got before and after is the message stored", text, expected=stored)
        step.holds("it was cut in the middle of that", 0 < got < len(stored), came=f"byte {got} of {len(stored)}")
        both = before.durable + after.durable
        turn = log.of_turn(both[0].turn_id)
        step.check("the turn's stored events, each seen once", numbered(both), expected=numbered(turn))
        step.check("the message was sent", log.kinds.count("message_received"), expected=1, told="once")


async def _until_cut(step: Step, parts: Parts, request: StreamMessageRequest) -> tuple[Heard, list[str]]:
    """What came until the connection was closed, and the cursor that came with each batch of text."""
    heard = Heard()
    cursors: list[str] = []
    async with parts.client() as client, aclosing(_responses(client, request)) as responses:
        async for response in responses:
            for event in response.events:
                step.text(heard.add(event))
            if heard.deltas:
                cursors.append(response.cursor)
            if len(heard.deltas) >= PIECES_BEFORE:
                await client.close()
                return heard, cursors
    raise BrokenPromise(f"the stream ended after {len(heard.deltas)} pieces, before it could be cut")


async def _went_on(observer: Client, session_id: str, *, beyond: int) -> int:
    """How far the message is, once another client was told of a piece that ends after `beyond`."""
    heard = Heard()
    async for event in observer.session(session_id).follow():
        heard.add(event)
        if heard.has("message_completed"):
            return len(answer(heard.durable))
        if end(heard.deltas) > beyond:
            break
    return end(heard.deltas)


async def _resumed(step: Step, parts: Parts, request: StreamMessageRequest) -> Heard:
    heard = Heard()
    async with parts.client() as client, aclosing(_responses(client, request)) as responses:
        async for response in responses:
            for event in response.events:
                step.text(heard.add(event))
    return heard


async def _responses(client: Client, request: StreamMessageRequest) -> AsyncGenerator[StreamMessageResponse]:
    """The responses as they are on the wire; nothing is dropped or opened again."""
    call = client.stubs.chat.StreamMessage(request)
    try:
        async for response in call:
            yield response
    finally:
        call.cancel()
