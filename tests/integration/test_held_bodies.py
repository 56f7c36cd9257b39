"""What arrives in a pause is left to the system. What ends a connection, and much at a time, wakes the loop."""

import asyncio
import contextlib
import fcntl
import gc
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
import uvloop

from tests.call_counts import calls_of
from tests.processes import until
from tests.unit.model.reading import REQUEST
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.collected import FULL_READ, Collected, body_of
from turnkeeper.model.collected_parts import TRIED
from turnkeeper.model.deadline_watch import Deadlines, DeadlineWatch
from turnkeeper.model.openai_client import Provider, new_client
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
        self.transport = response.connection.transport
        self.body = Collected(response.content, self.transport)

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
async def serving() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Answers each call with HEAD. Yields the address, and a list that gets each call's writer."""
    servers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        servers.append(writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", servers
        finally:
            servers[0].close()
            with contextlib.suppress(OSError):
                await servers[0].wait_closed()


@asynccontextmanager
async def answering() -> AsyncIterator[Answer]:
    """Opens an answer, of which the first part is read."""
    async with (
        serving() as (address, servers),
        aiohttp.ClientSession() as client,
        client.get(address) as response,
    ):
        answer = Answer(response, servers[0])
        assert await answer.body.read() == b"first"
        yield answer
        response.close()


class Minutes(ReadPauses):
    """Pauses for as long as the caller has patience, from the first time on."""

    def after(self, size: int) -> float:
        return self._patience()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_body_of_a_models_answer_can_be_held(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The server runs on uvloop, whose connections are of other classes than those of asyncio."""

    async def hold() -> bool:
        async with serving() as (address, _):
            client = new_client(
                Provider(base_url=address, api_key="none"), connect=timedelta(seconds=5), now=lambda: datetime.now(UTC)
            )
            response = await client.post(b"{}", size=2)
            body = body_of(response)
            assert await body.read() == b"first"
            body.hold()
            is_held = body.release()
            await response.aclose()
            await client.close()
            return is_held

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(hold())


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
        connected = answer.transport
    body = Collected(aiohttp.StreamReader(None, 1, loop=asyncio.get_running_loop()), connected)  # type: ignore[arg-type]
    body.hold()
    assert not body.release()


async def test_a_body_that_is_forgotten_leaves_its_connection_open() -> None:
    async with answering() as answer:
        answer.body.hold()
        answer.body = Collected(answer.body._content)  # noqa: SLF001 - the first one is gone
        gc.collect()
        assert answer.wakes_at == FULL_READ
        await answer.send(bytes(FULL_READ))
        assert await answer.body.read() == bytes(FULL_READ)


async def test_all_parts_of_a_read_are_taken_at_once() -> None:
    assert aiohttp.__version__ == TRIED, "try collected_parts.py with this version, and name it there"
    async with answering() as answer:
        for _ in range(2):  # what was taken is not there again, and what comes next is
            answer.body.hold()
            for number in range(20):
                await answer.send(b"part %d " % number)
            await until(lambda: answer.waits > 240)
            assert answer.body.release()
            await until(lambda: answer.waits == 0)
            read, counts = calls_of(answer.body.collected)
            assert read == b"".join(b"part %d " % number for number in range(20))
            assert sum(counts.values()) <= 4, counts


async def test_a_connection_that_has_stopped_goes_on_after_a_read() -> None:
    async with answering() as answer:
        sending = asyncio.create_task(answer.send(bytes(4 << 20)))
        size = 0
        while size < 4 << 20:
            size += len(answer.body.collected() or await answer.body.read() or b"")
        await sending
