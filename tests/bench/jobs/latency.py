"""Measures the time from one event to the next, in milliseconds by this process's clock."""

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Self

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bench.figures import Invalid
from tests.bench.jobs.turns import create_sessions
from tests.bench.runner import Channels
from turnkeeper.pb.v1 import (
    approval_pb2,
    approval_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    event_pb2,
    message_pb2,
    session_pb2,
    session_pb2_grpc,
)

PATIENCE = 60.0


class TimedWatch:
    """A live watch of a session: each of its durable events with its time of arrival."""

    def __init__(self, channel: aio.Channel, session_id: str) -> None:
        self.events: list[tuple[float, event_pb2.Event]] = []
        self._arrived = asyncio.Condition()
        self._caught_up = False
        request = session_pb2.WatchEventsRequest(session_id=session_id, live_only=True, follow=True)
        self._call: Any = session_pb2_grpc.SessionServiceStub(channel).WatchEvents(request)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        await self._until(lambda: self._caught_up)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def at(self, kind: str, *, sequence: int = 0, turn_id: str = "") -> float:
        """Waits for the first event of that kind, number and turn. Returns its time of arrival."""
        times: list[float] = []

        def look() -> bool:
            times[:] = [
                at
                for at, event in self.events
                if event.WhichOneof("payload") == kind
                and sequence in (0, event.sequence)
                and turn_id in ("", event.turn_id)
            ]
            return bool(times)

        await self._until(look)
        return times[0]

    async def _run(self) -> None:
        async for response in self._call:
            now = time.perf_counter()
            async with self._arrived:
                self._caught_up |= response.caught_up
                self.events += [(now, event) for event in response.events]
                self._arrived.notify_all()

    async def _until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._arrived:
            await self._arrived.wait_for(done)


async def deliver(channels: Channels, *, address: str, other: str, count: int) -> dict[str, list[float]]:
    """Changes a session and runs turns in it at one replica, with watchers at both.

    Returns milliseconds: `commit`, from a change's call to its answer; from the answer to its event `here` and `there`;
    `total_here` and `total_there`, from the call; `turn_there`, from a turn's end at its caller to that at the other's.
    """
    (session_id,) = await create_sessions(channels, address=address, count=1)
    (channel, *_), (away, *_) = await channels.to(address), await channels.to(other)
    sessions = session_pb2_grpc.SessionServiceStub(channel)
    samples: dict[str, list[float]] = {name: [] for name in ("commit", "here", "there", "total_here", "total_there")}
    samples["turn_there"] = []
    chance = random.Random(count)
    async with TimedWatch(channel, session_id) as here, TimedWatch(away, session_id) as there:
        for number in range(count):
            await asyncio.sleep(
                chance.uniform(0.01, 0.04)
            )  # random, so that it does not keep step with the server's periodic work
            change = session_pb2.UpdateSessionRequest(
                session=session_pb2.Session(session_id=session_id, title=f"title {number}"),
                update_mask=FieldMask(paths=["title"]),
            )
            began = time.perf_counter()
            sequence = (await sessions.UpdateSession(change)).sequence
            answered = time.perf_counter()
            samples["commit"].append(answered - began)
            for name, timed_watch in (("here", here), ("there", there)):
                at = await timed_watch.at("session_updated", sequence=sequence)
                samples[name].append(at - answered)
                samples[f"total_{name}"].append(at - began)
        for _ in range(count):
            turn_id, ended = await _turn(channel, session_id, "at once")
            samples["turn_there"].append(await there.at("turn_completed", turn_id=turn_id) - ended)
    return {name: [1000 * second for second in seconds] for name, seconds in samples.items()}


