"""What a client may send before it is read, and how many connections there may be: the bytes that a real server sends.

The installed grpcio must heed these options: without them each stream may send 4 MiB that no code of ours requested.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.bench.jobs.half_sent import frame, headers
from turnkeeper.rpc.server import OPTIONS, WINDOW_BYTES

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0x0, 0x1, 0x4, 0x6, 0x8
ACK, END_HEADERS = 0x1, 0x4
INITIAL_WINDOW = 0x4
BODY = 1 << 20
NAMES = {"grpc.http2.bdp_probe", "grpc.http2.lookahead_bytes"}


class Frames:
    """A connection of raw frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        writer.write(PREFACE + frame(SETTINGS, 0, 0))

    async def next(self) -> tuple[int, int, int, bytes]:
        """Returns the next frame: its kind, its flags, its stream and its payload."""
        head = await self._reader.readexactly(9)
        kind, flags, stream = struct.unpack("!BBI", head[3:])
        return kind, flags, stream, await self._reader.readexactly(int.from_bytes(head[:3]))

    async def window(self) -> int:
        """Returns the window of each new stream, from the server's settings."""
        while True:
            kind, flags, _, payload = await self.next()
            if kind == SETTINGS and not flags & ACK:
                self.writer.write(frame(SETTINGS, ACK, 0))
                return int(dict(struct.iter_unpack("!HI", payload))[INITIAL_WINDOW])


class Called:
    """The server's only method: it reads its request once it may."""

    def __init__(self) -> None:
        self.begun, self.may_read = asyncio.Event(), asyncio.Event()

    async def send(self, _: object, context: Any) -> bytes:
        self.begun.set()
        await self.may_read.wait()
        await context.read()
        return b""


@asynccontextmanager
async def serving(**changed: int) -> AsyncIterator[tuple[int, Called]]:
    """Starts a server with our options, and yields its port."""
    called = Called()
    server = aio.server(options=list({**dict(OPTIONS), **changed}.items()))
    handlers: dict[str, Any] = {"SendMessage": grpc.stream_unary_rpc_method_handler(called.send)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("turnkeeper.v1.ChatService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, called
    finally:
        await server.stop(None)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Frames]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Frames(reader, writer)
    finally:
        writer.close()


async def test_a_stream_gets_a_small_window_and_a_larger_one_once_its_body_is_read() -> None:
    async with asyncio.timeout(10), serving() as (port, called), connected(port) as frames:
        assert await frames.window() == WINDOW_BYTES
        frames.writer.write(
            frame(HEADERS, END_HEADERS, 1, headers(b"/turnkeeper.v1.ChatService/SendMessage"))
            + frame(DATA, 0, 1, struct.pack("!BI", 0, BODY) + b"x" * (WINDOW_BYTES // 4))
        )
        await called.begun.wait()
        frames.writer.write(frame(PING, 0, 0, b"unread: "))
        kinds = set()
        while (got := await frames.next())[3] != b"unread: ":
            kinds.add((got[0], got[2]))
        assert (WINDOW_UPDATE, 1) not in kinds, "the body is not read yet"
        called.may_read.set()
        more = 0
        while more < BODY - WINDOW_BYTES:
            kind, _, stream, payload = await frames.next()
            assert kind != PING, "a probe: the window would grow by itself"
            if kind == WINDOW_UPDATE and stream == 1:
                more += int.from_bytes(payload)
        assert more <= BODY + WINDOW_BYTES


async def test_without_these_options_the_server_would_take_megabytes() -> None:
    """If this fails, grpcio has changed; the options may then be of no use."""
    kept = {name: value for name, value in OPTIONS if name not in NAMES}
    server = aio.server(options=list(kept.items()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(10), connected(port) as frames:
        assert await frames.window() == 4 << 20
    await server.stop(None)


async def test_a_connection_beyond_the_most_is_closed_at_once_and_others_are_served() -> None:
    async with asyncio.timeout(10), serving(**{"grpc.max_allowed_incoming_connections": 2}) as (port, _):
        async with connected(port) as first, connected(port) as second:
            assert await first.window() == await second.window() == WINDOW_BYTES
            async with connected(port) as third:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await third.next()
            first.writer.write(frame(PING, 0, 0, b"go on : "))
            while (await first.next())[3] != b"go on : ":
                pass
        while True:  # a place is free once the server has seen that one was closed
            async with connected(port) as fourth:
                try:
                    assert await fourth.window() == WINDOW_BYTES
                    break
                except (asyncio.IncompleteReadError, ConnectionError):
                    await asyncio.sleep(0.01)
