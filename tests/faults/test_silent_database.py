"""A database that does not answer: readiness at default times, and how long many calls wait at most."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from tests import harness
from tests.faults.embedded import NOT_SERVING, SERVING, Embedded, embedded
from tests.processes import until_call
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

Call = Callable[[], Awaitable[Any]]
OPERATION_TIME, SESSIONS, TIMES = 2.0, 6, 5
LOOKS_TIME = 3.0
"""Seconds that a write may take beyond the operation time: its transaction is aborted, and its outcome looked for."""
SCRIPT = """
[[reply]]
match = "^never"
first_delay = "300s"
text = "At last."

[[reply]]
text = "You said: {user}"
"""


@pytest.mark.timeout(180)
async def test_a_frozen_database_ends_readiness_after_thirty_seconds(tmp_path: Path) -> None:
    """No stream ends for it. A freeze of twelve seconds changes nothing."""
    async with harness.scripted(SCRIPT) as model, embedded(tmp_path, model) as served:
        session = await harness.create_test_session(served.stubs, agent="talker")
        watch: Any = served.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
        await watch.read()
        os.kill(served.mongod, signal.SIGSTOP)
        await asyncio.sleep(12)
        os.kill(served.mongod, signal.SIGCONT)
        answered = await harness.send_message_to_session(served.stubs, session, "hello", wait=20)
        assert harness.answer_of(answered) == "You said: hello"
        assert "has not answered" not in served.logged()

        os.kill(served.mongod, signal.SIGSTOP)
        frozen_at = time.monotonic()
        await until_call(lambda: is_now(served, NOT_SERVING), timeout=60)
        after = time.monotonic() - frozen_at
        os.kill(served.mongod, signal.SIGCONT)
        thawed_at = time.monotonic()
        await until_call(lambda: is_now(served, SERVING), timeout=30)
        again = time.monotonic() - thawed_at
        assert 25 <= after <= 35, "30 s without a good ping, ± 5 s: the last one was up to 5 s before the freeze"
        assert again < 10
        await harness.send_message_to_session(served.stubs, session, "hello again", wait=20)
        kinds: list[str] = []
        while kinds.count("turn_completed") < 2:
            kinds += [str(event.WhichOneof("payload")) for event in (await watch.read()).events]
        print(f"NOT_SERVING after {after:.1f} s, SERVING again after {again:.1f} s")


@pytest.mark.timeout(120)
async def test_each_of_many_reads_of_a_frozen_database_ends_with_the_operation_time(tmp_path: Path) -> None:
    """However many there are: none waits for a thread, a connection or a server longer than that."""
    async with (
        harness.scripted(SCRIPT) as model,
        embedded(tmp_path, model, "--operation-time", f"{OPERATION_TIME:.0f}s") as served,
    ):
        sessions = [await harness.create_test_session(served.stubs, agent="talker") for _ in range(SESSIONS)]
        turns = [await harness.send_message_to_session(served.stubs, session, "hello", wait=20) for session in sessions]
        os.kill(served.mongod, signal.SIGSTOP)
        ended = await asyncio.gather(*(ending_of(read) for turn in turns for read in reads_of(served, turn) * TIMES))
        os.kill(served.mongod, signal.SIGCONT)
        assert len(ended) >= 200
        assert {status for status, _ in ended} == {grpc.StatusCode.UNAVAILABLE}
        seconds = sorted(seconds for _, seconds in ended)
        print(f"{len(ended)} reads: {seconds[0]:.1f} to {seconds[-1]:.1f} s, median {seconds[len(seconds) // 2]:.1f} s")
        assert seconds[-1] < 2 * OPERATION_TIME, "before, with 200 of them: 11 s"


@pytest.mark.timeout(120)
async def test_each_of_many_writes_of_a_frozen_database_ends_soon_after_the_operation_time(tmp_path: Path) -> None:
    """Also messages, cancellations, and those that stand in line behind another write of their session."""
    async with (
        harness.scripted(SCRIPT) as model,
        embedded(tmp_path, model, "--operation-time", f"{OPERATION_TIME:.0f}s") as served,
    ):
        sessions = [await harness.create_test_session(served.stubs, agent="talker") for _ in range(2 * SESSIONS)]
        words = ["hello", "never"] * SESSIONS  # the turns of every second session run on
        turns = [
            await harness.send_message_to_session(served.stubs, session, word, wait=20 if word == "hello" else 0)
            for session, word in zip(sessions, words, strict=True)
        ]
        os.kill(served.mongod, signal.SIGSTOP)
        ended = await asyncio.gather(*(ending_of(write) for turn in turns for write in writes_of(served, turn) * 2))
        os.kill(served.mongod, signal.SIGCONT)
        unavailable = sorted(seconds for status, seconds in ended if status is grpc.StatusCode.UNAVAILABLE)
        refused = sum(status is grpc.StatusCode.RESOURCE_EXHAUSTED for status, _ in ended)
        print(f"{len(unavailable)} writes: {unavailable[0]:.1f} to {unavailable[-1]:.1f} s; {refused} were not begun")
        assert len(unavailable) + refused == len(ended)
        assert len(unavailable) >= 100
        assert unavailable[-1] < OPERATION_TIME + LOOKS_TIME, "before: 6.4 s"


def writes_of(served: Embedded, turn: chat_pb2.Turn) -> list[Call]:
    """Returns calls that change a session, or make a new one."""
    session, stubs = turn.session_id, served.stubs
    title = session_pb2.Session(session_id=session, title="A title")
    update = session_pb2.UpdateSessionRequest(session=title, update_mask=FieldMask(paths=["title"]))
    return [
        lambda: harness.send_message_to_session(stubs, session, "again", wait=0),
        lambda: harness.create_test_session(stubs, agent="talker"),
        lambda: stubs.sessions.UpdateSession(update),
        lambda: stubs.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session)),
        lambda: stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session)),
        lambda: stubs.sessions.ForkSession(
            session_pb2.ForkSessionRequest(session_id=session, request_id=harness.new_request_id())
        ),
        lambda: stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id)),
    ]


def reads_of(served: Embedded, turn: chat_pb2.Turn) -> list[Call]:
    """Returns calls that read, without one that the server answers from its memory."""
    session, stubs = turn.session_id, served.stubs
    return [
        lambda: stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session)),
        lambda: stubs.sessions.ListSessions(session_pb2.ListSessionsRequest()),
        lambda: stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session)),
        lambda: stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session)),
        lambda: stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id=turn.turn_id)),
        lambda: stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session)),
        lambda: stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id=session)),
    ]


async def ending_of(call: Call) -> tuple[grpc.StatusCode, float]:
    """Returns the status of a call, and the seconds that it took."""
    began = time.monotonic()
    try:
        await call()
    except aio.AioRpcError as error:
        return error.code(), time.monotonic() - began
    return grpc.StatusCode.OK, time.monotonic() - began


async def is_now(served: Embedded, status: int) -> bool:
    return await served.health() == status
