"""A proxy before the database that holds each answer back: every operation takes so much longer."""

import asyncio
from collections import deque
from typing import Final, cast

from tests.bench.runner import Channels

_kept: Final[list[asyncio.AbstractServer]] = []
"""Proxies that run until this process ends."""


async def open_proxy(_channels: Channels, *, target: int, seconds: float) -> int:
    """Starts a proxy to this port of loopback, whose answers come `seconds` later. Returns its own port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Near(target, seconds), "127.0.0.1", 0)
    _kept.append(server)
    return int(server.sockets[0].getsockname()[1])


class _Near(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, target: int, seconds: float) -> None:
        self._target = target
        self._far = _Far(seconds)
        self._early = list[bytes]()
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._far.near = cast("asyncio.Transport", transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self._far.transport is None:
            self._early.append(data)
        else:
            self._far.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._far.transport is not None:
            self._far.transport.close()

    async def _connect(self) -> None:
        assert self._far.near is not None
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._far, "127.0.0.1", self._target)
        except OSError:
            self._far.near.abort()
            return
        assert self._far.transport is not None
        self._far.transport.writelines(self._early)
        if self._far.near.is_closing():
            self._far.transport.close()


class _Far(asyncio.Protocol):
    """The same connection on the database's side: it holds back what it receives, in order."""

    def __init__(self, seconds: float) -> None:
        self.near: asyncio.Transport | None = None
        self.transport: asyncio.Transport | None = None
        self._seconds = seconds
        self._held = deque[bytes]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

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
