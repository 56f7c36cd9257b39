"""A server beyond its limits refuses in order, at once, with a time to come back, and finishes what it accepted."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import harness
from tests.calls import bearer
from tests.e2e.support.environment import AGENTS, Environment, client_of
from tests.processes import until
from tests.status_details import details_of, refused
from turnkeeper.pb.v1 import agent_pb2, chat_pb2, session_pb2
from turnkeeper.rpc.status import FIRST_PUSHBACK_MS
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper_client import Client, Credentials, ResumePolicy

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
LIMIT = 2
"""Calls at work."""


class Held(MongoStore):
    """A store whose reads of sessions wait until they are let go."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.held = 0
        self.let_go = asyncio.Event()

    async def session(self, *args: Any, **options: Any) -> Any:
        self.held += 1
        await self.let_go.wait()
        return await super().session(*args, **options)


class Busy:
    """A server with LIMIT, and calls that stay at work."""

    def __init__(self, address: str, stubs: harness.Stubs, stores: list[Held], sessions: list[str]) -> None:
        self.address = address
        self.stubs = stubs
        self.session = sessions[0]
        self._sessions = sessions
        self._store = stores[0]
        self._calls: list[asyncio.Task[Any]] = []

    async def hold(self, count: int) -> None:
        """Makes calls until `count` are at work, each for a session of its own: those of one stand in line."""
        for session in self._sessions[len(self._calls) : count]:
            request = session_pb2.UpdateSessionRequest(session=session_pb2.Session(session_id=session))
            request.update_mask.paths.append("title")
            self._calls.append(asyncio.ensure_future(self.stubs.sessions.UpdateSession(request)))
        await until(lambda: self._store.held >= count)

    @property
    def reads(self) -> int:
        """How often a session was read."""
        return self._store.held

    async def end(self) -> None:
        self._store.let_go.set()
        await asyncio.gather(*self._calls)


@pytest_asyncio.fixture(loop_scope="module")
async def busy(env: Environment) -> AsyncIterator[Busy]:
    stores: list[Held] = []

    def held(*args: Any, **options: Any) -> Held:
        stores.append(Held(*args, **options))
        return stores[-1]

    sessions = [await harness.create_test_session(env.stubs, agent="talker") for _ in range(2 * LIMIT)]
    async with (
        harness.serving(
            env.mongo_uri, env.database, env.model, agents=AGENTS, new_store=held, calls_at_work=LIMIT
        ) as running,
        harness.connect(running.address) as stubs,
    ):
        on = Busy(running.address, stubs, stores, sessions)
        yield on
        await on.end()


async def watch(on: Busy) -> object:
    call = on.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=on.session))
    async for response in call:
        return response
    return None


async def message(on: Busy) -> object:
    return await on.stubs.chat.SendMessage(chat_pb2.SendMessageRequest())


async def read(on: Busy) -> object:
    return await on.stubs.agents.ListAgents(agent_pb2.ListAgentsRequest())


async def decision(on: Busy) -> object:
    return await on.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest())


async def reason(call: Awaitable[object]) -> str:
    try:
        await asyncio.wait_for(call, 5)
    except aio.AioRpcError as error:
        return details_of(error).reason
    except TimeoutError:
        return "WAITS"
    return "OK"


