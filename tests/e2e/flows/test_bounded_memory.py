"""A server at its budget of memory refuses calls with the time to come back; nothing ends, and room is found again."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.processes import until
from tests.status_details import details_of, refused
from turnkeeper.admission.gate import CALL_BYTES
from turnkeeper.admission.memory import PROCESS_BYTES
from turnkeeper.pb.v1 import chat_pb2, session_pb2
from turnkeeper.rpc.bodies import MEMORY_SHARE
from turnkeeper.setting_types import LEAST_MEMORY

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"memory": LEAST_MEMORY}
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
ROOM = int((LEAST_MEMORY - PROCESS_BYTES) * (1 - MEMORY_SHARE) ** 2) // CALL_BYTES
"""Watchers for which there is memory."""
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
AT_ONCE = 100


class Crowd:
    """Watchers of one session."""

    def __init__(self, session: str) -> None:
        self._request = session_pb2.WatchEventsRequest(session_id=session, follow=True)
        self._watching: set[asyncio.Task[None]] = set()
        self.joined = self.up = self.completed = 0
        self.refusals: list[str] = []

    async def join(self, stubs: harness.Stubs, count: int) -> None:
        """Opens so many streams, and waits until each has caught up or was refused."""
        self.joined += count
        for _ in range(count):
            self._watching.add(asyncio.create_task(self._watch(stubs.sessions.WatchEvents(self._request))))
        await until(lambda: self.up + len(self.refusals) == self.joined)

    async def leave(self) -> None:
        for watching in self._watching:
            watching.cancel()
        await asyncio.wait(self._watching)

    async def _watch(self, call: Any) -> None:
        try:
            async for response in call:
                self.up += response.caught_up
                self.completed += "turn_completed" in harness.kinds(list(response.events))
        except aio.AioRpcError as error:
            self.refusals.append(details_of(error).metadata["limit"])


async def test_beyond_the_budget_calls_are_refused_what_runs_goes_on_and_room_comes_back(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="worker")
    other = await harness.create_test_session(env.stubs, agent="talker")
    turn = await harness.send_message_to_session(env.stubs, session, "hold memory", wait=0)
    await env.tool_control.started("memory")
    crowd = Crowd(session)
    async with AsyncExitStack() as channels:
        while "memory" not in crowd.refusals:
            channel = aio.insecure_channel(env.address, options=OWN_CONNECTION)
            await channels.enter_async_context(channel)
            await crowd.join(harness.stubs_on(channel, env.address), AT_ONCE)
        assert ROOM - AT_ONCE <= crowd.up <= ROOM
        with refused("OVERLOADED") as refusal:
            await harness.send_message_to_session(env.stubs, other, "no room")
        assert refusal.details.metadata["limit"] == "memory"
        assert refusal.details.retry_after is not None
        with refused("TURN_NOT_FOUND"):  # a decision is never refused for lack of memory
            await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id="there-is-none"))
        env.tool_control.release("memory")
        await until(lambda: crowd.completed == crowd.up)
        await crowd.leave()
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED
    await harness.send_message_to_session(env.stubs, other, "there is room")


async def test_a_call_that_ended_with_an_error_leaves_nothing_for_the_search_for_cycles(env: Environment) -> None:
    watching: Any = env.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id="there-is-none"))
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id="there-is-none")),
        watching.read,
    ]
    gc.collect()
    gc.disable()
    try:
        for call in calls:
            with refused("SESSION_NOT_FOUND"):
                await call()
        await env.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())  # the errors before it are handled
        # By its type: an object may be a proxy of one that is gone.
        kept = [error for error in gc.get_objects() if issubclass(type(error), aio.AbortError)]
    finally:
        gc.enable()
    assert kept == []
