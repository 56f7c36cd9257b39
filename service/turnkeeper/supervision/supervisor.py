"""Several server processes on one port, each a replica of its own; one that dies is started again.

The supervisor serves nothing. It holds the port, runs what the replicas share (the private database, the small model),
and gives each replica its settings by the environment. A replica is a fresh interpreter, never a fork.
"""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from typing import Final

from turnkeeper import settings
from turnkeeper.bootstrap import background, check_identity, database
from turnkeeper.model.local import LOCAL_MODEL_AT, LocalModelError, local_url
from turnkeeper.settings import PortTaken, SettingError, Settings
from turnkeeper.store.embedded import EmbeddedDatabaseError
from turnkeeper.supervision.parent_link import SERVING

FIRST_PAUSE: Final = 0.5
"""Seconds before a replica that ended is started again; each time twice as long."""
LONGEST_PAUSE: Final = 30.0
STEADY: Final = 60.0
"""Seconds of life after which the pauses begin anew."""

logger = logging.getLogger(__name__)


class ReplicaFailed(Exception):
    """A replica could not start; the message is its reason."""


class NotDrained(Exception):
    """A replica was lost in the drain."""


CANNOT_START: Final = (SettingError, EmbeddedDatabaseError, LocalModelError, PortTaken, ReplicaFailed)


@contextlib.asynccontextmanager
async def serving(chosen: Settings, environ: Mapping[str, str]) -> AsyncIterator[str]:
    """Once all replicas serve, their address. They are drained on the way out.

    Raises PortTaken, SettingError, EmbeddedDatabaseError, LocalModelError, ReplicaFailed: each says what to do. On the
    way out NotDrained.
    """
    check_identity(chosen)
    async with AsyncExitStack() as stack:
        port = stack.enter_context(held(chosen.host, chosen.port))
        uri = await database(chosen, stack)
        model = await local_url(chosen, environ, stack)
        shared = replace(chosen, processes=1, port=port, mongodb_uri=uri, embedded=False)
        variables = {**environ, LOCAL_MODEL_AT: model} if model else environ
        replicas = [_Replica(_numbered(shared, number), variables) for number in range(1, chosen.processes + 1)]
        try:
            await _start(replicas)
            async with background(*(each.keep for each in replicas)):
                yield f"{chosen.host}:{port}"
        finally:
            drained = await asyncio.gather(*(each.drain() for each in replicas))
        if not all(drained):
            raise NotDrained("a process was lost in the drain; its turns are taken over when their leases have run out")


@contextlib.contextmanager
def held(host: str, port: int) -> Iterator[int]:
    """The port, kept for processes that share it and run as our user; 0 takes a free one. Raises PortTaken.

    Nobody else can listen there meanwhile: neither who does not share, nor another supervisor.
    """
    holders: list[socket.socket] = []
    with ExitStack() as stack:
        for family, *_, address in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM):
            try:
                holder = stack.enter_context(_hold(family, str(address[0]), port))
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue  # a name such as localhost may also mean what this machine does not have
                raise PortTaken(f"{host}:{port}") from error
            holders.append(holder)
            port = holder.getsockname()[1]
        if not holders:
            raise PortTaken(f"{host}:{port}")
        yield port


def _hold(family: int, host: str, port: int) -> socket.socket:
    """Of two supervisors at the same moment one must be refused: so the port is taken by a socket that listens.

    It is kept by one that takes no connections, and is there before the first is gone.
    """
    with socket.socket(family) as proof:
        proof.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        proof.bind((host, port))
        proof.listen(1)
        proof.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder = socket.socket(family)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server before us may linger
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(proof.getsockname())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # who comes after us may not
        except OSError:
            holder.close()
            raise
    return holder


def _numbered(shared: Settings, number: int) -> Settings:
    port = shared.prometheus_port
    return replace(shared, replica=f"{shared.replica}-{number}", prometheus_port=port + number - 1 if port else 0)


async def _start(replicas: Sequence["_Replica"]) -> None:
    """All at once; the first that cannot start ends it."""
    starts = [asyncio.create_task(each.start()) for each in replicas]
    try:
        for start in asyncio.as_completed(starts):
            await start
    finally:
        for each in starts:
            each.cancel()
        await asyncio.gather(*starts, return_exceptions=True)


class _Replica:
    """One server process after another, under one name."""

    def __init__(self, chosen: Settings, environ: Mapping[str, str]) -> None:
        self.name = chosen.replica
        self._environ = settings.environment(chosen, environ)
        self._process: asyncio.subprocess.Process | None = None
        self._line: socket.socket | None = None

    async def start(self) -> None:
        """Once it serves. Raises ReplicaFailed with the reason; no process of it is left then."""
        try:
            line, process = await self._launch()
        except OSError as error:
            raise ReplicaFailed(f"{self.name} cannot be started: {error.strerror}") from error
        said = await _said(line)
        if said != SERVING:
            status = await process.wait()
            raise ReplicaFailed(said.decode() or f"{self.name} {_ended(status)} before it served")

    async def _launch(self) -> tuple[socket.socket, asyncio.subprocess.Process]:
        self._hang_up()
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        command = [sys.executable, "-m", "turnkeeper", "serve", "--replica", self.name]
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(*command, "--lifeline", str(theirs.fileno())),
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for us; we ask them to drain
            )
        return self._line, self._process

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()

    async def keep(self) -> None:
        """Start it again whenever it ended."""
        pause = FIRST_PAUSE
        while True:
            assert self._process is not None
            began = asyncio.get_running_loop().time()
            how = _ended(await self._process.wait())
            if asyncio.get_running_loop().time() - began > STEADY:
                pause = FIRST_PAUSE
            logger.error("%s %s; it is started again in %g s", self.name, how, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self.start()
            except ReplicaFailed as error:
                logger.error("%s: %s", self.name, error)
            else:
                logger.warning("%s serves again", self.name)

    async def drain(self) -> bool:
        """Ask it to drain, and wait until it has ended; whether it did so in order, if it ran at all."""
        self._hang_up()
        if self._process is None or self._process.returncode is not None:
            return True
        status = await self._process.wait()
        if status:
            logger.error("%s %s while it drained", self.name, _ended(status))
        return not status


async def _said(line: socket.socket) -> bytes:
    """That it serves, or all that it says instead."""
    loop = asyncio.get_running_loop()
    said = b""
    while said != SERVING and (more := await loop.sock_recv(line, 4096)):
        said += more
    return said


def _ended(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
