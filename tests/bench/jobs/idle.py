"""Opens streams, sessions and turns in which nothing happens."""

import asyncio
from typing import Any

from grpc import aio

from tests.bench.figures import Invalid
from tests.bench.runner import Channels
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, message_pb2, session_pb2, session_pb2_grpc

PER_CONNECTION = 100
_AT_ONCE = 32
_kept: list[Any] = []
"""Calls and channels that stay open until this process ends."""


async def open_streams(_channels: Channels, *, address: str, sessions: list[str]) -> int:
    """Opens a stream of each session, 100 a connection, until all have caught up; they stay until this process ends."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def watch(stub: session_pb2_grpc.SessionServiceStub, session: str) -> None:
        async with limit:
            call: Any = stub.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
            while not (response := await call.read()).caught_up:
                if response is aio.EOF:
                    raise Invalid(f"{session}: its stream ended")
            _kept.append(call)

    async with asyncio.TaskGroup() as group:
        for start in range(0, len(sessions), PER_CONNECTION):
            channel = aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            _kept.append(channel)
            for session in sessions[start : start + PER_CONNECTION]:
                group.create_task(watch(session_pb2_grpc.SessionServiceStub(channel), session))
    return len(sessions)


async def broken_streams(_channels: Channels) -> int:
    """Returns how many of the open streams have ended."""
    return sum(call.done() for call in _kept if isinstance(call, aio.UnaryStreamCall))


async def settle_turns(
    channels: Channels, *, address: str, sessions: list[str], agent: str, message: str, state: str
) -> int:
    """Creates each session by one turn, and raises Invalid unless the turn reaches this state. No call stays open."""
    stubs = [chat_pb2_grpc.ChatServiceStub(channel) for channel in await channels.to(address)]
    limit = asyncio.Semaphore(_AT_ONCE)

    async def settle(number: int, session: str) -> None:
        request = chat_pb2.SendMessageRequest(
            session_id=session,
            request_id=session,
            content=[message_pb2.Part(text=message)],
            create_session=chat_pb2.CreateSessionParams(agent=agent),
        )
        if state == "RUNNING":
            request.wait.SetInParent()  # no time: it does not end
        async with limit:
            turn = (await stubs[number % len(stubs)].SendMessage(request)).turn
        if (state_name := chat_pb2.TurnState.Name(turn.state)) != f"TURN_STATE_{state}":
            raise Invalid(f"{session}: its turn is {state_name}, not {state}")

    async with asyncio.TaskGroup() as group:
        for number, session in enumerate(sessions):
            group.create_task(settle(number, session))
    return len(sessions)
