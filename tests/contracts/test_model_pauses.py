"""A model that is read once an interval: nothing of what its server has sent is lost, however it ends."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.contracts.models import Stage, answer, asking, fail
from tests.listening import listening
from turnkeeper.model.contract import ModelAnswer, ModelRequest

BEGIN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
MORE = 'data: {"choices":[{"index":0,"delta":{"content":"é, b"}}]}\n\n'.encode()
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ALL = "aé, b"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Server:
    """Sends the first part of a body; the rest, and its end, once the reader has left the body to the connection."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self._first, self._rest = first, rest
        self._paused = asyncio.Event()
        self.base_url = ""
        self.shown: list[str] = []

    def patience(self) -> float:
        self._paused.set()
        return 0.3

    def request(self) -> ModelRequest:
        return replace(asking("hello"), patience=self.patience)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(self._first)
        await self._paused.wait()
        writer.write(self._rest)
        await writer.drain()


@asynccontextmanager
async def served(server: Server) -> AsyncIterator[Server]:
    async with listening(server.talk) as port:
        server.base_url = f"http://127.0.0.1:{port}/v1"
        yield server


def in_chunks() -> tuple[bytes, bytes]:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BEGIN), chunked(MORE + FINISH)


def with_a_length() -> tuple[bytes, bytes]:
    return HEAD + b"Content-Length: 100000\r\n\r\n" + BEGIN, MORE + FINISH


def to_the_end() -> tuple[bytes, bytes]:
    return HEAD + b"Connection: close\r\n\r\n" + BEGIN, MORE + FINISH


def compressed() -> tuple[bytes, bytes]:
    press = zlib.compressobj(wbits=31)
    first = press.compress(BEGIN) + press.flush(zlib.Z_SYNC_FLUSH)
    rest = press.compress(MORE + FINISH) + press.flush(zlib.Z_SYNC_FLUSH)
    return HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + first, rest


@pytest.mark.parametrize("framing", [in_chunks, with_a_length, to_the_end])
async def test_an_answer_that_was_whole_before_its_connection_broke_counts(
    stage: Stage, framing: Callable[[], tuple[bytes, bytes]]
) -> None:
    async with served(Server(*framing())) as server:
        texts, _ = await answer(stage.connect(server.base_url), server.request())
    assert "".join(texts) == ALL


@pytest.mark.parametrize("framing", [in_chunks, with_a_length, to_the_end])
async def test_text_after_the_first_part_may_be_shown_without_a_yield(
    stage: Stage, framing: Callable[[], tuple[bytes, bytes]]
) -> None:
    async with served(Server(*framing())) as server:

        def show(text: str) -> bool:
            server.shown.append(text)
            return True

        model = stage.connect(server.base_url)
        first, *more = [item async for item in model.stream(replace(server.request(), show=show))]
    assert (first, server.shown) == ("a", ["é, b"])
    assert [item.text for item in more if isinstance(item, ModelAnswer)] == [ALL]
    assert len(more) == 1


async def test_the_text_before_a_break_is_shown_and_the_break_is_the_failure(stage: Stage) -> None:
    first, _ = in_chunks()
    async with served(Server(first, chunked(MORE))) as server:
        text, failed = await fail(stage.connect(server.base_url), server.request())
    assert text == ALL
    assert failed.retryable


async def test_a_compressed_answer_is_read_as_it_comes(stage: Stage) -> None:
    server = Server(*compressed())
    async with served(server):
        server.patience()
        texts, _ = await answer(stage.connect(server.base_url), server.request())
    assert "".join(texts) == ALL


async def test_a_fast_answer_of_many_reads_is_whole(stage: Stage) -> None:
    padded = MORE.replace(b"{", b'{"padding":"%s",' % (b"p" * 1_000_000), 1)
    first, _ = to_the_end()
    async with served(Server(first, 3 * padded + FINISH)) as server:
        async with asyncio.timeout(5):
            texts, _ = await answer(stage.connect(server.base_url), server.request())
    assert "".join(texts) == "a" + 3 * "é, b"
