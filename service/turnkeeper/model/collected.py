"""What the HTTP client has collected of a body, for a reader that does not come at once."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import aiohttp
import httpx2

from turnkeeper.model.collected_parts import taken

FULL_READ: Final = 16 * 1024
"""Bytes that one read returns at most. After so many there are more, and the server is fast."""


class Body(Protocol):
    """A body that arrives in parts. If the connection breaks, what arrived before is returned first."""

    def collected(self) -> bytes:
        """Returns what has arrived, at most FULL_READ bytes; none if there is nothing, or if the body has ended."""
        ...

    async def read(self) -> bytes | None:
        """Waits for the next part; returns at most FULL_READ bytes, or None at the end. Raises the client's errors."""
        ...

    def hold(self) -> None:
        """Leaves what arrives to the system, which wakes the loop for FULL_READ bytes, an error or the end alone."""
        ...

    def release(self) -> bool:
        """Ends `hold`: what has arrived comes in the loop's next look. Returns False if nothing was held."""
        ...


def body_of(response: httpx2.Response) -> Body:
    """Returns the answer's body: as the client has it, or through its decoder if it is compressed."""
    content = _content(response)
    if content is None or "content-encoding" in response.headers:
        return _Decoded(response)
    return Collected(content, _transport(response))


def may_wait(body: Body) -> bool:
    """Returns True if nothing is lost when the connection breaks before the reader comes."""
    return isinstance(body, Collected)


class Collected:
    """A body as aiohttp collects it: there is no layer between, because each costs something with every delta."""

    def __init__(self, content: aiohttp.StreamReader, transport: asyncio.BaseTransport | None = None) -> None:
        """`transport` is the connection; without it, nothing is held."""
        self._content = content
        self._transport = transport
        self._socket = _borrowed(transport) if transport is not None else None
        self._is_held = False

    def collected(self) -> bytes:
        content = self._content
        return self._rest() if content.exception() is not None else taken(content, FULL_READ)

    async def read(self) -> bytes | None:
        try:
            return await self._content.read(FULL_READ) or None
        except (aiohttp.ClientError, OSError):
            if rest := self._rest():
                return rest
            raise

    def hold(self) -> None:
        if not self._is_held:
            self._is_held = self._wake_at(FULL_READ)

    def release(self) -> bool:
        was_held, self._is_held = self._is_held, False
        return was_held and self._wake_at(1)

    def _wake_at(self, size: int) -> bool:
        """Sets from how many bytes on the system wakes the loop. Returns False for a connection that is closed."""
        if self._socket is None or self._transport is None or self._transport.is_closing():
            return False  # another connection may have the socket's number now
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        return True

    def _rest(self) -> bytes:
        """Returns what arrived before the connection broke and was not read."""
        content = self._content
        broken = content.exception()
        content.set_exception(None)  # type: ignore[arg-type]  # it refuses to give what it has while it has an error
        try:
            return content.read_nowait(FULL_READ)
        finally:
            if broken is not None:
                content.set_exception(broken)


class _Borrowed(socket.socket):
    """The socket of a connection that belongs to another: it is never closed here."""

    def __del__(self) -> None:
        self.detach()


def _borrowed(transport: asyncio.BaseTransport) -> socket.socket | None:
    """Returns the connection's socket; None if it is closed. The client's own makes a new object for each call."""
    connected = None if transport.is_closing() else transport.get_extra_info("socket")
    return None if connected is None else _Borrowed(fileno=connected.fileno())


class _Decoded:
    """A body that the client decodes. It collects nothing."""

    def __init__(self, response: httpx2.Response) -> None:
        self._parts: AsyncIterator[bytes] = response.aiter_bytes()

    def collected(self) -> bytes:
        return b""

    async def read(self) -> bytes | None:
        return await anext(self._parts, None)

    def hold(self) -> None:
        """Does nothing: the decoder reads what arrives."""

    def release(self) -> bool:
        return False


def _content(response: httpx2.Response) -> aiohttp.StreamReader | None:
    """Returns aiohttp's own stream of the body; None if it is not where this version has it."""
    stream = _at(response, "content")
    return stream if isinstance(stream, aiohttp.StreamReader) else None


def _transport(response: httpx2.Response) -> asyncio.BaseTransport | None:
    """Returns the answer's connection; None where the system does not wake for what it holds.

    Linux wakes a loop as soon as a lower mark is set than what waits; others would have to be tried.
    """
    transport: Any = _at(response, "connection", "transport") if sys.platform == "linux" else None
    return transport  # type: ignore[no-any-return]  # uvloop's is no instance of asyncio's


def _at(response: httpx2.Response, *names: str) -> object:
    """Returns what the client's own response has under these names; None if this version has it elsewhere."""
    part: object = response.stream
    for name in ("_stream", "_aiohttp_response", *names):
        part = getattr(part, name, None)
    return part
