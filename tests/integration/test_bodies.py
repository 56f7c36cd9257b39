"""A request has exactly one message, which must arrive in time; bodies that come slowly do not keep others out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.processes import until
from turnkeeper.admission.memory import PROCESS_BYTES, MemoryBudget
from turnkeeper.errors import NotImplementedYet
from turnkeeper.rpc.bodies import BODY_BYTES, MEMORY_SHARE, Bodies, BodyLate


def room_for(count: int) -> MemoryBudget:
    """Returns a budget with room for so many bodies at the same time."""
    return MemoryBudget(PROCESS_BYTES + int(count * BODY_BYTES / MEMORY_SHARE))


class Reader:
    """A method that reads its request's body, and returns it, or the name of what the reader raised."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.address = ""
        self.reading = asyncio.Semaphore(0)

    async def read(self, _: object, context: Any) -> bytes:
        self.reading.release()
        try:
            return await self._bodies.read(context)
        except (BodyLate, NotImplementedYet) as error:
            return type(error).__name__.encode()


@contextlib.asynccontextmanager
async def serving(bodies: Bodies) -> AsyncIterator[tuple[Reader, aio.Channel]]:
    reader = Reader(bodies)
    server = aio.server()
    handlers: dict[str, Any] = {"Read": grpc.stream_unary_rpc_method_handler(reader.read)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Reads", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader.address = f"127.0.0.1:{port}"
    async with aio.insecure_channel(reader.address) as channel:
        yield reader, channel
    await server.stop(0)


def another_connection(reader: Reader) -> aio.Channel:
    """Returns a channel that shares no connection with others."""
    return aio.insecure_channel(reader.address, options=[("grpc.use_local_subchannel_pool", 1)])


def opened(channel: aio.Channel, *messages: bytes, ends: bool) -> Any:
    """Begins a call that sends these messages, and then ends its request or not."""

    async def request() -> AsyncIterator[bytes]:
        for message in messages:
            yield message
        if not ends:
            await asyncio.Event().wait()

    method: Any = channel.stream_unary("/test.v1.Reads/Read")
    return method(request())


async def test_a_plain_client_is_read() -> None:
    async with serving(Bodies(MemoryBudget())) as (_, channel):
        method: Any = channel.unary_unary("/test.v1.Reads/Read")
        assert await method(b"a body") == b"a body"
        assert await method(b"") == b""


@pytest.mark.parametrize("messages", [(), (b"one", b"two")])
async def test_no_message_and_two_are_not_one(messages: tuple[bytes, ...]) -> None:
    async with serving(Bodies(MemoryBudget())) as (_, channel):
        assert await opened(channel, *messages, ends=True) == b"NotImplementedYet"


@pytest.mark.parametrize("messages", [(), (b"one",)])
async def test_a_body_that_does_not_end_is_late(messages: tuple[bytes, ...]) -> None:
    async with serving(Bodies(MemoryBudget(), seconds=0.2)) as (_, channel):
        assert await opened(channel, *messages, ends=False) == b"BodyLate"


async def test_over_the_budget_the_oldest_body_makes_room() -> None:
    async with serving(Bodies(room_for(4), young=0.0)) as (reader, channel):
        first = opened(channel, ends=False)
        await reader.reading.acquire()
        second = opened(channel, ends=False)
        await reader.reading.acquire()
        method: Any = channel.unary_unary("/test.v1.Reads/Read")
        assert await method(b"a body") == b"a body"
        assert await first == b"BodyLate"
        assert not second.done()
        second.cancel()


async def test_half_sent_bodies_of_one_connection_leave_others_a_place() -> None:
    async with serving(Bodies(room_for(4), young=60.0)) as (reader, channel):
        halves = [opened(channel, ends=False) for _ in range(20)]
        for _ in halves:
            await reader.reading.acquire()
        async with another_connection(reader) as other:
            method: Any = other.unary_unary("/test.v1.Reads/Read")
            for _ in range(3):
                assert await method(b"a body", timeout=5) == b"a body"
        assert not any(half.done() for half in halves)
        for half in halves:
            half.cancel()


async def test_over_the_budget_a_body_among_young_ones_waits() -> None:
    async with serving(Bodies(room_for(1), young=60.0)) as (reader, channel):
        first = opened(channel, ends=False)
        await reader.reading.acquire()
        method: Any = channel.unary_unary("/test.v1.Reads/Read")
        second = method(b"a body")
        await reader.reading.acquire()
        assert not second.done()
        first.cancel()
        assert await second == b"a body"


async def test_a_burst_of_many_small_bodies_is_read() -> None:
    async with serving(Bodies(room_for(2))) as (_, channel):
        method: Any = channel.unary_unary("/test.v1.Reads/Read")
        assert await asyncio.gather(*(method(b"a body") for _ in range(300))) == [b"a body"] * 300


async def test_bodies_that_are_being_received_count_in_the_budget_until_they_end() -> None:
    memory = room_for(4)
    async with serving(Bodies(memory, young=60.0)) as (reader, channel):
        calls = [opened(channel, b"one", ends=False) for _ in range(3)]
        for _ in calls:
            await reader.reading.acquire()
        assert memory.used()["bodies"] == 2 * BODY_BYTES, "one connection has half of the places"
        for call in calls:
            call.cancel()
        await until(lambda: not memory.used()["bodies"])
