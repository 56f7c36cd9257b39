"""The proxy before the database holds answers back, loses none, and keeps their order."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pymongo import AsyncMongoClient

from tests.bench.jobs.delaying import address, proxy
from tests.processes import until

DELAY = 0.05
"""Seconds."""
LINES = [b"%d\n" % number for number in range(200)]


@asynccontextmanager
async def _echo(answered: asyncio.Event) -> AsyncIterator[int]:
    answering = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answering
        answering += 1
        with contextlib.suppress(ConnectionResetError):
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
                answered.set()
        await _closed(writer)
        answering -= 1

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await until(lambda: not answering)


async def test_answers_come_whole_and_in_order() -> None:
    async with _echo(asyncio.Event()) as target, proxy(target, 0.001) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for line in LINES:
            writer.write(line)
            await asyncio.sleep(0)
        assert [await reader.readline() for _ in LINES] == LINES
        writer.write_eof()
        assert await reader.read() == b""
        await _closed(writer)


async def test_an_answer_is_held_back() -> None:
    answered = asyncio.Event()
    async with _echo(answered) as target, proxy(target, 3600) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one\n")
        await answered.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.1)
        await _closed(writer)


async def test_a_connection_that_cannot_be_passed_on_is_closed() -> None:
    async with _echo(asyncio.Event()) as target:
        pass
    async with proxy(target, 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()


async def test_a_driver_that_knows_the_replica_set_is_delayed(mongo_uri: str) -> None:
    target = int(mongo_uri.partition("/?")[0].rpartition(":")[2])
    async with (
        proxy(target, DELAY) as port,
        AsyncMongoClient[dict[str, object]](address(mongo_uri, port)) as client,
    ):
        await client.admin.command("ping")
        began = time.monotonic()
        await client.admin.command("ping")
        assert time.monotonic() - began >= DELAY