async def decide(channels: Channels, *, address: str, count: int) -> dict[str, list[float]]:
    """Approves calls of a tool, each in a session of its own that is watched.

    Returns milliseconds: `commit`, from the decision's call to its answer; from the answer to the event that the tool
    has `started`, has `returned`, and that the turn is `completed`.
    """
    samples: dict[str, list[float]] = {name: [] for name in ("commit", "started", "returned", "completed")}
    channel = (await channels.to(address))[0]
    approvals = approval_pb2_grpc.ApprovalServiceStub(channel)
    for session_id in await create_sessions(channels, address=address, count=count, agent="asker"):
        async with TimedWatch(channel, session_id) as timed_watch:
            turn_id, _ = await _turn(channel, session_id, "tell", state=chat_pb2.TURN_STATE_AWAITING_APPROVAL)
            await timed_watch.at("approval_requested", turn_id=turn_id)
            (approval,) = [
                event.approval_requested for _, event in timed_watch.events if event.HasField("approval_requested")
            ]
            decision = approval_pb2.DecideApprovalRequest(
                approval_id=approval.approval_id,
                decision=event_pb2.APPROVAL_DECISION_APPROVE,
                arguments_hash=approval.arguments_hash,
            )
            began = time.perf_counter()
            await approvals.DecideApproval(decision)
            answered = time.perf_counter()
            samples["commit"].append(answered - began)
            for name, kind in (
                ("started", "tool_started"),
                ("returned", "tool_returned"),
                ("completed", "turn_completed"),
            ):
                samples[name].append(await timed_watch.at(kind, turn_id=turn_id) - answered)
    return {name: [1000 * second for second in seconds] for name, seconds in samples.items()}


class _TakeOver:
    """The watched turns, kept between the two jobs of a take-over."""

    stack: AsyncExitStack
    turns: list[tuple[TimedWatch, str]]


async def begin_turns(channels: Channels, *, address: str, other: str, count: int) -> None:
    """Begins `count` turns at one replica and watches them at the other."""
    _TakeOver.stack, _TakeOver.turns = AsyncExitStack(), []
    stub = chat_pb2_grpc.ChatServiceStub((await channels.to(address))[0])
    away = (await channels.to(other))[0]
    for session_id in await create_sessions(channels, address=address, count=count):
        timed_watch = await _TakeOver.stack.enter_async_context(TimedWatch(away, session_id))
        call: Any = stub.StreamMessage(_stream(session_id, "paced"))
        turn_id = ""
        async for response in call:
            turn_id = next((event.turn_id for event in response.events), turn_id)
            if any(event.HasField("turn_started") for event in response.events):
                break
        _TakeOver.turns.append((timed_watch, turn_id))


async def until_taken_over(_channels: Channels, *, killed: float) -> dict[str, Any]:
    """Returns the seconds from `killed` (by the monotonic clock) to each turn's take-over, and to its end.

    Turns that had ended before are left out.
    """
    samples: dict[str, Any] = {"taken": [], "completed": []}
    async with _TakeOver.stack:
        for timed_watch, turn_id in _TakeOver.turns:
            completed = await timed_watch.at("turn_completed", turn_id=turn_id)
            if completed > killed + 0.1:
                samples["taken"].append(await timed_watch.at("attempt_superseded", turn_id=turn_id) - killed)
                samples["completed"].append(completed - killed)
    return samples


async def until_healthy(_channels: Channels, *, address: str) -> float:
    """Waits until the health service returns SERVING on a fresh connection. Returns the time (monotonic clock)."""
    async with aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    if (
                        await stub.Check(health_pb2.HealthCheckRequest())
                    ).status == health_pb2.HealthCheckResponse.SERVING:
                        return time.perf_counter()
                except grpc.RpcError:
                    pass
                await asyncio.sleep(0.002)


async def _turn(
    channel: aio.Channel, session_id: str, message: str, *, state: int = chat_pb2.TURN_STATE_COMPLETED
) -> tuple[str, float]:
    """Runs a turn. Returns its id and the time of its last response. Raises Invalid if it is in another state."""
    call: Any = chat_pb2_grpc.ChatServiceStub(channel).StreamMessage(_stream(session_id, message))
    responses = [(time.perf_counter(), response) async for response in call]
    at, last = responses[-1]
    if last.turn.state != state:
        raise Invalid(f"{session_id}: a turn is {chat_pb2.TurnState.Name(last.turn.state)}")
    return str(last.turn.turn_id), at


def _stream(session_id: str, message: str) -> chat_pb2.StreamMessageRequest:
    return chat_pb2.StreamMessageRequest(
        session_id=session_id, request_id=uuid.uuid4().hex, content=[message_pb2.Part(text=message)]
    )
