"""Runs several server processes on one port, each a replica of its own, and restarts those that end.

The supervisor serves no call. It holds the port, runs what the replicas share (the private database, the small model),
and passes each replica its settings by the environment. A replica is a new interpreter, never a fork.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Final

from turnkeeper.bootstrap import background, open_database
from turnkeeper.child_processes import how_it_ended
from turnkeeper.database_state import DatabaseState
from turnkeeper.model.local import LOCAL_MODEL_AT, local_url
from turnkeeper.model.weights import LocalModelError
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.start_errors import PortTaken, SettingError
from turnkeeper.store.embedded import EmbeddedDatabaseError
from turnkeeper.supervision.options import SupervisorOptions
from turnkeeper.supervision.parent_link import INTERRUPTED, SERVING, database_line

FIRST_PAUSE: Final = 0.5
"""Seconds before a replica that ended is started again. The pause doubles each time."""
LONGEST_PAUSE: Final = 30.0
"""Seconds at which the pause stops growing."""
CLOSING_TIME: Final = 10.0
"""Seconds that a replica may take beyond its drain to close what it uses; then it is killed."""
STEADY: Final = 60.0
"""Seconds that a replica must have run for its next pause to be the first one again."""

logger = logging.getLogger(__name__)


class ReplicaFailed(Exception):
    """A replica could not start. The message is its reason."""


class NotDrained(Exception):
    """A replica died while it drained."""


CANNOT_START: Final = (
    SettingError,
    EmbeddedDatabaseError,
    LocalModelError,
    PortTaken,
    ReplicaFailed,
)


@contextlib.asynccontextmanager
async def serving(
    options: SupervisorOptions, environ: Mapping[str, str], shutdown: ShutdownRequest
) -> AsyncIterator[str]:
    """Starts all replicas, and yields their address once they serve. Drains them at the end of the block.

    If `shutdown` is interrupted by then, they skip the drain delay. `environ` has the replicas' settings, as
    `settings.environment` writes them. Raises PortTaken, SettingError, EmbeddedDatabaseError, LocalModelError or
    ReplicaFailed, with a message that tells the operator what to do. Raises NotDrained at the end of the block if a
    replica died while it drained, and DatabaseLost when the private database cannot be kept running.
    """
    async with AsyncExitStack() as stack:
        port = stack.enter_context(hold_port(options.host, options.port))
        ports, beside = {"PORT": port}, options.health_host or options.host
        for kind, number in (("health-", options.health_port), ("jwks-", options.jwks_port)):
            if number is not None:
                held = stack.enter_context(hold_port(beside, number, kind=kind))
                ports[f"{kind}port".replace("-", "_").upper()] = held
        database = await open_database(
            options.mongodb_uri, shutdown, embedded=options.embedded, data_dir=options.data_dir, stack=stack
        )
        model = await local_url(environ, stack, enabled=options.local_model, base_url=options.openai_base_url)
        shared = {**environ, LOCAL_MODEL_AT: model} if model else dict(environ)
        replicas = [
            _ReplicaProcess(
                options.replica_name(number),
                {**shared, **options.of_replica(number, ports=ports, mongodb_uri=database.uri)},
            )
            for number in range(1, options.processes + 1)
        ]

        async def set_database(state: DatabaseState) -> None:
            for replica in replicas:
                replica.send(database_line(state))

        try:
            async with database.kept_running(set_database):
                await _start(replicas)
                async with background(*(replica.keep_running for replica in replicas)):
                    yield f"{options.host}:{port}"
        finally:
            if shutdown.interrupted:
                for replica in replicas:
                    replica.send(INTERRUPTED)
            patience = (options.drain_delay + options.drain_grace).total_seconds() + CLOSING_TIME
            drained = await asyncio.gather(*(replica.drain(patience) for replica in replicas))
        if not all(drained):
            raise NotDrained("a process died while it drained; its turns are taken over once their leases have lapsed")


@contextlib.contextmanager
def hold_port(host: str, port: int, *, kind: str = "") -> Iterator[int]:
    """Holds the port for processes that share it and run as the same user, and yields it; 0 takes a free one.

    No other process can listen on it meanwhile, not even another supervisor. Raises PortTaken, which gets `kind`.
    """
    holders: list[socket.socket] = []
    with ExitStack() as stack:
        for family, *_, address in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM):
            try:
                holder = stack.enter_context(_hold(family, str(address[0]), port))
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue  # a name such as localhost may resolve to a family that this machine does not have
                raise PortTaken(f"{host}:{port}", error, kind=kind) from error
            holders.append(holder)
            port = holder.getsockname()[1]
        if not holders:
            raise PortTaken(f"{host}:{port}", OSError(errno.EADDRNOTAVAIL, ""), kind=kind)
        yield port


def _hold(family: int, host: str, port: int) -> socket.socket:
    """Returns a socket that holds the port and takes no connections. Raises OSError if the port is taken.

    Of two supervisors that start at the same time, one must be refused. So a listening socket takes the port first, and
    is closed only after the holder is bound.
    """
    with socket.socket(family) as proof:
        proof.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        proof.bind((host, port))
        proof.listen(1)
        proof.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder = socket.socket(family)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server may linger
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(proof.getsockname())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # no later process may bind it without sharing
        except OSError:
            holder.close()
            raise
    return holder


async def _start(replicas: Sequence["_ReplicaProcess"]) -> None:
    """Starts all replicas at once. Raises as soon as one cannot start."""
    starts = [asyncio.create_task(replica.start()) for replica in replicas]
    try:
        for started in asyncio.as_completed(starts):
            await started
    finally:
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)


class _ReplicaProcess:
    """One replica: a process, and after its end another one under the same name."""

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None
        self._link: socket.socket | None = None

    async def start(self) -> None:
        """Starts a process, and waits until it serves. Raises ReplicaFailed with the reason, once it has ended."""
        try:
            link, process = await self._launch()
        except OSError as error:
            raise ReplicaFailed(f"{self.name} cannot be started: {error.strerror}") from error
        report = await _report(link)
        if report != SERVING:
            status = await process.wait()
            raise ReplicaFailed(report.decode() or f"{self.name} {how_it_ended(status)} before it served")

    async def _launch(self) -> tuple[socket.socket, asyncio.subprocess.Process]:
        self._close_link()
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        command = [sys.executable, "-P", "-m", "turnkeeper", "serve", f"--replica={self.name}"]
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(*command, "--lifeline", str(theirs.fileno())),
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which drains the replicas
            )
        return self._link, self._process

    def send(self, line: bytes) -> None:
        """Sends a line to the replica, if it runs and reads."""
        with contextlib.suppress(OSError):
            if self._link is not None:
                self._link.send(line)

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()

    async def keep_running(self) -> None:
        """Starts the replica again whenever its process has ended, until cancelled."""
        pause = FIRST_PAUSE
        while True:
            assert self._process is not None
            began = asyncio.get_running_loop().time()
            end = how_it_ended(await self._process.wait())
            if asyncio.get_running_loop().time() - began > STEADY:
                pause = FIRST_PAUSE
            logger.error("%s %s; it is started again in %g s", self.name, end, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self.start()
            except ReplicaFailed as error:
                logger.error("%s: %s", self.name, error)
            else:
                logger.warning("%s serves again", self.name)

    async def drain(self, patience: float) -> bool:
        """Asks the replica to drain, and waits for its end. Returns False if its process ended with an error.

        Kills the process after `patience` seconds: one that is frozen would never end.
        """
        self._close_link()
        if self._process is None or self._process.returncode is not None:
            return True
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            logger.error("%s has not drained within %g s: it is killed", self.name, patience)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        status = await self._process.wait()
        if status:
            logger.error("%s %s while it drained", self.name, how_it_ended(status))
        return not status


async def _report(link: socket.socket) -> bytes:
    """Returns SERVING once the replica has sent it, or everything that it sent until its end."""
    loop = asyncio.get_running_loop()
    report = b""
    with contextlib.suppress(ConnectionResetError):  # it ended and had not read what the supervisor sent
        while report != SERVING and (chunk := await loop.sock_recv(link, 4096)):
            report += chunk
    return report
