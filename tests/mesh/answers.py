"""Hundreds of answers that a proxy could take for a sick replica: none of them may take one out."""

import asyncio
import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from tests.calls import Issuer, bearer
from tests.chaos import tenants
from tests.chaos.calls import Answer, answer_of
from tests.harness import Stubs, text_parts
from tests.mesh.script import FROZEN, SINGLE, silent
from tests.mesh.stage import Stage
from turnkeeper.pb.v1 import agent_pb2, chat_pb2, operator_pb2, session_pb2

TIMES: Final = 200
AT_ONCE: Final = 20
STEADY: Final = 3
"""Calls in a row that must get the answer before it counts as that of every replica."""
_TRIES: Final = 200
_MOST: Final = 3
_TIMEOUT: Final = 30.0
_PAUSE: Final = 0.1

Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Counted:
    """How often a kind of answer came, of how many calls. `others`: what else came."""

    kind: str
    times: int
    others: Counter[str]


class Answers:
    """Makes calls through the proxy with gRPC alone: no client of ours repeats any of them."""

    def __init__(self, stage: Stage, channel: aio.Channel, *, times: int = TIMES) -> None:
        self._stubs = Stubs(channel)
        self._channel = channel
        self._stage = stage
        self._times = times
        self._operator = stage.caller(tenants.TENANTS[0], tenants.SPY).metadata
        self._user = stage.caller(tenants.TENANTS[0]).metadata
        self._numbers = itertools.count(1)

    async def unimplemented(self) -> Counted:
        """Calls a method that no replica has."""
        method: Any = self._channel.unary_unary("/turnkeeper.v1.SessionService/NoSuchMethod")
        return await self._count("UNIMPLEMENTED", lambda: method(b"", metadata=self._user, timeout=_TIMEOUT))

    async def rate_limited(self) -> Counted:
        """Lists the agents far more often than a principal may."""
        request = agent_pb2.ListAgentsRequest()
        return await self._steady(
            "RATE_LIMIT_EXCEEDED",
            lambda: self._stubs.agents.ListAgents(request, metadata=self._user, timeout=_TIMEOUT),
        )

    async def frozen(self) -> Counted:
        """Creates sessions of an agent whose admission is frozen."""
        freeze = operator_pb2.FreezeAdmissionRequest(agent=FROZEN, reason="a run of the mesh")
        await self._insist([lambda: self._operate("FreezeAdmission", freeze)])
        try:
            return await self._steady("ADMISSION_FROZEN", lambda: self._create(FROZEN))
        finally:
            thaw = operator_pb2.UnfreezeAdmissionRequest(agent=FROZEN)
            await self._insist([lambda: self._operate("UnfreezeAdmission", thaw)])

    async def not_available(self) -> Counted:
        """Sends messages to an agent that runs as many turns as it may, on every replica."""
        running: list[chat_pb2.Turn] = []

        async def send() -> None:
            session = (await self._create(SINGLE)).session
            request = chat_pb2.SendMessageRequest(
                session_id=session.session_id,
                request_id=self._fresh(),
                content=text_parts(silent(self._fresh())),
                wait=Duration(),
            )
            answer = await self._stubs.chat.SendMessage(request, metadata=self._user, timeout=_TIMEOUT)
            running.append(answer.turn)

        try:
            return await self._steady("AGENT_NOT_AVAILABLE", send)
        finally:
            await self._insist([functools.partial(self._cancel, turn) for turn in running])

    async def unavailable(self) -> Counted:
        """Calls with a token of a key that replicas do not know, while the issuer's keys cannot be fetched."""
        stranger = bearer(Issuer("unknown").token(sub=f"{tenants.TENANTS[0]}/{tenants.USER}"))
        request = session_pb2.GetSessionRequest(session_id=self._fresh())
        await self._stage.keys.down()
        try:
            return await self._steady(
                "SERVICE_UNAVAILABLE",
                lambda: self._stubs.sessions.GetSession(request, metadata=stranger, timeout=_TIMEOUT),
            )
        finally:
            await self._stage.keys.up()

    def _operate(self, rpc: str, request: Any) -> Awaitable[Any]:
        method: Any = getattr(self._stubs.operator, rpc)
        answer: Awaitable[Any] = method(request, metadata=self._operator, timeout=_TIMEOUT)
        return answer

    def _cancel(self, turn: chat_pb2.Turn) -> Awaitable[Any]:
        request = chat_pb2.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
        return self._stubs.chat.CancelTurn(request, metadata=self._user, timeout=_TIMEOUT)

    async def _insist(self, calls: Sequence[Call]) -> None:
        """Makes each call until its answer is final, for _TIMEOUT seconds at most."""

        async def insist(call: Call) -> None:
            while not (await _answer(call)).final:  # noqa: ASYNC110 - only another call shows it
                await asyncio.sleep(_PAUSE)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TIMEOUT):
                await asyncio.gather(*map(insist, calls))

    async def _create(self, agent: str) -> Any:
        request = session_pb2.CreateSessionRequest(agent=agent, request_id=self._fresh())
        return await self._stubs.sessions.CreateSession(request, metadata=self._user, timeout=_TIMEOUT)

    def _fresh(self) -> str:
        return tenants.label(tenants.TENANTS[0], f"answer-{next(self._numbers)}")

    async def _steady(self, kind: str, call: Call) -> Counted:
        """Calls until STEADY answers in a row are of this kind, and counts from then on."""
        row = 0
        for _ in range(_TRIES):
            row = row + 1 if _kind(await _answer(call)) == kind else 0
            if row == STEADY:
                break
            await asyncio.sleep(_PAUSE)
        return await self._count(kind, call)

    async def _count(self, kind: str, call: Call) -> Counted:
        """Calls until so many answers of this kind have come, or _MOST times as many of all kinds."""
        counted = Counter[str]()

        async def answered() -> None:
            while counted[kind] < self._times and counted.total() < _MOST * self._times:
                counted[_kind(await _answer(call))] += 1

        await asyncio.gather(*(answered() for _ in range(AT_ONCE)))
        return Counted(kind, counted.pop(kind, 0), counted)


@asynccontextmanager
async def answers(stage: Stage, *, times: int = TIMES) -> AsyncIterator[Answers]:
    """Opens a connection to the proxy for them."""
    credentials = grpc.ssl_channel_credentials(stage.ca.read_bytes())
    async with aio.secure_channel(stage.envoy.address, credentials) as channel:
        yield Answers(stage, channel, times=times)


async def _answer(call: Call) -> Answer:
    try:
        await call()
    except aio.AioRpcError as error:
        return answer_of(error)
    return Answer("OK")


def _kind(answer: Answer) -> str:
    """Returns the service's code, or gRPC's status where there is none."""
    return answer.reason or answer.status
