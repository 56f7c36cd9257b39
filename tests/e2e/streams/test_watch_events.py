"""WatchEvents: where it starts, what it leaves out, when `caught_up` comes; and ListEvents, its unary counterpart."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.stream_reader import Reader, watch
from tests.processes import until
from tests.status_details import refused
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import event_pb2, session_pb2
from turnkeeper.rpc import cursor

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""
TURNS = 25


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(env: Environment) -> list[event_pb2.Event]:
    """Creates a session with a log of many turns, more than fit in one response."""
    session = await harness.create_test_session(env.stubs, agent="talker")
    for number in range(TURNS):
        await harness.send_message_to_session(env.stubs, session, f"message {number}")
    return await harness.all_events(env.stubs, session)


class TestStart:
    @pytest.mark.parametrize(
        ("start", "first"),
        [
            ({}, 1),
            ({"after_sequence": 0}, 1),
            ({"live_only": False}, 1),
            ({"after_sequence": 1}, 2),
            ({"after_sequence": 70}, 71),
            ({"live_only": True}, 0),
        ],
    )
    async def test_a_watch_starts_where_it_is_asked_to(
        self, env: Environment, log: list[event_pb2.Event], start: dict[str, Any], first: int
    ) -> None:
        reader = Reader(through=first - 1 if first else len(log))
        async for _ in watch(env.stubs, log[0].session_id, reader, follow=False, **start):
            pass
        assert reader.events == (log[first - 1 :] if first else [])
        assert (reader.caught_up, reader.through) == (1, len(log))

    async def test_any_cursor_is_a_start(self, env: Environment, log: list[event_pb2.Event]) -> None:
        session, reader = log[0].session_id, Reader()
        cursors = [(reader.cursor, reader.through) async for _ in watch(env.stubs, session, reader, follow=False)]
        assert len(cursors) > 1
        listed = await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, page_size=10))
        got = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        assert got.session.last_sequence == len(log)
        for after, through in (*cursors, (listed.cursor, 10)):
            again = Reader(through=through)
            async for _ in watch(env.stubs, session, again, follow=False, after=after):
                pass
            assert again.events == log[through:]

    async def test_live_only_sees_what_comes_after_it(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, session, "old")
        reader = Reader(through=6)
        async for _ in watch(env.stubs, session, reader, live_only=True):
            if reader.caught_up and not reader.events:
                await harness.send_message_to_session(env.stubs, session, "new", wait=0)
            if "turn_completed" in reader.kinds:
                break
        assert reader.sequences == [7, 8, 9, 10]

    async def test_a_cursor_of_another_session_is_refused(self, env: Environment, log: list[event_pb2.Event]) -> None:
        other = await harness.create_test_session(env.stubs, agent="talker")
        foreign = cursor.encode(StreamPosition(sequence=1), key=SessionKey("default", log[0].session_id))
        for after in (foreign, "no cursor", foreign[:-2] + "AA", "A" * 40):
            with refused("INVALID_REQUEST") as refusal:
                await _watch_once(env, other, after=after)
            assert refusal.details.fields == ("after",)
            with refused("INVALID_REQUEST"):
                await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=other, after=after))

    async def test_a_number_that_no_event_has_is_refused(self, env: Environment, log: list[event_pb2.Event]) -> None:
        session = log[0].session_id
        starts: list[dict[str, Any]] = [{"after_sequence": len(log) + 1}, {"after_sequence": -1}]
        for start in starts:
            with refused("INVALID_REQUEST") as watching:
                await _watch_once(env, session, **start)
            with refused("INVALID_REQUEST") as listing:
                await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, **start))
            assert watching.details.fields == listing.details.fields == tuple(start)

    async def test_a_session_that_is_not_there_is_not_found(self, env: Environment) -> None:
        with refused("SESSION_NOT_FOUND"):
            await _watch_once(env, "unknown")


class TestFilter:
    async def test_only_the_requested_kinds_come_and_the_cursor_moves_on(
        self, env: Environment, log: list[event_pb2.Event]
    ) -> None:
        reader = Reader(whole=False)
        async for _ in watch(
            env.stubs, log[0].session_id, reader, follow=False, types=["session_created", "turn_completed"]
        ):
            pass
        assert reader.kinds == ["session_created"] + ["turn_completed"] * TURNS
        assert reader.through == len(log)
        again = Reader(through=len(log))
        async for _ in watch(env.stubs, log[0].session_id, again, follow=False, after=reader.cursor):
            pass
        assert not again.events

    async def test_kinds_of_no_event_still_catch_up_at_the_end(
        self, env: Environment, log: list[event_pb2.Event]
    ) -> None:
        reader = Reader(whole=False)
        async for _ in watch(env.stubs, log[0].session_id, reader, follow=False, types=["turn_failed"]):
            pass
        assert (reader.responses, reader.caught_up, reader.through) == (1, 1, len(log))

    @pytest.mark.parametrize("kind", ["turn_exploded", "content_delta", "payload", ""])
    async def test_a_kind_that_is_no_durable_event_is_refused(
        self, env: Environment, log: list[event_pb2.Event], kind: str
    ) -> None:
        with refused("INVALID_REQUEST") as refusal:
            await _watch_once(env, log[0].session_id, types=[kind])
        assert refusal.details.fields == ("types",)

    async def test_only_the_requested_turn_comes(self, env: Environment, log: list[event_pb2.Event]) -> None:
        turn_id = log[-1].turn_id
        reader = Reader(whole=False)
        async for _ in watch(env.stubs, log[0].session_id, reader, follow=False, turn_id=turn_id):
            pass
        assert reader.events == [event for event in log if event.turn_id == turn_id]
        assert reader.through == len(log)


class TestCatchingUp:
    async def test_caught_up_comes_once_after_the_replay_and_before_live_events(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, session, "old")
        reader = Reader()

        async def follow() -> None:
            async for _ in watch(env.stubs, session, reader):
                assert bool(reader.caught_up) == (reader.through >= 6)

        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow())
            await until(lambda: bool(reader.caught_up))
            assert reader.through == 6
            for number in range(3):
                await harness.send_message_to_session(env.stubs, session, f"new {number}")
            await until(lambda: reader.through == 18)
            following.cancel()
        assert reader.events == await harness.all_events(env.stubs, session)

    async def test_the_paged_twin_gives_the_same(self, env: Environment, log: list[event_pb2.Event]) -> None:
        session, after = log[0].session_id, ""
        events: list[event_pb2.Event] = []
        for _ in range(100):
            request = session_pb2.ListEventsRequest(session_id=session, page_size=7)
            if after:
                request.after = after
            page = await env.stubs.sessions.ListEvents(request)
            events.extend(page.events)
            after = page.cursor
            if not page.more:
                break
        reader = Reader()
        async for _ in watch(env.stubs, session, reader, follow=False):
            pass
        assert events == reader.events == log


async def _watch_once(env: Environment, session: str, **fields: Any) -> None:
    async for _ in watch(env.stubs, session, Reader(whole=False), follow=False, **fields):
        pass
