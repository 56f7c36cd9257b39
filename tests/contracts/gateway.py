"""A server between us and a model, as a test has it: it answers each call by a function, and remembers the calls."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.listening import listening

CERTIFICATE = Path(__file__).with_name("loopback.pem")
"""Of `127.0.0.1`, `localhost` and `model.test`."""
OK = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    """By their names in small letters."""
    body: Any
    """The JSON value."""


@dataclass(slots=True)
class Gateway:
    """Where it listens, and what arrived, oldest first."""

    base_url: str
    calls: list[Call] = field(default_factory=list)

    def sent(self, *fields: str) -> Sequence[set[str]]:
        """Returns which of these fields each request had."""
        return [set(fields) & set(call.body) for call in self.calls]


def answering(text: str = "hello") -> str:
    """An answer of these words, whole."""
    content = orjson.dumps({"choices": [{"delta": {"content": text}}]}).decode()
    stop = '{"choices":[{"delta":{},"finish_reason":"stop"}]}'
    return f"{OK}data: {content}\n\ndata: {stop}\n\ndata: [DONE]\n\n"


def refusing(body: str, *, status: str = "400 Bad Request", headers: str = "") -> str:
    """An HTTP error."""
    length = len(body.encode())
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"


@asynccontextmanager
async def gateway(
    reply: Callable[[Call], str | bytes], *, path: str = "/v1", tls: bool = False
) -> AsyncIterator[Gateway]:
    """Serves on loopback: each call gets what `reply` returns, then its connection ends."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
    served = Gateway("")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            call = await _take(reader)
            served.calls.append(call)
            answer = reply(call)
            writer.write(answer.encode() if isinstance(answer, str) else answer)
            await writer.drain()

    async with listening(talk, tls=context) as port:
        served.base_url = f"http{'s' if tls else ''}://127.0.0.1:{port}{path}"
        yield served


@asynccontextmanager
async def tunnel(base_url: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy whose every CONNECT leads to the server at `base_url`; yields its address and what was requested."""
    port = int(base_url.split(":")[2].split("/", maxsplit=1)[0])
    targets: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            targets.append(head)
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    async with listening(talk) as own:
        yield f"http://127.0.0.1:{own}", targets


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _take(reader: asyncio.StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(method=method, target=target, headers=headers, body=orjson.loads(body) if body else {})
