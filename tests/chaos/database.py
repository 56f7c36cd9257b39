"""A replica set of three `mongod` on loopback, each behind an address of the proxy, which its members use as well."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pymongo
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from tests.chaos import clock as clocks
from tests.chaos.clock import Clock
from tests.chaos.programs import Program
from tests.chaos.proxy import Link, Wire
from turnkeeper.store.embedded import EXIT_PORT_TAKEN, find_mongod

Client = AsyncMongoClient[dict[str, Any]]
NAME: Final = "chaos"
ELECTION_MS: Final = 2_000
PATIENT_MS: Final = 12_000
"""After so much silence of the others a primary steps down, and the others elect one, in `ReplicaSet.deposed`."""
ELECTED_S: Final = 8.0
"""Seconds for that election on a busy machine, at most: less than the old primary's patience."""
START_TIME: Final = 40.0
_ALREADY_INITIALIZED: Final = 23


@dataclass(frozen=True, slots=True)
class Hello:
    """A member's answer to `hello`."""

    primary: bool
    secondary: bool
    term: int


class Node:
    """One `mongod`: a folder, an address that stays, and a process that may come and go."""

    def __init__(self, name: str, folder: Path, link: Link, clock: Clock, *, wire: Wire, log: Path) -> None:
        self.name = name
        self.link = link
        self.clock = clock
        self._wire = wire
        self._data = folder / name
        self._log = log / f"{name}.log"
        self._port = 0
        self._client: Client | None = None
        self.program = self._programmed()

    async def start(self) -> None:
        """Starts the node, and returns once it listens."""
        self._data.mkdir(exist_ok=True)
        deadline = time.monotonic() + START_TIME
        while time.monotonic() < deadline:
            self._port = _free_port()
            self.program = self._programmed()
            self.program.start()
            self._wire.names[self.program.pid] = self.name
            if await self._listens():
                self.link.target = self._port
                await self._disconnect()
                return
            if self.program.status != EXIT_PORT_TAKEN:
                break
        raise RuntimeError(f"{self.name} did not start; its output:\n{self.program.output()[-2000:]}")

    async def kill(self) -> int:
        """Kills the node with SIGKILL. Returns its status."""
        status = await self.program.kill()
        self.link.target = None
        self._wire.names.pop(self.program.pid, None)
        clocks.forget(self.program.pid)
        await self._disconnect()
        return status

    def freeze(self) -> None:
        self.program.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.program.send(signal.SIGCONT)

    @property
    def direct_uri(self) -> str:
        """The URI for a driver that asks this node alone, past the proxy."""
        return f"mongodb://127.0.0.1:{self._port}/?directConnection=true"

    @property
    def answers(self) -> bool:
        """True if the process runs and is not stopped."""
        return self.program.running and not self.program.stopped

    async def command(self, *command: Any, on: str = "admin", **options: Any) -> dict[str, Any]:
        """Runs a command, past the proxy. Raises PyMongoError, after 3 s without an answer."""
        if self._client is None:
            self._client = Client(
                self.direct_uri,
                timeoutMS=3_000,
                serverSelectionTimeoutMS=1_500,
                appname="chaos",
            )
        return await self._client[on].command(*command, **options)

    async def hello(self) -> Hello | None:
        """Returns the node's answer to `hello`, or None if it does not answer."""
        if not self.answers:
            return None
        try:
            async with asyncio.timeout(1.5):
                reply = await self.command("hello")
        except (PyMongoError, TimeoutError):
            return None
        election = bytes(reply["electionId"].binary) if "electionId" in reply else b""
        return Hello(
            primary=bool(reply.get("isWritablePrimary")),
            secondary=bool(reply.get("secondary")),
            term=int.from_bytes(election[4:]),
        )

    async def close(self) -> None:
        await self._disconnect()
        if self.program.running:
            await self.kill()

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(PyMongoError, TimeoutError):
                async with asyncio.timeout(1):
                    await client.close()

    async def _listens(self) -> bool:
        deadline = time.monotonic() + START_TIME
        while self.program.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.close()
                return True
            await asyncio.sleep(0.03)
        return False

    def _programmed(self) -> Program:
        options = [
            *("--dbpath", str(self._data), "--bind_ip", "127.0.0.1", "--port", str(self._port)),
            *("--replSet", NAME, "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "128", "--nounixsocket", "--quiet"),
            *("--setParameter", "transactionLifetimeLimitSeconds=15"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *("--setParameter", "enableTestCommands=1"),
        ]
        environ = {**os.environ, **self.clock.variables}
        return Program(self.name, [str(find_mongod()), *options], log=self._log, environ=environ)


class ReplicaSet:
    """The replica set of the nodes."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    @property
    def uri(self) -> str:
        """The URI for drivers, through the proxy."""
        return f"mongodb://{','.join(node.link.address for node in self.nodes)}/?replicaSet={NAME}"

    @property
    def links(self) -> list[str]:
        return [node.name for node in self.nodes]

    async def primary(self) -> Node | None:
        """Returns the node with the highest term of those that report to be primary; a frozen one reports nothing."""
        primary = await self._primary()
        return primary[0] if primary else None

    async def term(self) -> int:
        """Returns the primary's term; 0 while there is none."""
        primary = await self._primary()
        return primary[1] if primary else 0

    async def until_primary(self, *, above: int = 0, seconds: float = 30) -> tuple[Node, int]:
        """Waits for a primary of a higher term than `above`. Returns it and its term. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                primary = await self._primary()
                if primary is not None and primary[1] > above:
                    return primary
                await asyncio.sleep(0.1)

    async def until_whole(self, *, seconds: float = 40) -> None:
        """Waits until there is a primary and the others follow it. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not await self._whole():  # noqa: ASYNC110 - a database sends no notification
                await asyncio.sleep(0.15)

    async def secondaries(self) -> list[Node]:
        """Returns the nodes that report to be secondaries."""
        hellos = await asyncio.gather(*(node.hello() for node in self.nodes))
        return [node for node, hello in zip(self.nodes, hellos, strict=True) if hello is not None and hello.secondary]

    async def start(self) -> None:
        """Starts the nodes and makes them a set. Returns once all of them are in it."""
        await asyncio.gather(*(node.start() for node in self.nodes))
        members = [{"_id": number, "host": node.link.address} for number, node in enumerate(self.nodes)]
        settings = {"electionTimeoutMillis": ELECTION_MS, "heartbeatIntervalMillis": 500, "catchUpTimeoutMillis": 2_000}
        config = {"_id": NAME, "members": members, "settings": settings}
        try:
            with pymongo.timeout(START_TIME):
                await self.nodes[0].command("replSetInitiate", config)
        except OperationFailure as error:
            if error.code != _ALREADY_INITIALIZED:
                raise
        await self.until_whole(seconds=START_TIME)

    @contextlib.asynccontextmanager
    async def slow_majority(self, *, seconds: int) -> AsyncIterator[Node]:
        """Lets a majority have each write this late. Yields the primary; no other member can become one meanwhile."""
        primary, _ = await self.until_primary()
        try:
            await self._delay_others(primary, seconds)
            yield primary
        finally:
            await self._delay_others(primary, 0)

    @contextlib.asynccontextmanager
    async def deposed(self, primary: Node, wire: Wire) -> AsyncIterator[None]:
        """Isolates the primary, and makes another node primary. For PATIENT_MS the old one takes itself for it still.

        It answers only those that come past the proxy. At the end the nodes are one set again.
        """
        term = await self.term()
        others = [node for node in self.nodes if node is not primary]
        names = [node.name for node in others]
        await self._reconfigure(primary, electionTimeoutMillis=PATIENT_MS)
        with wire.hole([primary.name]), wire.hole(names, [primary.name]):
            with pymongo.timeout(ELECTED_S):
                await others[0].command("replSetStepUp")
            await self.until_primary(above=term)
            for other in others[1:]:  # it would wait for the old primary's silent connection
                await other.command("replSetSyncFrom", others[0].link.address)
            wire.cut([primary.name])
            yield
        await self._reconfigure((await self.until_primary())[0], electionTimeoutMillis=ELECTION_MS)
        await self.until_whole()

    async def _reconfigure(self, primary: Node, **settings: int) -> None:
        config = (await primary.command("replSetGetConfig"))["config"]
        changed = {**config, "settings": {**config["settings"], **settings}, "version": config["version"] + 1}
        await primary.command("replSetReconfig", changed)

    async def heal(self) -> None:
        """Starts every node, sets its clock right, switches its fail points off, and ends every lag."""
        for node in self.nodes:
            node.clock.set(0)
            node.thaw()
            if not node.program.running:
                await node.start()
        for node in self.nodes:
            for point in ("failCommand", "stopReplProducer"):
                with contextlib.suppress(PyMongoError):
                    await node.command("configureFailPoint", point, mode="off")
        await self.until_whole(seconds=60)
        primary, _ = await self.until_primary()
        await self._delay_others(primary, 0)

    async def _delay_others(self, primary: Node, seconds: int) -> None:
        """Makes all other members lag this far behind, unless they do already. Raises TimeoutError after 20 s."""
        lagging = {"secondaryDelaySecs": seconds, "priority": 0 if seconds else 1}
        async with asyncio.timeout(20):
            while True:
                config = (await primary.command("replSetGetConfig"))["config"]
                others = [member for member in config["members"] if member["host"] != primary.link.address]
                if all(lagging.items() <= member.items() for member in others):
                    return
                for member in others:
                    member.update(lagging)
                with contextlib.suppress(PyMongoError):  # a late answer: the next look shows whether it has changed
                    await primary.command("replSetReconfig", {**config, "version": config["version"] + 1})

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()

    async def _primary(self) -> tuple[Node, int] | None:
        hellos = await asyncio.gather(*(node.hello() for node in self.nodes))
        primaries = [
            (node, hello.term)
            for node, hello in zip(self.nodes, hellos, strict=True)
            if hello is not None and hello.primary
        ]
        return max(primaries, key=lambda pair: pair[1], default=None)

    async def _whole(self) -> bool:
        hellos = await asyncio.gather(*(node.hello() for node in self.nodes))
        states = [(hello.primary, hello.secondary) for hello in hellos if hello is not None]
        return states.count((True, False)) == 1 and states.count((False, True)) == len(self.nodes) - 1


class Probe:
    """Writes to a majority all the time, and so finds the gaps of more than `notable` seconds without a write."""

    def __init__(self, uri: str, *, on_gap: Callable[[float, float], None], notable: float = 1.0) -> None:
        """`on_gap` is called after each gap with its wall-clock begin and end."""
        self._uri = uri
        self._on_gap = on_gap
        self._notable = notable
        self.longest = 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Writes during the block. The probe ends by itself: an operation of PyMongo may swallow a cancellation."""
        over = asyncio.Event()
        task = asyncio.create_task(self._run(over))
        try:
            yield
        finally:
            over.set()
            await task

    async def _run(self, over: asyncio.Event) -> None:
        last = time.time()
        options: Mapping[str, Any] = {"heartbeatFrequencyMS": 500, "connectTimeoutMS": 500, "timeoutMS": 1_000}
        async with Client(self._uri, w="majority", appname="chaos", serverSelectionTimeoutMS=500, **options) as client:
            while not over.is_set():
                with contextlib.suppress(PyMongoError):
                    await client["chaos_probe"].probe.update_one({"_id": 0}, {"$inc": {"writes": 1}}, upsert=True)
                    now = time.time()
                    self.longest = max(self.longest, now - last)
                    if now - last > self._notable:
                        self._on_gap(last, now)
                    last = now
                await asyncio.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
