"""The proxy between clients, servers and database: cut, silent, or robbed of an answer."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import Link, Wire
from tests.processes import until

ME = "me"


@contextlib.asynccontextmanager
async def _echo() -> AsyncIterator[tuple[Wire, Link]]:
    """Opens a link to a server that sends everything back."""

    talking: set[asyncio.StreamWriter] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1024):
                writer.write(data)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        talking.remove(writer)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        with Wire() as wire:
            wire.names[os.getpid()] = ME
            link = wire.link("db", identify=True)
            link.target = server.sockets[0].getsockname()[1]
            yield wire, link
        await until(lambda: not talking)


@contextlib.asynccontextmanager
async def _connected(link: Link) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _said_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: bytes) -> bytes:
    writer.write(words)
    async with asyncio.timeout(5):
        return await reader.readexactly(len(words))


async def test_data_passes_and_its_owner_is_known() -> None:
    async with _echo() as (_, link), _connected(link) as (reader, writer):
        assert await _said_back(reader, writer, b"hello") == b"hello"
        assert [pipe.owner for pipe in link.pipes] == [ME]


async def test_a_cut_resets_the_owners_connections_and_no_others() -> None:
    async with _echo() as (wire, link), _connected(link) as (reader, writer):
        await _said_back(reader, writer, b"hello")
        assert wire.cut(["db"], ["another"]) == 0
        assert await _said_back(reader, writer, b"still here") == b"still here"
        assert wire.cut(["db"], [ME]) == 1
        with pytest.raises(ConnectionResetError):
            await reader.read(1)


async def test_in_a_hole_nothing_passes_and_afterwards_all_of_it_does() -> None:
    async with _echo() as (wire, link), _connected(link) as (reader, writer):
        await _said_back(reader, writer, b"hello")
        with wire.hole(["db"], [ME]) as hole:
            writer.write(b"in the hole")
            async with _connected(link) as (late, also):
                also.write(b"too late")
                await until(lambda: hole.caught == 2)
                for stream in (reader, late):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(stream.read(1), timeout=0.2)
        async with asyncio.timeout(5):
            assert await reader.readexactly(11) == b"in the hole"


async def test_a_connection_made_in_a_hole_goes_on_after_it() -> None:
    async with _echo() as (wire, link):
        with wire.hole(["db"]) as hole:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            writer.write(b"patience")
            await until(lambda: hole.caught == 1)
        async with asyncio.timeout(5):
            assert await reader.readexactly(8) == b"patience"
        writer.close()


async def test_a_stolen_answer_was_given_and_its_connection_is_gone() -> None:
    async with _echo() as (wire, link), _connected(link) as (reader, writer):
        await _said_back(reader, writer, b"hello")
        with wire.theft(["db"], [ME], b"commit", times=1) as theft:
            assert await _said_back(reader, writer, b"insert") == b"insert"
            writer.write(b"commit")
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            assert (theft.taken, theft.left) == (1, 0)


async def test_a_link_without_a_target_refuses() -> None:
    async with _echo() as (_, link):
        link.target = None
        with contextlib.suppress(ConnectionResetError):  # it may come as soon as while the client connects
            async with _connected(link) as (reader, _):
                assert await reader.read(1) == b""


async def test_connections_that_their_clients_close_are_forgotten() -> None:
    async with _echo() as (_, link):
        for _ in range(20):
            async with _connected(link):
                pass
        await until(lambda: not link.pipes)
