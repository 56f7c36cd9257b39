"""Pings of connections without a call, as a client's keepalive sends them; here they are bytes on the socket."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpc import aio

from turnkeeper.rpc.server import OPTIONS

INTERVAL = "grpc.http2.min_ping_interval_without_data_ms"
SHORTEST_OF_GO = 10_000
"""Go's client pings no more often than every 10 s, with PermitWithoutStream also on idle connections."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACKNOWLEDGED = 1


def frame(kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + bytes(4) + payload


class Pings:
    """A connection that sends pings and opens no stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.write(PREFACE + frame(SETTINGS))

    async def ping(self) -> str:
        """Sends a ping. Returns "" for its acknowledgement, or the reason of the GOAWAY that came instead."""
        self._writer.write(frame(PING, payload=bytes(8)))
        async with asyncio.timeout(10):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3]))
                if head[3] == PING and head[4] & ACKNOWLEDGED:
                    return ""
                if head[3] == GOAWAY:
                    return payload[8:].decode()


@asynccontextmanager
async def connection(*, interval: int) -> AsyncIterator[Pings]:
    """Connects to a server with our options, but for the interval: milliseconds between two pings, at least."""
    server = aio.server(options=list({**dict(OPTIONS), INTERVAL: interval}.items()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Pings(reader, writer)
    finally:
        writer.close()
        await server.stop(None)


async def test_an_idle_connection_may_ping_again_and_again() -> None:
    async with connection(interval=20) as idle:
        for _ in range(6):
            assert await idle.ping() == ""
            await asyncio.sleep(0.03)


async def test_one_that_pings_without_a_pause_is_closed() -> None:
    async with connection(interval=60_000) as idle:
        while not (reason := await idle.ping()):
            pass
    assert reason == "too_many_pings"


def test_the_interval_permits_what_clients_can_be_set_to() -> None:
    assert dict(OPTIONS)[INTERVAL] < SHORTEST_OF_GO, "a ping that is early by a moment counts, too"
