"""A crowd that changes one session: each call ends with its own result, and no other session feels it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio
from pymongo import AsyncMongoClient, monitoring

from tests import harness
from tests.e2e.support.ask_script import ASK
from tests.e2e.support.audit_seals import sealed
from tests.e2e.support.environment import AGENTS, Environment
from tests.harness import Stubs
from tests.integration.mongo.commands import Recorder, name_of
from tests.status_details import details_of
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = ASK
CALLERS = 200
OK = "OK"
AGAIN = {"SESSION_CONTENDED", "OVERLOADED"}
"""What ends a call that is to be made again after a delay."""

Call = Callable[[Stubs], Awaitable[object]]


def change(session: str, title: str) -> Call:
    """Returns a call that gives the session a title."""
    changed = session_pb2.Session(session_id=session, title=title)
    request = session_pb2.UpdateSessionRequest(session=changed, update_mask=FieldMask(paths=["title"]))
    return lambda stubs: stubs.sessions.UpdateSession(request)


def read(session: str) -> Call:
    """Returns a call that reads the session."""
    return lambda stubs: stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))


def message(session: str, text: str, if_busy: chat_pb2.IfBusy.ValueType) -> Call:
    """Returns a call that sends a message."""
    return lambda stubs: harness.send_message_to_session(stubs, session, text, wait=0, if_busy=if_busy)


def decision(approval: approval_pb2.Approval) -> Call:
    """Returns a call that approves."""
    return lambda stubs: harness.decide(stubs, approval)


async def crowd(calls: list[Call], *servers: Stubs) -> list[str]:
    """Makes all calls at once, spread over the servers. Returns how each has ended."""

    async def ending(call: Call, stubs: Stubs) -> str:
        try:
            await call(stubs)
        except aio.AioRpcError as error:
            details = details_of(error)
            return details.reason if details.reason not in AGAIN or details.retry_after else "no delay"
        return OK

    return await asyncio.gather(*(ending(call, servers[n % len(servers)]) for n, call in enumerate(calls)))


@pytest.mark.parametrize("servers", [1, 2])
async def test_a_crowd_on_one_session_gets_its_results_while_others_go_on(env: Environment, servers: int) -> None:
    hot = await harness.create_test_session(env.stubs, agent="asker")
    other = await harness.create_test_session(env.stubs, agent="talker")
    await harness.send_message_to_session(env.stubs, hot, "ask crowd", wait=0)
    approval = await harness.wait_for_approval(env.stubs, hot)
    kinds: list[Callable[[int], Call]] = [
        lambda number: change(hot, f"title {number}"),
        lambda number: message(hot, f"queued {number}", chat_pb2.IF_BUSY_ENQUEUE),
        lambda number: message(hot, f"refused {number}", chat_pb2.IF_BUSY_REJECT),
        lambda _: decision(approval),
        lambda number: message(hot, f"urgent {number}", chat_pb2.IF_BUSY_INTERRUPT),
    ]
    calls = [kinds[number % len(kinds)](number) for number in range(CALLERS)]
    async with env.another() as second, asyncio.timeout(60):
        working = asyncio.create_task(crowd(calls, *(env.stubs, second)[:servers]))
        while not working.done():
            assert set(await crowd([read(other)], env.stubs)) <= {OK, "OVERLOADED"}
        ends = await working
    allowed = {OK, *AGAIN, "TURN_IN_PROGRESS", "QUOTA_EXCEEDED", "APPROVAL_ALREADY_PROCESSED"}
    assert set(ends) <= allowed, Counter(ends)
    log = await harness.all_events(env.stubs, hot)
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    stored = Counter(event.WhichOneof("payload") for event in log)
    assert stored["session_updated"] == ends[0::5].count(OK)
    assert set(ends[0::5]) <= {OK, *AGAIN}
    assert stored["message_received"] == 1 + sum(ends[kind::5].count(OK) for kind in (1, 2, 4))
    assert stored["approval_decided"] <= 1


async def test_a_change_in_a_crowd_takes_one_transaction(env: Environment) -> None:
    database = f"{env.database}_counted"
    recorder = Recorder(database)
    monitoring.register(recorder)
    slow: dict[str, Any] = {"poll": timedelta(minutes=5), "sweep": timedelta(minutes=5), "lease": timedelta(minutes=5)}
    async with (
        harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, **slow) as running,
        harness.connect(running.address) as stubs,
    ):
        hot = await harness.create_test_session(stubs, agent="talker")
        await sealed(env.mongo_uri, database)
        with recorder.recording() as commands:
            ends = await crowd([change(hot, f"title {number}") for number in range(CALLERS)], stubs)
            sent = Counter(name_of(command) for command in commands)
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await client.drop_database(database)
    assert set(ends) <= {OK, *AGAIN}
    assert sent["commitTransaction"] == ends.count(OK) > CALLERS / 2
    assert not sent["abortTransaction"]


async def test_the_owner_of_a_turn_goes_on_in_a_crowd(env: Environment) -> None:
    """Its turn ends while callers change the session all the time."""
    hot = await harness.create_test_session(env.stubs, agent="talker")
    over = asyncio.Event()

    async def insist(number: int) -> None:
        while not over.is_set():
            assert set(await crowd([change(hot, f"{number} {id(object())}")], env.stubs)) <= {OK, *AGAIN}

    callers = [asyncio.create_task(insist(number)) for number in range(8)]
    async with asyncio.timeout(30):
        turn = await harness.send_message_to_session(env.stubs, hot, "hello")
    over.set()
    await asyncio.gather(*callers)
    assert harness.answer_of(turn) == "You said: hello"
    assert turn.attempt == 1


async def test_a_crowd_whose_messages_create_one_session_creates_it_once(env: Environment) -> None:
    session = f"crowd-{harness.new_request_id()}"
    creation = chat_pb2.CreateSessionParams(agent="talker")

    def first(number: int) -> Call:
        fields: dict[str, Any] = {"wait": 0, "if_busy": chat_pb2.IF_BUSY_ENQUEUE, "create_session": creation}
        return lambda stubs: harness.send_message_to_session(stubs, session, f"message {number}", **fields)

    async with env.another() as second, asyncio.timeout(60):
        ends = await crowd([first(number) for number in range(40)], env.stubs, second)
    assert set(ends) <= {OK, *AGAIN, "QUOTA_EXCEEDED"}, Counter(ends)
    log = await harness.all_events(env.stubs, session)
    stored = Counter(event.WhichOneof("payload") for event in log)
    assert stored["session_created"] == 1
    assert stored["message_received"] == ends.count(OK) >= 1
