"""Runs the tool servers of a run, each behind an address that stays."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.programs import Program
from tests.chaos.proxy import Link, Wire
from tests.chaos.servers import environment
from tests.chaos.services import catalogue
from tests.chaos.services.census import Census
from tests.chaos.services.offered import BANK, DESK


class ToolServer:
    """A tool server that is a program of its own: its address stays, its process is replaced."""

    def __init__(self, name: str, link: Link, command: Sequence[str], *, log: Path) -> None:
        self.name = name
        self.link = link
        self.program = Program(name, [sys.executable, "-m", *command], log=log, environ=environment())

    async def start(self) -> None:
        """Starts it, and returns once it serves."""
        self.program.start()
        line = await self.program.until_line(f"{self.name}: serving on")
        self.link.target = int(line.rpartition(":")[2])

    async def kill(self) -> int:
        """Kills it with SIGKILL. Returns its status."""
        self.link.target = None
        return await self.program.kill()

    def freeze(self) -> None:
        self.program.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.program.send(signal.SIGCONT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The running tool servers. Those of MCP over stdio are in the census: each replica starts one of its own."""

    folder: Path
    """Where they write their effects."""
    servers: Sequence[ToolServer]
    census: Census
    catalogue: Path

    @property
    def flags(self) -> Sequence[str]:
        """The flags of a replica that uses them."""
        return ("--catalogue", str(self.catalogue))

    async def heal(self) -> None:
        """Starts every tool server that is down."""
        for server in self.servers:
            server.thaw()
        await asyncio.gather(*(server.start() for server in self.servers if not server.program.running))


@contextlib.asynccontextmanager
async def serving(folder: Path, wire: Wire) -> AsyncIterator[Services]:
    """Starts the tool servers, whose effects are lines in the folder, and kills them at the end."""
    commands = {
        BANK: ("tests.chaos.services.over_grpc", str(folder)),
        DESK: ("tests.chaos.services.over_http", str(folder)),
    }
    servers = [
        ToolServer(name, wire.link(name), command, log=folder / f"{name}.log") for name, command in commands.items()
    ]
    addresses = {server.name: server.link.address for server in servers}
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.program.kill_if_running)
        await asyncio.gather(*(server.start() for server in servers))
        file = catalogue.write(folder, bank=addresses[BANK], desk=addresses[DESK])
        yield Services(folder=folder, servers=servers, census=Census(folder), catalogue=file)
