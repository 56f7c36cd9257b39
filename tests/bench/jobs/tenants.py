"""Callers of two tenants: one keeps to its rate, the other one does not."""

import asyncio
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
from grpc import aio

from tests.bench.jobs.offered import COMPLETED, IN_TIME, Phase, open_loop
from tests.bench.pacing import Pace
from tests.bench.runner import Channels
from tests.status_details import details_of
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, message_pb2

CREDENTIAL: Final = "x-forwarded-client-cert"
STEADY: Final = "spiffe://bench/steady"
GREEDY: Final = "spiffe://bench/greedy"
FLOODING: Final = "spiffe://bench/flooding"
SETTLING: Final = 2.0
"""Seconds at the begin of an offer that do not count."""
ANSWER: Final = Pace(1, apart_ms=0, first_ms=50)
REFUSED: Final = "RATE_LIMIT_EXCEEDED"
_CONNECTIONS: Final = 8


class Caller:
    """The calls of one principal, on connections of its own."""

    def __init__(self, stack: AsyncExitStack, address: str, principal: str) -> None:
        self._stack, self._address = stack, address
        self._metadata = ((CREDENTIAL, f'URI="{principal}"'),)
        self._stubs: list[chat_pb2_grpc.ChatServiceStub] = []

    async def open(self) -> "Caller":
        for _ in range(_CONNECTIONS):
            channel = aio.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)])
            await self._stack.enter_async_context(channel)
            await channel.channel_ready()
            self._stubs.append(chat_pb2_grpc.ChatServiceStub(channel))
        return self

    async def send(self, number: int, request: chat_pb2.SendMessageRequest) -> str:
        """Sends a message. Returns the state in which its turn has ended. Raises AioRpcError."""
        stub = self._stubs[number % len(self._stubs)]
        response = await stub.SendMessage(request, metadata=self._metadata, timeout=20)
        return chat_pb2.TurnState.Name(response.turn.state).removeprefix("TURN_STATE_")


def a_message() -> chat_pb2.SendMessageRequest:
    """Returns a message that creates its session."""
    return chat_pb2.SendMessageRequest(
        request_id=uuid.uuid4().hex,
        content=[message_pb2.Part(text=ANSWER.message)],
        create_session=chat_pb2.CreateSessionParams(agent="bench"),
    )


async def offer_by_two(_: Channels, *, address: str, steady: float, greedy: float, seconds: float) -> dict[str, Any]:
    """Offers turns of both tenants at these rates; the greedy one heeds no refusal.

    Returns the steady one's latencies in milliseconds, and how many of its turns were COMPLETED in time. Of the greedy
    one's: how many were requested, and how many of them the limit refused.
    """
    async with AsyncExitStack() as stack:
        own = [await Caller(stack, address, name).open() for name in (STEADY, GREEDY)]
        offers = [_offer(caller, [[rate, seconds]]) for caller, rate in zip(own, (steady, greedy), strict=True) if rate]
        results = await asyncio.gather(*offers)
    counted = [record for record in results[0]["records"] if record[0] >= SETTLING]
    latencies = sorted(1000 * took for _, took, end in counted if end == COMPLETED)
    completed = sum(end == COMPLETED and took <= IN_TIME for _, took, end in counted)
    greedy_ends = [end for _, _, end in results[1]["records"]] if greedy else []
    refused = sum(REFUSED in end for end in greedy_ends)
    return {"latencies": latencies, "completed": completed, "refused": refused, "requested": len(greedy_ends)}


async def _offer(caller: Caller, phases: list[Phase]) -> dict[str, Any]:
    return await open_loop(phases, lambda number: caller.send(number, a_message()), str, linger=IN_TIME)


async def wait_as_told(_: Channels, *, address: str, callers: int, seconds: float) -> dict[str, int]:
    """Calls of the greedy tenant, each sent again after exactly the time of RetryInfo. Returns how many ended how.

    `first` were accepted at once; `back` came again, and of those `accepted` were.
    """
    counts = Counter[str](first=0, back=0, accepted=0)
    async with AsyncExitStack() as stack:
        caller = await Caller(stack, address, GREEDY).open()
        until = time.monotonic() + seconds

        async def call(number: int) -> None:
            while time.monotonic() < until:
                request = a_message()
                wait = await _refused_for(caller, number, request)
                counts["first"] += wait is None
                while wait is not None:
                    if time.monotonic() + wait >= until:
                        return
                    await asyncio.sleep(wait)
                    wait = await _refused_for(caller, number, request)
                    counts["back"] += 1
                    counts["accepted"] += wait is None

        await asyncio.gather(*map(call, range(callers)))
    return dict(counts)


async def flood(_: Channels, *, address: str, count: int, at_once: int = 64) -> int:
    """Sends messages of the flooding tenant, whatever becomes of them. Returns how many were refused by the limit."""
    numbers, refused = iter(range(count)), 0
    async with AsyncExitStack() as stack:
        caller = await Caller(stack, address, FLOODING).open()

        async def send() -> None:
            nonlocal refused
            for number in numbers:
                wait = await _refused_for(caller, number, a_message())
                refused += wait is not None

        await asyncio.gather(*(send() for _ in range(at_once)))
    return refused


async def _refused_for(caller: Caller, number: int, request: chat_pb2.SendMessageRequest) -> float | None:
    """Sends a message. Returns the seconds for which the limit refuses it, or None if it does not."""
    try:
        await caller.send(number, request)
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            details = details_of(error)
            if details.reason == REFUSED and details.retry_after is not None:
                return details.retry_after.total_seconds()
    return None
