"""A server that has enough work ends in time at SIGTERM, and its callers get through on another one."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment, client_of
from tests.e2e.support.server_processes import doomed
from tests.processes import until
from tests.status_details import DETAILS, details_of, refused
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper_client.pb.v1 import chat_pb2 as client_chat_pb2
from turnkeeper_client.pb.v1.message_pb2 import Part

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^slow'
text = "You said: {user}"
first_delay = "300ms"

[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
CALLERS = 60
"""They call again at once when they are refused: far more than the server's limits."""
DRAIN_DELAY, DRAIN_GRACE = 0.5, 4.0
PATIENCE = 6.0
"""Seconds for calls of which the full server refuses half, each with a delay of up to ten."""


class Crowd:
    """Callers that send messages, one after the other, until the server has ended."""

    def __init__(self, stubs: harness.Stubs) -> None:
        self.ends = Counter[str]()
        self.accepted: list[chat_pb2.Turn] = []
        self._stubs = stubs

    async def call(self, name: str) -> None:
        number = 0
        while True:
            number += 1
            request = chat_pb2.SendMessageRequest(
                session_id=f"{name}-{number}",
                request_id=f"{name}-{number}",
                content=harness.text_parts(f"slow {name}-{number}"),
                create_session=chat_pb2.CreateSessionParams(agent="talker"),
            )
            request.wait.SetInParent()
            try:
                response = await self._stubs.chat.SendMessage(request, timeout=10)
            except aio.AioRpcError as error:
                self.ends[_end_of(error)] += 1
                await asyncio.sleep(0.02)
            else:
                self.ends["OK"] += 1
                self.accepted.append(response.turn)


def _end_of(error: aio.AioRpcError) -> str:
    """Returns the service's code, with ` at once` if it has no RetryInfo; gRPC's status if there are no details."""
    if DETAILS not in dict(error.trailing_metadata() or ()):
        return error.code().name
    details = details_of(error)
    return details.reason if details.retry_after else f"{details.reason} at once"


async def test_sigterm_in_an_overload_ends_within_delay_and_grace_and_what_was_accepted_is_finished(
    env: Environment,
) -> None:
    times = ("--drain-delay", f"{DRAIN_DELAY}s", "--drain-grace", f"{DRAIN_GRACE}s", "--lease", "60s")
    async with (
        doomed(env, *times, "--calls-at-work", "8", "--concurrency", "8") as server,
        harness.connect(server.address) as stubs,
    ):
        crowd = Crowd(stubs)
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(crowd.call(f"caller{number}")) for number in range(CALLERS)]
            await until(lambda: crowd.ends["OVERLOADED"] > 2 * CALLERS and crowd.ends["OK"] > 20)
            assert set(crowd.ends) == {"OK", "OVERLOADED"}, crowd.ends
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            status = await server.process.wait()
            took = time.monotonic() - began
            for caller in callers:
                caller.cancel()
    assert status == 0
    assert took < DRAIN_DELAY + DRAIN_GRACE
    assert set(crowd.ends) <= {"OK", "OVERLOADED", "SERVER_DRAINING", "UNAVAILABLE", "CANCELLED"}, crowd.ends
    for turn in crowd.accepted:
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED


@asynccontextmanager
async def full(env: Environment) -> AsyncIterator[str]:
    """Starts a server whose only place is taken, and that accepts no message whose turn would have to wait."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(doomed(env, "--concurrency", "1", "--accept-wait", "1ms"))
        stubs = await stack.enter_async_context(harness.connect(server.address))
        stack.callback(env.tool_control.release, "full")
        holding, waiting, further = [await harness.create_test_session(stubs, agent="worker") for _ in range(3)]
        await harness.send_message_to_session(stubs, holding, "hold full", wait=0)
        await env.tool_control.started("full")
        await harness.send_message_to_session(stubs, waiting, "waits for room", wait=0)
        with refused("OVERLOADED"):
            await harness.send_message_to_session(stubs, further, "no room", wait=0)
        yield server.address


async def test_callers_of_direct_get_through_on_the_other_replica(env: Environment) -> None:
    """gRPC's own retries, which the service config asks for, take the next replica, and do not wait for this one."""
    async with (
        full(env) as busy,
        client_of(f"ipv4:{busy},{env.address}") as client,
    ):
        session = await client.sessions.create("talker")
        began = time.monotonic()
        for number in range(6):
            request = client_chat_pb2.SendMessageRequest(
                session_id=session.id, request_id=f"{number}", content=[Part(text=f"get through {number}")]
            )
            response = await client.stubs.chat.SendMessage(request)
            assert response.turn.state == client_chat_pb2.TURN_STATE_COMPLETED
        took = time.monotonic() - began
    assert took < PATIENCE
