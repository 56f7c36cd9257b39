"""What the HTTP client has collected of a body, for a reader that does not come at once."""

from collections.abc import AsyncIterator
from typing import Final, Protocol

import aiohttp
import httpx2

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


def body_of(response: httpx2.Response) -> Body:
    """Returns the answer's body: as the client has it, or through its decoder if it is compressed."""
    content = _content(response)
    return _Decoded(response) if content is None or "content-encoding" in response.headers else _Collected(content)


def may_wait(body: Body) -> bool:
    """Returns True if nothing is lost when the connection breaks before the reader comes."""
    return isinstance(body, _Collected)


class _Collected:
    """A body as aiohttp collects it: there is no layer between, because each costs something with every delta."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def collected(self) -> bytes:
        content = self._content
        return self._rest() if content.exception() is not None else content.read_nowait(FULL_READ)

    async def read(self) -> bytes | None:
        try:
            return await self._content.read(FULL_READ) or None
        except (aiohttp.ClientError, OSError):
            if rest := self._rest():
                return rest
            raise

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


class _Decoded:
    """A body that the client decodes. It collects nothing."""

    def __init__(self, response: httpx2.Response) -> None:
        self._parts: AsyncIterator[bytes] = response.aiter_bytes()

    def collected(self) -> bytes:
        return b""

    async def read(self) -> bytes | None:
        return await anext(self._parts, None)


def _content(response: httpx2.Response) -> aiohttp.StreamReader | None:
    """Returns aiohttp's own stream of the body; None if it is not where this version has it."""
    stream: object = response.stream
    for name in ("_stream", "_aiohttp_response", "content"):
        stream = getattr(stream, name, None)
    return stream if isinstance(stream, aiohttp.StreamReader) else None
