"""Notifications: watchers and workers of other replicas get a change at once; without notifications they poll."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.faults import refused_command
from tests.e2e.support.stream_reader import Reader, watch
from tests.harness import Stubs
from tests.processes import until
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLL = 60
"""Seconds: in these tests nothing is ever found by polling, unless a server has a poll of its own."""
SOON = 15
SETTINGS = {"poll": timedelta(seconds=POLL)}
SCRIPT = """
[[reply]]
match = "stalls"
first_delay = "60s"
text = "Never."

[[reply]]
text = "Said: {user}"
"""


class TestNotifications:
    async def test_a_watcher_sees_at_once_what_another_replica_stores(self, env: Environment) -> None:
        async with env.another() as other:
            for _ in range(3):
                await _tell(env.stubs, other)

    async def test_a_turn_without_room_is_claimed_at_once_by_another_replica(self, env: Environment) -> None:
        async with env.another(concurrency=1) as full:
            stuck = await harness.create_test_session(full, agent="talker")
            turn = await harness.send_message_to_session(full, stuck, "stalls", wait=0)
            session = await harness.create_test_session(full, agent="talker")
            async with asyncio.timeout(SOON):
                answered = await harness.send_message_to_session(full, session, "hello", wait=SOON)
            assert harness.answer_of(answered) == "Said: hello"
            await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=stuck, turn_id=turn.turn_id))

    @pytest.mark.parametrize(
        ("how", "cause"),
        [
            ({"closeConnection": True}, "AutoReconnect"),
            ({"errorCode": 43}, "CursorNotFound 43"),
            ({"errorCode": 286}, "OperationFailure 286"),
            ({"errorCode": 10107}, "NotPrimaryError"),
        ],
        ids=["connection closed", "cursor killed", "history lost", "stepped down"],
    )
    async def test_a_change_stream_that_breaks_is_opened_again(
        self, env: Environment, caplog: pytest.LogCaptureFixture, how: dict[str, Any], cause: str
    ) -> None:
        async with env.another() as other, _watching(other, env.stubs) as (session, reader):
            async with refused_command(env.mongo_uri, "getMore", times=4, **how) as broken:
                await broken.entered(4)
            await harness.send_message_to_session(env.stubs, session, "hello", wait=SOON)
            await until(lambda: "turn_completed" in reader.kinds, timeout=SOON)
        assert f"no notifications from the database (BROKEN, {cause})" in caplog.text

    async def test_where_change_streams_are_forbidden_the_poll_delivers(self, env: Environment) -> None:
        async with (
            refused_command(env.mongo_uri, "aggregate", errorCode=13) as forbidden,
            env.another(poll=timedelta(milliseconds=100)) as other,
        ):
            await forbidden.entered()
            await _tell(env.stubs, other)


async def _tell(writer: Stubs, watcher: Stubs) -> None:
    async with _watching(watcher, writer) as (session, reader):
        await harness.send_message_to_session(writer, session, "hello", wait=SOON)
        await until(lambda: "turn_completed" in reader.kinds, timeout=SOON)
        assert reader.events == await harness.all_events(writer, session)


@contextlib.asynccontextmanager
async def _watching(watcher: Stubs, writer: Stubs) -> AsyncIterator[tuple[str, Reader]]:
    """Creates a session, and yields it with a reader that has caught up."""
    session, reader = await harness.create_test_session(writer, agent="talker"), Reader()
    async with asyncio.TaskGroup() as group:
        following = group.create_task(_follow(watcher, session, reader))
        await until(lambda: reader.caught_up == 1)
        yield session, reader
        following.cancel()


async def _follow(stubs: Stubs, session: str, reader: Reader) -> None:
    async for _ in watch(stubs, session, reader):
        pass
