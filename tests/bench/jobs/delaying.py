"""A proxy before the database that holds each answer back: every operation takes so much longer."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, cast

from tests.bench.runner import Channels

_kept: Final = AsyncExitStack()
"""Proxies that run until this process ends."""


async def open_proxy(_channels: Channels, *, target: int, seconds: float) -> int:
    """Starts a proxy to this port of loopback, whose answers come `seconds` later. Returns its own port."""
    return await _kept.enter_async_context(proxy(target, seconds))


def address(uri: str, port: int) -> str:
    """Returns the database's address through its proxy at this port.

    The connection is direct: the driver would otherwise go to the member that the database itself names.
    """
    hosts, _, options = uri.partition("/?")
    return f"{hosts.rpartition(':')[0]}:{port}/?{options}&directConnection=true"


@asynccontextmanager
async def proxy(target: int, seconds: float) -> AsyncIterator[int]:
    """Runs the proxy during the block. Yields its port."""
    connections = set[_Near]()
    server = await asyncio.get_running_loop().create_server(lambda: _Near(target, seconds, connections), "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])
        for connection in connections:
            connection.abort()
        await asyncio.sleep(0)  # their ends are closed in the loop's next step


class _Near(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, target: int, seconds: float, connections: "set[_Near]") -> None:
        self._target = target
        self._connections = connections
        self._far = _Far(seconds)
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._far.near = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self._far.transport is None:
            self._far.early.append(data)
        else:
            self._far.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._far.transport is not None:
            self._far.transport.close()

    def abort(self) -> None:
        """Closes both ends at once."""
        if self._connecting is not None:
            self._connecting.cancel()
        for transport in (self._far.near, self._far.transport):
            if transport is not None:
                transport.abort()

    async def _connect(self) -> None:
        assert self._far.near is not None
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._far, "127.0.0.1", self._target)
        except OSError:
            self._far.near.abort()
            return
        assert self._far.transport is not None
        if self._far.near.is_closing():
            self._far.transport.close()


class _Far(asyncio.Protocol):
    """The same connection on the database's side: it holds back what it receives, in order."""

    def __init__(self, seconds: float) -> None:
        self.near: asyncio.Transport | None = None
        self.transport: asyncio.Transport | None = None
        self.early = list[bytes]()
        """What the client sent before the database was connected."""
        self._seconds = seconds
        self._held = deque[bytes]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.writelines(self.early)

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        asyncio.get_running_loop().call_later(self._seconds, self._pass)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.near is not None:
            self.near.close()

    def _pass(self) -> None:
        """Passes the oldest data on: there is a call for each, so that their order does not depend on the timers'."""
        data = self._held.popleft()
        if self.near is not None and not self.near.is_closing():
            self.near.write(data)
