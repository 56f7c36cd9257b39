"""What arrives in a pause is left to the system. What ends a connection, and much at a time, wakes the loop."""

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.processes import until
from tests.unit.model.reading import REQUEST
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.collected import FULL_READ, Collected
from turnkeeper.model.deadline_watch import Deadlines, DeadlineWatch
from turnkeeper.model.read_pauses import ReadPauses
from turnkeeper.model.timed_reads import TimedReads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems hold nothing")
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"


class Answer:
    """An answer whose server sends what the test sends."""

    def __init__(self, response: aiohttp.ClientResponse, server: asyncio.StreamWriter) -> None:
        assert response.connection is not None
        assert response.connection.transport is not None
        self._server = server
        self.socket: Any = response.connection.transport.get_extra_info("socket")
        self.body = Collected(response.content, self.socket)

    async def send(self, data: bytes) -> None:
        """Sends one chunk of the body, and returns once the system has it."""
        self._server.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._server.drain()

    def close(self) -> None:
        self._server.close()

    @property
    def waits(self) -> int:
        """Returns how many bytes the system holds."""
        (size,) = struct.unpack("i", fcntl.ioctl(self.socket.fileno(), termios.FIONREAD, bytes(4)))
        return int(size)

    @property
    def wakes_at(self) -> int:
        """Returns from how many bytes on the system wakes the loop."""
        return int(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))


@asynccontextmanager
async def answering() -> AsyncIterator[Answer]:
    """Opens an answer, of which the first part is read."""
    servers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        servers.append(writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, aiohttp.ClientSession() as client:
        port = server.sockets[0].getsockname()[1]
        async with client.get(f"http://127.0.0.1:{port}/") as response:
            answer = Answer(response, servers[0])
            assert await answer.body.read() == b"first"
            yield answer
            response.close()
        servers[0].close()
        with contextlib.suppress(OSError):
            await servers[0].wait_closed()


class Minutes(ReadPauses):
    """Pauses for as long as the caller has patience, from the first time on."""

    def after(self, size: int) -> float:
        return self._patience()


async def some_turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_what_arrives_while_held_comes_at_once_when_it_is_released() -> None:
    async with answering() as answer:
        answer.body.hold()
        await answer.send(b"one")
        await answer.send(b"two")
        await until(lambda: answer.waits == 16)
        await some_turns()
        assert answer.body.collected() == b""
        assert answer.body.release()
        await some_turns()
        assert answer.body.collected() == b"onetwo"
        assert not answer.body.release()


async def test_much_at_a_time_wakes_the_loop() -> None:
    async with answering() as answer:
        answer.body.hold()
        await answer.send(bytes(2 * FULL_READ))
        assert len(await answer.body.read() or b"") == FULL_READ


async def test_the_end_of_a_connection_wakes_the_loop_and_what_came_before_it_is_read() -> None:
    async with answering() as answer:
        answer.body.hold()
        await answer.send(b"last")
        answer.close()
        assert await answer.body.read() == b"last"
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.body.read()


async def test_a_reading_that_is_cancelled_leaves_a_connection_that_wakes_the_loop() -> None:
    async with answering() as answer:
        loop, reader = asyncio.get_running_loop(), AnswerReader(REQUEST, max_answer_bytes=1 << 20)
        with (watch := DeadlineWatch(Deadlines(), loop=loop)):
            timed = TimedReads(answer.body, reader, watch, Minutes(lambda: 60.0, now=loop.time), lambda _: True)
            pause = asyncio.create_task(timed.pause(1))
            await until(lambda: answer.wakes_at == FULL_READ)
            pause.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pause
        assert answer.wakes_at == 1


async def test_a_closed_connection_holds_nothing() -> None:
    async with answering() as answer:
        connected = answer.socket
    body = Collected(aiohttp.StreamReader(None, 1, loop=asyncio.get_running_loop()), connected)  # type: ignore[arg-type]
    body.hold()
    assert not body.release()
