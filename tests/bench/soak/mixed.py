"""Users that send, watch, leave, cancel, fork and delete; a job of the load generator, a window at a time."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from grpc import aio

from tests.bench.jobs.offered import OK, name_of
from tests.bench.pacing import Pace
from tests.bench.runner import Channels
from tests.chaos.figures import quantile
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, message_pb2, session_pb2, session_pb2_grpc

ANSWER: Final = Pace(20, apart_ms=10, first_ms=50)
MOST_SESSIONS: Final = 6
"""Sessions of a user; the oldest is deleted before a further one."""
PATIENCE: Final = 30.0
_THINKING: Final = (0.2, 1.0)
"""Seconds between two acts of a user: few enough sessions are deleted that the replicas can purge them."""


class User:
    """One user with a few sessions; each act is a call or two at a random replica."""

    def __init__(self, channels: list[aio.Channel], seed: int) -> None:
        self.turns = 0
        self.turn_ms, self.read_ms = list[float](), list[float]()
        self.ends = Counter[str]()
        self._chat = [chat_pb2_grpc.ChatServiceStub(channel) for channel in channels]
        self._session = [session_pb2_grpc.SessionServiceStub(channel) for channel in channels]
        self._sessions = list[str]()
        self._chance = random.Random(seed)
        self._acts: dict[Callable[[], Awaitable[None]], int] = {
            self._begin: 12,
            self._go_on: 43,
            self._leave: 10,
            self._cancel: 8,
            self._fork: 5,
            self._watch: 16,
            self._delete: 6,
        }

    async def act_until(self, end: float) -> None:
        """Acts until this time of the monotonic clock, and reads a session after each act."""
        while time.monotonic() < end:
            (act,) = self._chance.choices(list(self._acts), list(self._acts.values()))
            try:
                await act()
                await self._read()
                self.ends[OK] += 1
            except aio.AioRpcError as error:
                self.ends[name_of(error)] += 1
            await asyncio.sleep(self._chance.uniform(*_THINKING))

    async def _begin(self) -> None:
        if len(self._sessions) >= MOST_SESSIONS:
            await self._delete()
        session_id = f"soak-{uuid.uuid4().hex}"
        await self._turn(session_id)
        self._sessions.append(session_id)

    async def _go_on(self) -> None:
        if session_id := self._any():
            await self._turn(session_id)
        else:
            await self._begin()

    async def _turn(self, session_id: str) -> None:
        began = time.monotonic()
        async for _ in self._stream(session_id):
            pass
        self.turns += 1
        self.turn_ms.append(1000 * (time.monotonic() - began))

    async def _leave(self) -> None:
        """Leaves in the middle of an answer; the turn goes on without its caller."""
        session_id = self._any()
        if not session_id:
            return
        call = self._stream(session_id)
        await call.read()
        await call.read()
        call.cancel()
        self.turns += 1

    async def _cancel(self) -> None:
        session_id = self._any()
        if not session_id:
            return
        call, turn_id = self._stream(session_id), ""
        while not turn_id and (response := await call.read()) is not aio.EOF:
            turn_id = next((event.turn_id for event in response.events if event.turn_id), "")
        request = chat_pb2.CancelTurnRequest(session_id=session_id, turn_id=turn_id)
        await self._one_of(self._chat).CancelTurn(request, timeout=PATIENCE)
        while await call.read() is not aio.EOF:
            pass
        self.turns += 1

    async def _fork(self) -> None:
        session_id = self._any()
        if not session_id:
            return
        copy = f"soak-{uuid.uuid4().hex}"
        request = session_pb2.ForkSessionRequest(session_id=session_id, request_id=copy, new_session_id=copy)
        await self._one_of(self._session).ForkSession(request, timeout=PATIENCE)
        await self._turn(copy)
        await self._remove(copy)

    async def _watch(self) -> None:
        """Watches a session from its beginning until it has caught up, and leaves."""
        session_id = self._any()
        if not session_id:
            return
        request = session_pb2.WatchEventsRequest(session_id=session_id, follow=True)
        call = self._one_of(self._session).WatchEvents(request, timeout=PATIENCE)
        while (response := await call.read()) is not aio.EOF and not response.caught_up:
            pass
        call.cancel()

    async def _delete(self) -> None:
        if self._sessions:
            await self._remove(self._sessions.pop(0))

    async def _remove(self, session_id: str) -> None:
        request = session_pb2.DeleteSessionRequest(session_id=session_id)
        await self._one_of(self._session).DeleteSession(request, timeout=PATIENCE)

    async def _read(self) -> None:
        session_id = self._any()
        if not session_id:
            return
        began = time.monotonic()
        request = session_pb2.GetSessionRequest(session_id=session_id)
        await self._one_of(self._session).GetSession(request, timeout=PATIENCE)
        self.read_ms.append(1000 * (time.monotonic() - began))

    def _stream(self, session_id: str) -> Any:
        request = chat_pb2.StreamMessageRequest(
            session_id=session_id,
            request_id=uuid.uuid4().hex,
            content=[message_pb2.Part(text=ANSWER.message)],
            create_session=chat_pb2.CreateSessionParams(agent="bench"),
            if_busy=chat_pb2.IF_BUSY_ENQUEUE,
        )
        return self._one_of(self._chat).StreamMessage(request, timeout=PATIENCE)

    def _any(self) -> str:
        """Returns one of the user's sessions; empty if there is none."""
        return self._chance.choice(self._sessions) if self._sessions else ""

    def _one_of(self, stubs: list[Any]) -> Any:
        return self._chance.choice(stubs)


_users: Final = list[User]()
"""They keep their sessions from one window to the next."""


async def live(channels: Channels, *, addresses: list[str], users: int, seconds: float) -> dict[str, Any]:
    """Lets the users act for so long. Returns their `turns`, `turn_p99` and `read_p99` in ms, and how acts ended."""
    opened = [(await channels.to(address))[number % 8] for number, address in enumerate(addresses)]
    while len(_users) < users:
        _users.append(User(opened, len(_users)))
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for user in _users:
            group.create_task(user.act_until(end))
    window = {
        "turns": sum(user.turns for user in _users),
        "turn_p99": quantile([at for user in _users for at in user.turn_ms], 0.99),
        "read_p99": quantile([at for user in _users for at in user.read_ms], 0.99),
        "ends": sum((user.ends for user in _users), Counter[str]()),
    }
    for user in _users:
        user.turns = 0
        user.turn_ms.clear()
        user.read_ms.clear()
        user.ends.clear()
    return window