@pytest.mark.parametrize(
    ("at_work", "kinds"),
    [(LIMIT // 2, {"watch"}), (LIMIT, {"watch", "message"}), (2 * LIMIT, {"watch", "message", "read"})],
)
async def test_kinds_of_calls_are_refused_in_order_and_health_never(busy: Busy, at_work: int, kinds: set[str]) -> None:
    await busy.hold(at_work)
    calls = {"message": message, "read": read, "decision": decision}
    reasons = {name: await reason(call(busy)) for name, call in calls.items()}
    refusals = {name for name, code in reasons.items() if code == "OVERLOADED"}
    with refused("OVERLOADED"):
        await watch(busy)
    assert refusals | {"watch"} == kinds
    assert {code for name, code in reasons.items() if name not in kinds} <= {"OK", "INVALID_REQUEST"}
    health: Any = health_pb2_grpc.HealthStub(busy.stubs.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_refusal_says_when_to_come_back_to_clients_and_to_grpc(busy: Busy) -> None:
    await busy.hold(LIMIT)
    with pytest.raises(aio.AioRpcError) as raised:
        await message(busy)
    details = details_of(raised.value)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (details.reason, details.metadata["limit"]) == ("OVERLOADED", "calls_at_work")
    assert details.retry_after is not None
    assert details.retry_after.total_seconds() * 1000 > FIRST_PUSHBACK_MS == pushback(raised.value)


async def test_grpcs_own_retries_first_ask_another_replica_and_then_wait_as_long_as_programs(busy: Busy) -> None:
    await busy.hold(LIMIT)
    retries = {"maxAttempts": 2, "initialBackoff": "9s", "maxBackoff": "9s", "backoffMultiplier": 1}
    retries["retryableStatusCodes"] = ["RESOURCE_EXHAUSTED"]
    config = {"methodConfig": [{"name": [{}], "retryPolicy": retries}]}
    async with aio.insecure_channel(busy.address, options=[("grpc.service_config", json.dumps(config))]) as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await harness.stubs_on(channel, busy.address).chat.SendMessage(chat_pb2.SendMessageRequest(), timeout=5)
    retry_after = details_of(raised.value).retry_after
    assert retry_after is not None
    assert pushback(raised.value) == round(retry_after.total_seconds() * 1000) > FIRST_PUSHBACK_MS


def pushback(error: aio.AioRpcError) -> int:
    """Returns the milliseconds after which gRPC's own retries are to try again."""
    return int(dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"])


async def test_the_python_client_gets_through_once_there_is_room(busy: Busy, env: Environment) -> None:
    await busy.hold(LIMIT)
    async with client_of(busy.address) as client:
        sending = asyncio.ensure_future(client.session(busy.session).send("let me in"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), 0.5)  # it is refused, and waits
        await busy.end()
        assert (await asyncio.wait_for(sending, 15)).answer[0].text == "You said: let me in"
    assert len(env.model_requests("let me in")) == 1


async def test_the_python_client_s_streams_open_once_there_is_room(busy: Busy) -> None:
    """They are refused meanwhile, for longer than they would wait for a server that is away."""
    hasty = ResumePolicy(start_patience=timedelta(milliseconds=10))
    await busy.hold(LIMIT)
    async with Client(busy.address, credentials=Credentials(token=harness.token), resume=hasty) as client:
        session = client.session(busy.session)

        async def answer() -> str:
            return "".join([text async for text in session.stream("let a stream in").text()])

        async def first_event() -> str | None:
            async with contextlib.aclosing(aiter(session.follow())) as events:
                return (await anext(events)).WhichOneof("payload")

        opening = [asyncio.ensure_future(answer()), asyncio.ensure_future(first_event())]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.gather(*opening)), 1.5)
        await busy.end()
        assert await asyncio.wait_for(asyncio.gather(*opening), 20) == ["You said: let a stream in", "session_created"]


async def test_a_message_whose_turn_would_begin_too_late_is_refused_and_what_was_accepted_is_finished(
    env: Environment,
) -> None:
    sessions = [await harness.create_test_session(env.stubs, agent="worker") for _ in range(4)]
    async with env.another(concurrency=1, accept_wait=timedelta(milliseconds=1)) as stubs:
        first = await harness.send_message_to_session(stubs, sessions[0], "hold overload", wait=0)
        await env.tool_control.started("overload")
        second = await harness.send_message_to_session(stubs, sessions[1], "the next one", wait=0)
        with refused("OVERLOADED") as refusal:
            await harness.send_message_to_session(stubs, sessions[2], "too late", wait=0)
        assert refusal.details.metadata["limit"] == "accept_wait"
        await harness.create_test_session(stubs, agent="talker")
        env.tool_control.release("overload")
        for session, turn in ((sessions[0], first), (sessions[1], second)):
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
            assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        await harness.send_message_to_session(stubs, sessions[2], "in time")


async def test_a_call_whose_deadline_passed_before_it_was_taken_is_not_begun(busy: Busy) -> None:
    """The server's event loop is this test's: while it is blocked, nothing is taken."""
    before = busy.reads
    connected, blocked, ended = (threading.Event() for _ in range(3))

    def call() -> grpc.StatusCode:
        with grpc.insecure_channel(busy.address) as channel:
            grpc.channel_ready_future(channel).result(10)
            connected.set()
            blocked.wait(10)
            request = session_pb2.GetSessionRequest(session_id=busy.session).SerializeToString()
            method: Any = channel.unary_unary("/turnkeeper.v1.SessionService/GetSession")
            outcome = method.future(request, timeout=0.1, metadata=bearer(harness.token()))
            status: grpc.StatusCode = outcome.code()
            ended.set()
            return status

    calling = asyncio.get_running_loop().run_in_executor(None, call)
    await until(connected.is_set)
    blocked.set()
    assert ended.wait(10)  # it blocks the server
    assert await calling is grpc.StatusCode.DEADLINE_EXCEEDED
    await busy.stubs.agents.ListAgents(agent_pb2.ListAgentsRequest())
    assert busy.reads == before


async def test_calls_that_wait_for_a_slow_turn_are_no_work(env: Environment) -> None:
    count = 40
    async with env.another(calls_at_work=4, concurrency=count) as stubs:
        sending: list[asyncio.Task[chat_pb2.Turn]] = []
        for number in range(count):
            session = await harness.create_test_session(stubs, agent="worker")
            message = f"hold slow{number}"
            sending.append(asyncio.ensure_future(harness.send_message_to_session(stubs, session, message, wait=60)))
            await env.tool_control.started(f"slow{number}")
        assert not any(task.done() for task in sending)
        for number in range(count):
            env.tool_control.release(f"slow{number}")
        turns = await asyncio.gather(*sending)
    assert {turn.state for turn in turns} == {chat_pb2.TURN_STATE_COMPLETED}


async def test_half_sent_bodies_of_one_connection_keep_neither_others_messages_nor_health_out(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    async with (
        harness.serving(env.mongo_uri, env.database, env.model, agents=AGENTS, calls_at_work=40) as running,
        aio.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)]) as attacker,
        harness.connect(running.address) as stubs,
    ):
        method: Any = harness.caller_channel(attacker, running.address).stream_unary(
            "/turnkeeper.v1.ChatService/SendMessage"
        )
        halves = [method() for _ in range(200)]
        health: Any = health_pb2_grpc.HealthStub(attacker)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=5)  # the halves before it have begun
        turn = await harness.send_message_to_session(stubs, session, "past the halves")
        for half in halves:
            half.cancel()
    assert turn.state == chat_pb2.TURN_STATE_COMPLETED
