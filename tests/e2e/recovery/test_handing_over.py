"""A draining server's turns: when it releases them, and which server has them then."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS, until_event
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2

SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>[\w-]+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
SLOW: dict[str, Any] = {name: timedelta(minutes=1) for name in ("lease", "poll", "sweep")}
"""No server polls: only turns that are handed over with a notification are claimed."""


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with harness.scripted(SCRIPT) as model:
        yield model


async def test_i5_an_irreversible_call_keeps_its_turn_until_its_result_and_another_server_goes_on_at_once(
    mongo_uri: str, database_name: str, model: ScriptedModel, tool_control: ToolControl
) -> None:
    async def owner() -> str:
        async with AsyncMongoClient[dict[str, Any]](mongo_uri) as client:
            head = await client[database_name]["heads"].find_one({"tenant": harness.TENANT, "session_id": session})
        assert head is not None
        return str(head["owner"])

    async with contextlib.AsyncExitStack() as going:
        first = await going.enter_async_context(
            harness.serving(
                mongo_uri,
                database_name,
                model,
                agents=AGENTS,
                drain_grace=timedelta(seconds=30),
                replica="first",
                **SLOW,
            )
        )
        async with (
            harness.serving(mongo_uri, database_name, model, agents=AGENTS, replica="second", **SLOW) as second,
            harness.connect(first.address) as leaving,
            harness.connect(second.address) as staying,
        ):
            session = await harness.create_test_session(leaving, agent="worker")
            turn = await harness.send_message_to_session(leaving, session, "hold kept", wait=0)
            await tool_control.started("kept")
            drained = asyncio.create_task(_until_drained(leaving, session))
            await until_event(leaving, session, "tool_started")
            closing = asyncio.create_task(going.aclose())
            await drained
            assert await owner() == "first"
            assert not closing.done()
            tool_control.release("kept")
            released = time.monotonic()
            ended = await harness.wait_for_turn(staying, session, turn.turn_id)
            taken = time.monotonic() - released
            await closing
            events = await harness.all_events(staying, session)
    assert harness.answer_of(ended) == "Told: kept is done"
    assert taken < 10, "it waited for a poll, a sweep or the lease"
    assert len(tool_control.effects("kept")) == 1
    (result,) = [event for event in events if event.HasField("tool_returned")]
    assert (result.tool_returned.outcome, result.attempt) == (event_pb2.TOOL_OUTCOME_OK, turn.attempt)
    (answer,) = [event for event in events if event.HasField("turn_completed")]
    assert answer.attempt > turn.attempt, "it was the other server that went on"
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED
    await check(mongo_uri, database_name)


async def _until_drained(stubs: harness.Stubs, session: str) -> None:
    """Waits until a stream ends with SERVER_DRAINING."""
    with refused("SERVER_DRAINING"):
        async for _ in stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True)):
            pass
