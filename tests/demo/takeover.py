"""Shows a server that is killed with SIGKILL in mid-message, and the next one, which finishes the turn."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from tests.demo.approve import log_of
from tests.demo.breaks import Break
from tests.demo.parts import LEASE, Parts
from tests.demo.program import Server, children
from tests.demo.received import Received, answer, end, joined, misplaced, numbered
from tests.demo.report import BrokenPromise, Step
from tests.processes import alive, until
from turnkeeper_client.pb.v1.chat_pb2 import TurnState
from turnkeeper_client.pb.v1.event_pb2 import Event

TITLE = "a killed server's turn is finished by another server"
REQUEST = "Tell Grace a letter is coming, and write it."
DELTAS_BEFORE = 12
TAKEOVER_TIME = 20.0
"""Seconds for the rest of the turn after the kill: the start of a server, the lease, the whole letter."""


async def run(step: Step, parts: Parts) -> None:
    first = parts.server
    async with parts.client() as client:
        session = await client.sessions.create("writer")
        step.describe(
            f"Server 1 (pid {first.pid}) runs a turn: a tool call, then a letter. It is killed in the letter's middle."
        )
        step.begin_text("you")
        step.text(REQUEST)
        step.begin_text("writer")
        async with aclosing(aiter(session.stream(REQUEST))) as events:
            before = await _receive(events, step, Received(), deltas=DELTAS_BEFORE)
            sent = len(parts.outbox("Grace"))
            helpers = children(first.pid)
            await first.kill()
            killed = time.monotonic()
            await _is_dead(step, first, helpers, before=before)
            step.check("messages the tool had sent to Grace", sent, expected=1)
            await _start_next(step, parts, first)
            after = await _finished(step, events, since=killed)
        log = await log_of(session)
        turn = await session.turn(log.durable[-1].turn_id)
        step.check("the turn ended", TurnState.Name(turn.state), expected="TURN_STATE_COMPLETED")
        step.holds(f"its attempt, {before.attempt} before the kill", turn.attempt > before.attempt, came=turn.attempt)
        _nothing_lost(step, before, after, log)
        step.check("messages sent to Grace by both servers", len(parts.outbox("Grace")), expected=1)


async def _receive(events: AsyncIterator[Event], step: Step, received: Received, *, deltas: int = 0) -> Received:
    """Reads until there are so many deltas of text; 0: until the stream ends."""
    async for event in events:
        if event.HasField("attempt_superseded"):
            lost = event.attempt_superseded.superseded_attempt
            step.describe(f"Attempt {event.attempt} replaces attempt {lost}: the letter begins anew.")
            step.begin_text("writer")
        step.text(received.add(event))
        if deltas and len(received.deltas) >= deltas:
            break
    return received


async def _is_dead(step: Step, server: Server, helpers: set[int], *, before: Received) -> None:
    got = end(before.deltas)
    step.holds("bytes of the letter received before", got > 0, came=got)
    whole = before.kinds.count("message_completed")
    step.check("whole messages before (the one with the tool call)", whole, expected=1)
    step.check(f"pid {server.pid} runs", alive(server.pid), expected=False)
    step.check("it ended by signal", -(server.process.returncode or 0), expected=9)
    await until(lambda: not any(alive(pid) for pid in helpers))
    step.check("child processes that it left behind", [pid for pid in helpers if alive(pid)], expected=[])


async def _start_next(step: Step, parts: Parts, first: Server) -> None:
    if Break.TAKEOVER in parts.broken:
        return
    second = await parts.start_server(port=first.port)
    step.describe(
        f"Server 2 (pid {second.pid}) serves on the same port, and must wait until the dead one's lease of {LEASE} s "
        "runs out. The client has nothing to do: its stream connects again by itself."
    )
    step.check("another pid", second.pid != first.pid, expected=True, display=f"{second.pid} after {first.pid}")


async def _finished(step: Step, events: AsyncIterator[Event], *, since: float) -> Received:
    after = Received()
    try:
        async with asyncio.timeout(TAKEOVER_TIME):
            await _receive(events, step, after)
    except TimeoutError:
        raise BrokenPromise(
            f"another server finishes the turn\n    expected: its end within {TAKEOVER_TIME:.0f} s of the kill"
            f"\n    came:     {numbered(after.durable) or 'not one event'} since the kill"
        ) from None
    step.check("`attempt_superseded` received", after.kinds.count("attempt_superseded"), expected=1, display="once")
    step.describe(f"{time.monotonic() - since:.1f} s after the kill the turn has ended.")
    return after


def _nothing_lost(step: Step, before: Received, after: Received, log: Received) -> None:
    turn = log.of_turn(before.durable[0].turn_id)
    kept = turn[: len(before.durable)]
    step.check("events received before the kill", numbered(before.durable), expected=numbered(kept))
    step.check("they are stored, unchanged", before.durable == kept, expected=True)
    step.check("events received after it", numbered(after.durable), expected=numbered(turn[len(kept) :]))
    count = len(log.durable)
    step.check("the log's numbers", log.sequences, expected=list(range(1, count + 1)), display=f"1 to {count}, no gap")
    stored = answer(log.durable)
    letter = after.of(after.attempt)
    step.check("deltas of the new attempt out of place", misplaced(letter), expected=[])
    step.same_bytes("its text is the stored message", joined(letter), expected=stored)
    got = end(before.deltas)
    step.holds("the kill came in the middle of it", 0 < got < len(stored), came=f"byte {got} of {len(stored)}")
