"""A crowd on one session: many that watch it, many that call it."""

import asyncio
import time
import uuid
from collections import Counter
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from tests.bench.jobs.offered import OK, name_of
from tests.bench.pacing import Pace
from tests.bench.runner import Channels
from tests.status_details import DETAILS, details_of
from turnkeeper.pb.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    message_pb2,
    session_pb2,
    session_pb2_grpc,
)

PER_CONNECTION: Final = 1024
"""Streams of a connection: the server allows no more."""
_PAUSE: Final = 0.05
"""Seconds that a caller waits after an error."""
_ANSWER: Final = Pace(1, apart_ms=0, first_ms=50)


class _Crowd:
    """Watchers of one session; they stay open until this process ends."""

    def __init__(self) -> None:
        self.up = 0
        self.completed = 0
        """Those that got a turn's end."""
        self.refusals = 0
        self.ends = Counter[str]()
        self._channels = list[aio.Channel]()
        self._tasks = set[asyncio.Task[None]]()

    def open(self, address: str, session: str, count: int, *, tries_again: bool) -> None:
        """Begins to open so many watchers at once. `tries_again`: one that is refused heeds RetryInfo."""
        request = session_pb2.WatchEventsRequest(session_id=session, live_only=True, follow=True)
        for number in range(count):
            if number % PER_CONNECTION == 0:
                options = [("grpc.use_local_subchannel_pool", 1)]
                self._channels.append(aio.insecure_channel(address, options=options))
            stub = session_pb2_grpc.SessionServiceStub(self._channels[-1])
            self._tasks.add(asyncio.create_task(self._watch(stub, request, tries_again=tries_again)))

    async def _watch(
        self,
        stub: session_pb2_grpc.SessionServiceStub,
        request: session_pb2.WatchEventsRequest,
        *,
        tries_again: bool,
    ) -> None:
        while True:
            try:
                await self._run(stub.WatchEvents(request))
            except aio.AioRpcError as error:
                is_ours = DETAILS in dict(error.trailing_metadata() or ())
                after = details_of(error).retry_after if tries_again and is_ours else None
                if after is None:
                    self.ends[name_of(error)] += 1
                    return
                self.refusals += 1
                await asyncio.sleep(after.total_seconds())
            else:
                self.ends[OK] += 1
                return

    async def _run(self, call: Any) -> None:
        """Counts the watcher as up once it has caught up, and reads it to its end."""
        caught_up = False
        while not caught_up:
            caught_up = (await call.read()).caught_up
        self.up += 1
        while (response := await call.read()) is not aio.EOF:
            self.completed += any(event.HasField("turn_completed") for event in response.events)


_crowd: Final = _Crowd()


async def watch_together(
    _channels: Channels, *, address: str, session: str, count: int, seconds: float, tries_again: bool
) -> dict[str, Any]:
    """Opens so many watchers of one session at once. Returns once none is opening, after `seconds` at the latest.

    Returns how many are `up` and after how many `seconds`, the `refusals` that they heeded, and how calls have ended.
    """
    began = time.monotonic()
    _crowd.open(address, session, count, tries_again=tries_again)
    await _until(lambda: _crowd.up + sum(_crowd.ends.values()) >= count, seconds)
    done = {"up": _crowd.up, "seconds": time.monotonic() - began, "refusals": _crowd.refusals}
    return {**done, "ends": _crowd.ends}


async def end_a_turn(channels: Channels, *, address: str, session: str, seconds: float) -> dict[str, Any]:
    """Runs a turn in the watched session. Returns how many watchers got its end, and after how many `seconds` the last
    of them; after `seconds` at the latest.
    """
    stub = chat_pb2_grpc.ChatServiceStub((await channels.to(address))[0])
    began = time.monotonic()
    await stub.SendMessage(_message(session))
    await _until(lambda: _crowd.completed == _crowd.up, seconds)
    return {"completed": _crowd.completed, "seconds": time.monotonic() - began}


async def call_together(
    channels: Channels, *, address: str, session: str, callers: int, seconds: float
) -> dict[str, int]:
    """Lets callers change one session and send it messages, one call after the other. Returns how calls have ended."""
    opened, ends = await channels.to(address), Counter[str]()

    async def work(number: int) -> None:
        channel = opened[number % len(opened)]
        sessions, chat = session_pb2_grpc.SessionServiceStub(channel), chat_pb2_grpc.ChatServiceStub(channel)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if number % 2:
                    await sessions.UpdateSession(_change(session), timeout=20)
                else:
                    await chat.SendMessage(_message(session, enqueue=True), timeout=20)
                ends[OK] += 1
            except aio.AioRpcError as error:
                ends[name_of(error)] += 1
                await asyncio.sleep(_PAUSE)

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(work(number))
    return ends


def _message(session: str, *, enqueue: bool = False) -> chat_pb2.SendMessageRequest:
    return chat_pb2.SendMessageRequest(
        session_id=session,
        request_id=uuid.uuid4().hex,
        content=[message_pb2.Part(text=_ANSWER.message)],
        if_busy=chat_pb2.IF_BUSY_ENQUEUE if enqueue else chat_pb2.IF_BUSY_REJECT,
        wait=Duration(seconds=0 if enqueue else 20),
    )


def _change(session: str) -> session_pb2.UpdateSessionRequest:
    changed = session_pb2.Session(session_id=session, title=uuid.uuid4().hex)
    return session_pb2.UpdateSessionRequest(session=changed, update_mask=FieldMask(paths=["title"]))


async def _until(condition: Any, seconds: float) -> None:
    """Returns once the condition holds, after so many seconds at the latest."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
