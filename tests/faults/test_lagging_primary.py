"""D.4: without a majority, or on a primary that was replaced and does not know it, nothing is refused for good."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.chaos import cluster
from tests.chaos.cluster import Cluster
from tests.chaos.faults.database import replication_paused
from tests.e2e.support.environment import AGENTS
from tests.status_details import Refusal, refused
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, error_pb2, session_pb2
from turnkeeper.rpc import cursor

pytestmark = pytest.mark.asyncio(loop_scope="module")
DATABASE = "lagging"
SCRIPT = """
[[reply]]
text = "You said: {user}"
"""
TIMES: dict[str, Any] = {"lease": timedelta(seconds=20), "sweep": timedelta(hours=1)}
IN_TIME = 2.9
"""Seconds for an answer that waits 2 s for a majority, on a machine that is busy."""
Call = Callable[[], Awaitable[object]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica_set(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Yields three databases, and no servers."""
    logs: Path = tmp_path_factory.mktemp("logs")
    async with cluster.running(cluster.Plan(logs=logs, agents=AGENTS, servers=0, clocks=False)) as running:
        yield running


async def _unavailable(call: Call) -> Refusal:
    """Makes the call, which must end with SERVICE_UNAVAILABLE in time."""
    began = time.monotonic()
    with refused("SERVICE_UNAVAILABLE") as refusal:
        await call()
    assert time.monotonic() - began < IN_TIME
    assert refusal.details.status is grpc.StatusCode.UNAVAILABLE
    return refusal


def _ahead(session: str) -> str:
    return cursor.encode(StreamPosition(sequence=1000), key=SessionKey("default", session))


async def _watch(stubs: harness.Stubs, session: str, after: str) -> None:
    async for _ in stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, after=after)):
        return


def _calls(stubs: harness.Stubs, session: str) -> list[Call]:
    """Returns unary calls that would be refused by what is read."""
    sessions, chat, approvals = stubs.sessions, stubs.chat, stubs.approvals
    wait = Duration(seconds=1)
    return [
        lambda: sessions.GetSession(session_pb2.GetSessionRequest(session_id="absent")),
        lambda: sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, after=_ahead(session))),
        lambda: chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id="absent", wait=wait)),
        lambda: approvals.WaitApproval(approval_pb2.WaitApprovalRequest(approval_id="absent", wait=wait)),
        lambda: harness.send_message_to_session(stubs, "absent", "hello"),
    ]


@pytest.mark.timeout(120)
async def test_d4_without_a_majority_a_refusal_is_unavailable_in_time(replica_set: Cluster) -> None:
    """Many at once, too, and meanwhile what is there is found as quickly as ever."""
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(replica_set.database.uri, DATABASE, model, agents=AGENTS, **TIMES) as server,
        harness.connect(server.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="talker")
        async with replication_paused(await replica_set.database.secondaries()):
            results = await asyncio.gather(*(_unavailable(call) for call in _calls(stubs, session) * 10))
            for refusal in results:
                assert refusal.details.detail.retry == error_pb2.RETRY_ADVICE_SAME_CALL
            watching = await _unavailable(lambda: _watch(stubs, session, _ahead(session)))
            assert watching.details.detail.retry == error_pb2.RETRY_ADVICE_RESUME_STREAM
            assert watching.details.detail.cursor == _ahead(session)
            flood = [asyncio.create_task(_unavailable(_calls(stubs, session)[0])) for _ in range(50)]
            began = time.monotonic()
            await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
            assert time.monotonic() - began < 1.0
            await asyncio.gather(*flood)
        for call, reason in zip(
            _calls(stubs, session),
            ("SESSION_NOT_FOUND", "CURSOR_EXPIRED", "TURN_NOT_FOUND", "APPROVAL_NOT_FOUND", "SESSION_NOT_FOUND"),
            strict=True,
        ):
            with refused(reason):
                await call()


@pytest.mark.timeout(120)
async def test_d4_a_primary_that_was_replaced_refuses_nothing_that_was_acknowledged(replica_set: Cluster) -> None:
    """Its majority is the old one: it finds neither the new session nor the events behind the other one's cursor."""
    database = replica_set.database
    old, _ = await database.until_primary()
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(old.direct_uri, DATABASE, model, agents=AGENTS, **TIMES) as lagging,
        harness.serving(database.uri, DATABASE, model, agents=AGENTS, **TIMES) as server,
        harness.connect(lagging.address) as behind,
        harness.connect(server.address) as stubs,
    ):
        grown = await harness.create_test_session(stubs, agent="talker")
        async with database.deposed(old, replica_set.wire):
            created = await harness.create_test_session(stubs, agent="talker")
            await harness.send_message_to_session(stubs, grown, "hello")
            last = len(await harness.all_events(stubs, grown))
            place = cursor.encode(StreamPosition(sequence=last), key=SessionKey("default", grown))
            hello = await old.hello()
            assert hello is not None
            assert hello.primary
            shown = await behind.sessions.GetSession(session_pb2.GetSessionRequest(session_id=grown))
            assert shown.session.state == session_pb2.SESSION_STATE_CREATED, "its reads do not lag"
            refusals = await asyncio.gather(
                _unavailable(lambda: behind.sessions.GetSession(session_pb2.GetSessionRequest(session_id=created))),
                _unavailable(
                    lambda: behind.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=grown, after=place))
                ),
                _unavailable(lambda: _watch(behind, grown, place)),
            )
            assert [refusal.details.detail.retry for refusal in refusals] == [
                error_pb2.RETRY_ADVICE_SAME_CALL,
                error_pb2.RETRY_ADVICE_SAME_CALL,
                error_pb2.RETRY_ADVICE_RESUME_STREAM,
            ]
            await _watch(stubs, grown, place)
