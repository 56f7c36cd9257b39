"""A proxy before the programs, so that connections can be cut, silenced and robbed of an answer.

It runs on a thread of its own: a busy harness must not look like a slow network. Its public methods are thread-safe
and return once they have taken effect.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

import uvloop

from tests.chaos import sockets

T = TypeVar("T")
_RESET: Final = struct.pack("ii", 1, 0)
CONNECT_TIME: Final = 2.0


@dataclass(eq=False, slots=True)
class Hole:
    """A hole drops data silently: on these links, of the connections of these owners (None: all)."""

    links: frozenset[str]
    owners: frozenset[str] | None
    caught: int = 0

    def holds(self, link: str, owner: str) -> bool:
        # A database's connection to itself is no network.
        return link in self.links and (self.owners is None or owner in self.owners) and owner != link


@dataclass(eq=False, slots=True)
class Theft:
    """A theft loses the answers to the next `left` commands with this word: each command is carried out."""

    links: frozenset[str]
    owners: frozenset[str]
    word: bytes
    left: int
    taken: int = 0


@dataclass(eq=False, slots=True)
class Link:
    """An address of the proxy and its target; a target of None refuses."""

    name: str
    port: int = 0
    target: int | None = None
    identify: bool = False
    pipes: "set[_Pipe]" = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Wire:
    """The proxy's thread and its links. `names` is from pid to name, for the owners of identified connections."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.holes: list[Hole] = []
        self.thefts: list[Theft] = []
        self._links: dict[str, Link] = {}
        self._loop = uvloop.new_event_loop()
        self._servers: list[asyncio.AbstractServer] = []
        self.connecting: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self, name: str, *, identify: bool = False) -> Link:
        """Opens a new address. `identify`: finds the owner of each connection, in a few milliseconds for each."""
        link = Link(name, identify=identify)

        async def listen() -> None:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self._servers.append(await self._loop.create_server(lambda: _Pipe(self, link).near, sock=listener))
            link.port = listener.getsockname()[1]

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result()
        self._links[name] = link
        return link

    def cut(self, links: Collection[str], owners: Collection[str] | None = None) -> int:
        """Resets these connections. Returns their number."""
        return self._do(lambda: sum(pipe.reset() for pipe in self._found(Hole(frozenset(links), _set(owners)))))

    @contextlib.contextmanager
    def hole(
        self, links: Collection[str], owners: Collection[str] | None = None, *, reset_after: bool = False
    ) -> Iterator[Hole]:
        """Drops everything silently during the block. Afterwards the data flows on, or is reset."""
        hole = Hole(frozenset(links), _set(owners))
        self._do(lambda: self._dig(hole))
        try:
            yield hole
        finally:
            self._do(lambda: self._fill(hole, reset=reset_after))

    @contextlib.contextmanager
    def theft(self, links: Collection[str], owners: Collection[str], word: bytes, *, times: int) -> Iterator[Theft]:
        """Loses the next `times` answers during the block, and their connections with them."""
        theft = Theft(frozenset(links), frozenset(owners), word, times)
        self._do(lambda: self.thefts.append(theft))
        try:
            yield theft
        finally:
            self._do(lambda: self.thefts.remove(theft))

    def counts(self) -> dict[str, int]:
        """Returns the number of open connections by link."""
        return self._do(lambda: {name: len(link.pipes) for name, link in self._links.items()})

    def _found(self, hole: Hole) -> "list[_Pipe]":
        pipes = [pipe for name in hole.links for pipe in self._links[name].pipes]
        return [pipe for pipe in pipes if hole.holds(pipe.link.name, pipe.owner)]

    def _dig(self, hole: Hole) -> None:
        self.holes.append(hole)
        for pipe in self._found(hole):
            hole.caught += 1
            pipe.hold()

    def _fill(self, hole: Hole, *, reset: bool) -> None:
        self.holes.remove(hole)
        for pipe in self._found(hole):
            if reset:
                pipe.reset()
            elif not any(other.holds(pipe.link.name, pipe.owner) for other in self.holes):
                pipe.release()

    async def _close(self) -> None:
        """Closes the addresses, then what came before, then what such connections still reach for."""
        for server in self._servers:
            server.close()
        for _ in range(3):
            await asyncio.sleep(0)
        for task in (connecting := list(self.connecting)):
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        for link in self._links.values():
            for pipe in list(link.pipes):
                pipe.reset()

    def _do(self, what: Callable[[], T]) -> T:
        async def call() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()


