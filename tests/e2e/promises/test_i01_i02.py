"""I1: a session's events are numbered 1..n and become visible in that order. I2: readers miss nothing."""

import asyncio
import random
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.stream_reader import Reader, watch
from tests.harness import Stubs
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRITERS = 4
EACH = 10
SCRIPT = """
[[reply]]
match = "slow"
text = "Я сказал: {user}"
chunk = 3
delay = "8ms"

[[reply]]
text = "You said: {user}"
"""


class TestI1:
    async def test_i1_a_poller_under_four_writers_reads_exactly_one_to_n(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        done = asyncio.Event()
        async with env.another() as other, asyncio.TaskGroup() as group:
            in_database = group.create_task(_poll_database(env, session, done))
            listed = [group.create_task(_poll_pages(stubs, session, done)) for stubs in (env.stubs, other)]
            watched = [group.create_task(_watch(stubs, session, done)) for stubs in (env.stubs, other)]
            async with asyncio.TaskGroup() as writers:
                for number in range(WRITERS):
                    writers.create_task(_write((env.stubs, other)[number % 2], session, f"writer {number}"))
            await _until_idle(env.stubs, session)
            done.set()
        got = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        whole = list(range(1, got.session.last_sequence + 1))
        assert len(whole) > WRITERS * EACH * 4
        assert in_database.result() == whole
        for task in (*listed, *watched):
            assert task.result() == whole


class TestI2:
    async def test_i2_a_reader_that_reconnects_to_two_servers_gets_every_event_once(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with env.another() as other:
            readers = [Reader() for _ in range(6)]
            async with asyncio.timeout(40), asyncio.TaskGroup() as group:
                for number, reader in enumerate(readers):
                    restless = _reconnect((env.stubs, other), session, reader, random.Random(number))
                    group.create_task(restless)
                for number in range(12):
                    await harness.send_message_to_session((env.stubs, other)[number % 2], session, f"slow {number}")
                await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        stored = await harness.all_events(env.stubs, session)
        for reader in readers:
            assert reader.events == stored
            for message in reader.completed():
                text = "".join(part.text for part in message.message_completed.content)
                assert reader.text(message.message_completed.message_id) == text


async def _write(stubs: Stubs, session: str, name: str) -> None:
    for number in range(EACH):
        await harness.send_message_to_session(
            stubs, session, f"{name}, {number}", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )


async def _until_idle(stubs: Stubs, session: str) -> None:
    """Waits for the end of the queue's last turn."""
    listed = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session, page_size=1))
    await harness.wait_for_turn(stubs, session, listed.turns[0].turn_id, seconds=30)


async def _poll_database(env: Environment, session: str, done: asyncio.Event) -> list[int]:
    """Polls `seq > last` without a pause: an event that becomes visible late would be missed for good."""
    numbers: list[int] = [0]
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri, readConcernLevel="majority") as client:
        events = client[env.database]["events"]
        last_look = False
        while not last_look:
            last_look = done.is_set()
            match = {"tenant": "default", "session_id": session, "seq": {"$gt": numbers[-1]}}
            numbers += [event["seq"] async for event in events.find(match, {"seq": 1}).sort("seq")]
    return numbers[1:]


async def _poll_pages(stubs: Stubs, session: str, done: asyncio.Event) -> list[int]:
    numbers, after, last_look = [], 0, False
    while not last_look:
        last_look = done.is_set()
        page = await stubs.sessions.ListEvents(
            session_pb2.ListEventsRequest(session_id=session, after_sequence=after, page_size=100)
        )
        numbers += [event.sequence for event in page.events]
        after = page.through_sequence
        last_look = last_look and not page.more
    return numbers


async def _watch(stubs: Stubs, session: str, done: asyncio.Event) -> list[int]:
    reader = Reader()
    async for _ in watch(stubs, session, reader):
        if done.is_set() or reader.kinds.count("turn_completed") == WRITERS * EACH:
            break
    return reader.sequences


async def _reconnect(servers: tuple[Stubs, Stubs], session: str, reader: Reader, rng: random.Random) -> None:
    """Reads to the session's end, on one server or the other, from the last cursor each time."""
    while "session_ended" not in reader.kinds:
        left = rng.randrange(1, 12)
        async for _ in watch(rng.choice(servers), session, reader):
            left -= 1
            if not left:
                break
