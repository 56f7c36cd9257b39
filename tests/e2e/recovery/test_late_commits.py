"""D.2: a message whose commit is unknown, and then lands, is run by its own replica as soon as that knows."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from grpc import StatusCode, aio

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.faults import disconnected
from tests.e2e.support.polling import eventually
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2

T = TypeVar("T")

LEASE = timedelta(seconds=50)
"""Longer than a test: no lease lapses."""
SOON = timedelta(milliseconds=500)
SCRIPT = """
[[reply]]
match = "^fails"
fail = "bad_request"
times = 1

[[reply]]
text = "You said: {user}"
"""


@asynccontextmanager
async def serving(mongo_uri: str, database: str, **settings: Any) -> AsyncIterator[tuple[harness.Stubs, ScriptedModel]]:
    """Starts a server that gives up an operation of the database soon."""
    chosen: dict[str, Any] = {"agents": AGENTS, "lease": LEASE, "operation_time": SOON, **settings}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database, model, **chosen) as running,
        harness.connect(running.address) as stubs,
    ):
        yield stubs, model


async def unavailable(call: Callable[[], Awaitable[object]], mongo_uri: str) -> None:
    """Makes the call while no commit arrives: its caller gets UNAVAILABLE, and it lands afterwards."""
    async with disconnected(mongo_uri, "commitTransaction"):
        with pytest.raises(aio.AioRpcError) as error:
            await call()
    assert error.value.code() is StatusCode.UNAVAILABLE


async def available(call: Callable[[], Awaitable[T]]) -> T:
    """Makes the call until a busy database answers it within SOON; returns its answer."""

    async def answer() -> T | None:
        try:
            return await call()
        except aio.AioRpcError as error:
            if error.code() is not StatusCode.UNAVAILABLE:
                raise
            return None

    return await eventually(answer)


async def test_d2_a_message_that_lands_late_is_answered_at_once(mongo_uri: str, database_name: str) -> None:
    async with serving(mongo_uri, database_name) as (stubs, model):
        session = await harness.create_test_session(stubs, agent="talker")

        async def send(wait: float) -> chat_pb2.Turn:
            return await harness.send_message_to_session(stubs, session, "late", wait=wait, request_id="late")

        await unavailable(lambda: send(0), mongo_uri)
        landed = time.monotonic()
        turn = await available(lambda: send(20))
        assert harness.answer_of(turn) == "You said: late"
        assert time.monotonic() - landed < 10, "it rested for a lease"
        assert turn.attempt == 1
        assert len(model.exchanges.all()) == 1
        kinds = harness.kinds(await harness.all_events(stubs, session))
        assert "attempt_superseded" not in kinds
        assert kinds.count("message_received") == 1
    await check(mongo_uri, database_name)


async def test_d2_a_retry_that_lands_late_runs_at_once(mongo_uri: str, database_name: str) -> None:
    async with serving(mongo_uri, database_name) as (stubs, _):
        session = await harness.create_test_session(stubs, agent="talker")
        failed = await harness.send_message_to_session(stubs, session, "fails once", wait=0)
        failed = await harness.wait_for_turn(stubs, session, failed.turn_id)
        assert failed.state == chat_pb2.TURN_STATE_FAILED
        request = chat_pb2.RetryTurnRequest(session_id=session, turn_id=failed.turn_id, request_id="again")
        await unavailable(lambda: stubs.chat.RetryTurn(request), mongo_uri)
        landed = time.monotonic()
        await available(lambda: stubs.chat.RetryTurn(request))
        turn = await harness.wait_for_turn(stubs, session, failed.turn_id)
        assert harness.answer_of(turn) == "You said: fails once"
        assert time.monotonic() - landed < 10, "it rested for a lease"
    await check(mongo_uri, database_name)