class _Pipe:
    """One connection through a link."""

    def __init__(self, wire: Wire, link: Link) -> None:
        self.wire = wire
        self.link = link
        self.owner = ""
        self.near = _End(self)
        self.far = _End(self)
        self.near.other, self.far.other = self.far, self.near
        self._held = False
        self._early: list[bytes] = []
        self._theft: Theft | None = None

    def opened(self) -> None:
        """Handles a new connection to the proxy's address."""
        assert self.near.transport is not None
        self.link.pipes.add(self)
        if self.link.identify:
            peer = self.near.transport.get_extra_info("peername")[1]
            self.owner = sockets.owner(peer, self.link.port, names=self.wire.names)
        holes = [hole for hole in self.wire.holes if hole.holds(self.link.name, self.owner)]
        for hole in holes:
            hole.caught += 1
        if holes:
            # Not yet: the loop begins to read a new connection after this, even if it was paused before.
            self._held = True
            asyncio.get_running_loop().call_soon(self._hold_still)
        else:
            self._connect()

    def passed(self, end: "_End", data: bytes) -> None:
        if end is self.near and self.wire.thefts:
            self._look_for_theft(data)
        elif end is self.far and self._theft is not None:
            self._theft.taken += 1
            self._theft = None
            self.reset()
            return
        assert end.other is not None
        if end.other.transport is None or (self._held and self._early):
            self._early.append(data)
        elif not end.other.transport.is_closing():
            end.other.transport.write(data)

    def hold(self) -> None:
        self._held = True
        self.near.pause()
        self.far.pause()

    def release(self) -> None:
        if not self._held:
            return
        self._held = False
        if self.far.transport is None:
            self._connect()
            return
        self.near.resume()
        self.far.resume()
        self._flush()

    def _hold_still(self) -> None:
        if self._held:
            self.near.pause()

    def reset(self) -> bool:
        """Resets both ends, as a firewall that lost the connection would. Returns True."""
        self.link.pipes.discard(self)
        for end in (self.near, self.far):
            if end.transport is not None and not end.transport.is_closing():
                with contextlib.suppress(OSError, AttributeError):
                    end.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.transport.abort()
        return True

    def closed(self, end: "_End") -> None:
        self.link.pipes.discard(self)
        if end.other is not None and end.other.transport is not None and not end.other.transport.is_closing():
            end.other.transport.close()

    def _connect(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reach())
        self.wire.connecting.add(task)
        task.add_done_callback(self.wire.connecting.discard)

    async def _reach(self) -> None:
        target = self.link.target
        try:
            if target is None:
                raise ConnectionRefusedError
            async with asyncio.timeout(CONNECT_TIME):
                await asyncio.get_running_loop().create_connection(lambda: self.far, "127.0.0.1", target)
        except (OSError, TimeoutError):
            self.reset()
            return
        if self.near.transport is None or self.near.transport.is_closing():
            self.reset()
        elif not self._held:
            self.near.resume()
            self._flush()

    def _flush(self) -> None:
        """Sends the data that came before the target was connected."""
        assert self.far.transport is not None
        early, self._early = self._early, []
        for data in early:
            self.far.transport.write(data)

    def _look_for_theft(self, data: bytes) -> None:
        for theft in self.wire.thefts:
            mine = self.link.name in theft.links and self.owner in theft.owners
            if mine and theft.left > 0 and theft.word in data:
                theft.left -= 1
                self._theft = theft


class _End(asyncio.Protocol):
    """One end of a pipe."""

    def __init__(self, pipe: _Pipe) -> None:
        self.pipe = pipe
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self is self.pipe.near:
            self.pipe.opened()

    def data_received(self, data: bytes) -> None:
        self.pipe.passed(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pipe.closed(self)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume()

    def pause(self) -> None:
        self._flow(paused=True)

    def resume(self) -> None:
        self._flow(paused=False)

    def _flow(self, *, paused: bool) -> None:
        if self.transport is None or self.transport.is_closing() or paused == self._paused:
            return
        self._paused = paused
        turn: Any = self.transport.pause_reading if paused else self.transport.resume_reading
        turn()


def _set(names: Collection[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)
