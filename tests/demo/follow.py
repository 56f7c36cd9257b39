"""Shows a second client that follows the session of the first."""

import asyncio

from tests.demo.approve import log_of
from tests.demo.parts import Parts
from tests.demo.received import Received, answer, joined, misplaced, numbered
from tests.demo.report import Step
from turnkeeper_client import Session

TITLE = "a second client follows the same session"
REQUEST = "Tell me a story."


async def run(step: Step, parts: Parts) -> None:
    async with parts.client() as first, parts.client() as second:
        session = await first.sessions.create("writer")
        watching = WatchingClient(second.session(session.id))
        async with asyncio.TaskGroup() as group:
            following = group.create_task(watching.run())
            await watching.caught_up.wait()
            step.describe("A second client, on a connection of its own, follows the session before its first message.")
            one = await _stream(step, session)
            await following
        two = watching.received
        turn_id = one.durable[0].turn_id
        turn = two.of_turn(turn_id)
        step.check("the turn's events, as both clients received them", numbered(one.durable), expected=numbered(turn))
        step.check("equal in every field", one.durable == turn, expected=True)
        log = await log_of(session)
        count = len(log.durable)
        numbers = f"1 to {count}, no gap"
        step.check(
            "all events that the second client received",
            two.sequences,
            expected=log.sequences,
            display=numbers,
        )
        step.check("the whole log", log.sequences, expected=list(range(1, count + 1)), display=f"{count} events")
        step.holds("deltas that the second client received live", len(two.deltas) > 1, came=len(two.deltas))
        step.check("deltas out of place", misplaced(two.deltas), expected=[])
        step.same_bytes(
            "the first client's text is the stored message", joined(one.deltas), expected=answer(log.durable)
        )
        step.same_bytes(
            "the second client's text is the stored message", joined(two.deltas), expected=answer(log.durable)
        )


class WatchingClient:
    """A client that follows a session until a turn has ended."""

    def __init__(self, session: Session) -> None:
        self.received = Received()
        self.caught_up = asyncio.Event()
        self._session = session

    async def run(self) -> None:
        async for batch in self._session.follow().batches():
            if batch.caught_up:
                self.caught_up.set()
            for event in batch.events:
                self.received.add(event)
            if self.received.has("turn_completed"):
                return


async def _stream(step: Step, session: Session) -> Received:
    step.begin_text("you")
    step.text(REQUEST)
    step.begin_text("writer")
    received = Received()
    async for event in session.stream(REQUEST):
        step.text(received.add(event))
    return received
