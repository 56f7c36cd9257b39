"""Positions and streams on a server whose reads lag behind what was acknowledged, and what certainty costs."""

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.lagging import (
    COMPLETED,
    SCRIPT,
    SETTINGS,
    Lagging,
    approval_of,
    behind,
    first_of_watch,
    lagging,
    list_events,
    sent,
    session_of,
)
from tests.e2e.support.stream_reader import Reader, watch
from tests.harness import Stubs
from tests.status_details import refused
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, chat_pb2, error_pb2, event_pb2, session_pb2
from turnkeeper.rpc import cursor

__all__ = ["SCRIPT", "SETTINGS", "behind", "lagging"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

# --- cursors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_number", [False, True], ids=["cursor", "number"])
@pytest.mark.parametrize("call", [list_events, first_of_watch])
async def test_a_position_that_another_server_gave_is_good_here(
    env: Environment, lagging: Lagging, call: Callable[..., Awaitable[Any]], by_number: bool
) -> None:
    session = await session_of(env.stubs)
    await lagging.store.lag()
    await sent(env.stubs, session, "hello")
    last = len(await harness.all_events(env.stubs, session))
    start = {"after_sequence": last} if by_number else {"after": place(session, last)}
    response = await call(lagging.stubs, session, **start)
    assert response.through_sequence == last
    assert lagging.store.certain_reads


async def test_a_message_is_streamed_again_from_a_cursor_of_another_server(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs)
    await lagging.store.lag()
    await sent(env.stubs, session, "hello", request_id=session)
    responses = await _attached(lagging.stubs, session, session, place(session, 4))
    assert responses[-1].turn.state == COMPLETED
    assert [event.sequence for response in responses for event in response.events if event.sequence] == [5, 6]


def place(session: str, sequence: int) -> str:
    """Returns the cursor after this event."""
    return cursor.encode(StreamPosition(sequence=sequence), key=SessionKey("default", session))


async def _attached(
    stubs: Stubs, session: str, request_id: str, after: str, *, text: str = "hello"
) -> list[chat_pb2.StreamMessageResponse]:
    """Streams a message again from a cursor on. Returns all responses."""
    request = chat_pb2.StreamMessageRequest(
        session_id=session, request_id=request_id, content=harness.text_parts(text), after=after
    )
    return [response async for response in stubs.chat.StreamMessage(request)]


async def test_a_cursor_beyond_a_log_that_is_really_shorter_is_refused_for_good(
    env: Environment, lagging: Lagging
) -> None:
    session = await session_of(env.stubs)
    await sent(env.stubs, session, "hello", request_id=session)
    last = len(await harness.all_events(env.stubs, session))
    beyond = place(session, last + 1)
    for call in (first_of_watch, list_events):
        with refused("CURSOR_EXPIRED") as refusal:
            await call(lagging.stubs, session, after=beyond)
        details = refusal.details
        assert details.status is grpc.StatusCode.OUT_OF_RANGE
        assert (details.metadata["head_sequence"], details.metadata["oldest_sequence"]) == (str(last), "1")
        assert details.detail.retry == error_pb2.RETRY_ADVICE_CHANGE_REQUEST
        assert "restored" in details.message
        again = await first_of_watch(lagging.stubs, session, after=details.metadata["head_cursor"])
        assert again.through_sequence == last
        assert (await first_of_watch(lagging.stubs, session, after=details.detail.cursor)).events[0].sequence == 1
    with refused("CURSOR_EXPIRED"):
        await _attached(lagging.stubs, session, session, beyond)


# --- streams and waits -----------------------------------------------------------------------------------------------


async def test_a_stream_of_a_message_asks_again_whether_its_turn_has_ended(env: Environment, lagging: Lagging) -> None:
    """The turn, as it is read, lags behind the last event that the stream has got: a later keep-alive finds the end."""
    session = await session_of(env.stubs)
    text = f"hold {session}"
    turn = await sent(env.stubs, session, text, request_id=session, wait=0)
    await env.tool_control.started(session)
    await lagging.store.lag(only=frozenset({"read_one"}))
    call = lagging.stubs.chat.StreamMessage(
        chat_pb2.StreamMessageRequest(
            session_id=session,
            request_id=session,
            content=harness.text_parts(text),
            after=place(session, turn.first_sequence),
        )
    )
    env.tool_control.release(session)
    kinds: list[str] = []
    last = chat_pb2.StreamMessageResponse()
    async for response in call:
        kinds += [event.WhichOneof("payload") or "" for event in response.events]
        if not response.events and "turn_completed" in kinds:
            await lagging.store.catch_up()
        last = response
    assert last.turn.state == COMPLETED
    assert "turn_completed" in kinds


# --- what it costs ---------------------------------------------------------------------------------------------------


async def test_what_is_absent_is_refused_within_50_ms(env: Environment) -> None:
    session = await session_of(env.stubs)
    absent: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        (
            "SESSION_NOT_FOUND",
            lambda: env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id="absent")),
        ),
        (
            "TURN_NOT_FOUND",
            lambda: env.stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id="absent")),
        ),
        (
            "APPROVAL_NOT_FOUND",
            lambda: env.stubs.approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id="absent")),
        ),
        (
            "AGENT_NOT_FOUND",
            lambda: env.stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name="asker", version="absent")),
        ),
    ]
    for reason, call in absent:
        seconds = []
        for _ in range(9):
            began = time.perf_counter()
            with refused(reason):
                await call()
            seconds.append(time.perf_counter() - began)
        assert min(seconds) < 0.05, (reason, seconds)
        assert statistics.median(seconds) < 0.09, (reason, seconds)


async def test_what_is_there_costs_no_linearizable_read(env: Environment, lagging: Lagging) -> None:
    """The reads do not lag here: `lag` only counts."""
    session = await session_of(env.stubs)
    turn = await sent(env.stubs, session, f"do {session}")
    await lagging.store.lag()
    stubs, approval = lagging.stubs, turn.pending[0].approval_id
    await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
    await stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id=turn.turn_id))
    await stubs.approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id=approval))
    await stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    reader = Reader()
    async for _ in watch(stubs, session, reader, follow=False):
        pass
    assert "approval_requested" in reader.kinds
    assert not lagging.store.certain_reads
    await lagging.store.catch_up()
    await harness.answer(stubs, await approval_of(stubs, turn), event_pb2.APPROVAL_DECISION_REJECT)
