"""A second client that follows the session of the first."""

import asyncio

from tests.demo.approve import log_of
from tests.demo.heard import Heard, answer, joined, misplaced, numbered
from tests.demo.parts import Parts
from tests.demo.report import Step
from turnkeeper_client import Session

TITLE = "a second client follows the same session"
REQUEST = "Tell me a story."


async def run(step: Step, parts: Parts) -> None:
    async with parts.client() as first, parts.client() as second:
        session = await first.sessions.create("writer")
        follower = Follower(second.session(session.id))
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follower.run())
            await follower.caught_up.wait()
            step.say("A second client, on a connection of its own, follows the session before anything is said in it.")
            one = await _stream(step, session)
            await following
        two = follower.heard
        turn_id = one.durable[0].turn_id
        turn = two.of_turn(turn_id)
        step.check("the turn's events, as both clients saw them", numbered(one.durable), expected=numbered(turn))
        step.check("they are the same in every field", one.durable == turn, expected=True)
        log = await log_of(session)
        count = len(log.durable)
        all_of_them = f"1 to {count}, no gap"
        step.check(
            "with those of the session itself, the second saw", two.sequences, expected=log.sequences, told=all_of_them
        )
        step.check("which is the whole log", log.sequences, expected=list(range(1, count + 1)), told=f"{count} events")
        step.holds("live pieces of text the second got", len(two.deltas) > 1, came=len(two.deltas))
        step.check("pieces out of place", misplaced(two.deltas), expected=[])
        step.same_bytes("the first one's text is the message stored", joined(one.deltas), expected=answer(log.durable))
        step.same_bytes("the second one's text is the same", joined(two.deltas), expected=answer(log.durable))


class Follower:
    """Follows a session until a turn has ended."""

    def __init__(self, session: Session) -> None:
        self.heard = Heard()
        self.caught_up = asyncio.Event()
        self._session = session

    async def run(self) -> None:
        async for batch in self._session.follow().batches():
            if batch.caught_up:
                self.caught_up.set()
            for event in batch.events:
                self.heard.add(event)
            if self.heard.has("turn_completed"):
                return


async def _stream(step: Step, session: Session) -> Heard:
    step.begin_text("you")
    step.text(REQUEST)
    step.begin_text("writer")
    heard = Heard()
    async for event in session.stream(REQUEST):
        step.text(heard.add(event))
    return heard
