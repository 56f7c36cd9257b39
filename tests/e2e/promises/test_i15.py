"""I15: a client's disconnect, deadline or slow reading neither cancels nor delays a turn."""

import asyncio
import contextlib
import os
import sys
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import aio

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.faults import held_up
from tests.e2e.support.polling import eventually
from tests.e2e.support.stream_reader import Reader, stream
from tests.harness import Stubs
from tests.status_details import details_of
from tests.test_tools import REPOSITORY
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS: dict[str, Any] = {"lease": timedelta(seconds=60)}
"""A turn that had to wait for a lease to lapse would not end in time."""
SOON = 10
STORY = "A story that goes on without a reader, to its very end."
SCRIPT = f"""
[[reply]]
match = "story"
text = "{STORY}"
chunk = 10
delay = "150ms"

[[reply]]
match = "large"
text = "{"x" * 150_000}"
chunk = 150000

[[reply]]
text = "You said: {{user}}"
"""


class TestI15:
    @pytest.mark.parametrize("how", ["cancel", "deadline", "stream"])
    async def test_i15_a_client_that_leaves_while_its_message_is_stored_delays_nothing(
        self, env: Environment, how: str
    ) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with held_up(env.mongo_uri, "commitTransaction", by=timedelta(milliseconds=500)) as commit:
            call = _send(env.stubs, session, how)
            await commit.entered()
            if how != "deadline":
                call.cancel()
            assert await call.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
        await _all_completed(env.stubs, session)

    async def test_i15_a_hundred_clients_that_leave_in_the_middle_change_nothing(self, env: Environment) -> None:
        sessions = [await harness.create_test_session(env.stubs, agent="talker") for _ in range(100)]
        async with harness.serving(env.mongo_uri, env.database, env.model, agents=AGENTS, **SETTINGS) as running:
            await _crowd_that_is_killed(running.address, sessions[:40])
            async with harness.connect(running.address) as stubs, asyncio.TaskGroup() as group:
                for number, session in enumerate(sessions[40:]):
                    group.create_task(_leave(stubs, session, by_deadline=number % 2 == 0))
            async with harness.connect(running.address) as stubs:
                for session in sessions:
                    await _all_completed(stubs, session, answer=STORY)
                    kinds = harness.kinds(await harness.all_events(stubs, session))
                    assert kinds[3:] == ["turn_started", "message_completed", "turn_completed"]

    async def test_i15_a_reader_that_stops_reading_holds_nothing_up(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        stopped = env.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, previews=True))
        reader = Reader(whole=False)
        async with asyncio.timeout(SOON):
            await stopped.read()
            for _ in range(4):
                turn = await harness.send_message_to_session(env.stubs, session, "a large one")
                assert turn.state == chat_pb2.TURN_STATE_COMPLETED
            async for _ in stream(env.stubs, session, "a story", reader):
                pass
        assert [text.decode() for text in reader.texts.values()] == [STORY]
        stopped.cancel()


def _send(stubs: Stubs, session: str, how: str) -> aio.Call:
    content, request_id = harness.text_parts("hello"), harness.new_request_id()
    if how == "stream":
        return stubs.chat.StreamMessage(
            chat_pb2.StreamMessageRequest(session_id=session, request_id=request_id, content=content)
        )
    return stubs.chat.SendMessage(
        chat_pb2.SendMessageRequest(session_id=session, request_id=request_id, content=content),
        timeout=0.25 if how == "deadline" else None,
    )


async def _all_completed(stubs: Stubs, session: str, *, answer: str = "You said: hello") -> None:
    """Asserts that the session's one turn completes soon."""

    async def look() -> chat_pb2.Turn | None:
        turns = (await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns
        return turns[0] if turns and turns[0].state == chat_pb2.TURN_STATE_COMPLETED else None

    turn = await eventually(look, seconds=SOON)
    assert harness.answer_of(turn) == answer


async def _crowd_that_is_killed(address: str, sessions: list[str]) -> None:
    """Kills a process of clients once each of them reads its answer."""
    crowd = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.support.crowd", address, harness.token(), *sessions),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert crowd.stdout is not None
        assert await crowd.stdout.readline() == b"attached\n"
    finally:
        crowd.kill()
        await crowd.communicate()


async def _leave(stubs: Stubs, session: str, *, by_deadline: bool) -> None:
    """Sends a message, and reads until the deadline or until the first delta."""
    request_id = harness.new_request_id()
    await _accepted(stubs, session, request_id)
    request = chat_pb2.StreamMessageRequest(
        session_id=session, request_id=request_id, content=harness.text_parts("a story")
    )
    call = stubs.chat.StreamMessage(request, timeout=0.1 if by_deadline else None)
    with contextlib.suppress(aio.AioRpcError, asyncio.CancelledError):
        async for _ in call:
            if not by_deadline:
                call.cancel()
    left = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
    assert await call.code() in left | {grpc.StatusCode.RESOURCE_EXHAUSTED}, "a replica may have too many callers"


async def _accepted(stubs: Stubs, session: str, request_id: str) -> None:
    """Sends a message until it is accepted: a replica may have too many callers at once."""
    while True:
        try:
            await harness.send_message_to_session(stubs, session, "a story", wait=0, request_id=request_id)
        except aio.AioRpcError as error:
            after = details_of(error).retry_after
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or after is None:
                raise
            await asyncio.sleep(after.total_seconds())
        else:
            return
