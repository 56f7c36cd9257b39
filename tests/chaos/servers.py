"""Runs `turnkeeper serve`, and starts it again after faults, behind an address that stays."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.chaos import clock as clocks
from tests.chaos.clock import Clock
from tests.chaos.inside import DOOR
from tests.chaos.programs import Program
from tests.chaos.proxy import Link, Wire

_PRINTED: Final = "turnkeeper: serving on"


class Server:
    """One replica: its name and its clients' address stay, its process is replaced."""

    def __init__(
        self,
        name: str,
        folder: Path,
        link: Link,
        clock: Clock,
        *,
        wire: Wire,
        log: Path,
        flags: Sequence[str],
        variables: Mapping[str, str],
    ) -> None:
        self.name = name
        self.link = link
        self.clock = clock
        self.starts = 0
        self._wire = wire
        self._door = folder / f"{name}.door"
        command = [sys.executable, "-m", "tests.chaos.inside", "serve", "--port", "0", "--replica", name, *flags]
        environ = {**variables, **clock.variables, DOOR: str(self._door)}
        self.program = Program(name, command, log=log, environ=environ)

    @property
    def answers(self) -> bool:
        """True if the process runs and is not stopped."""
        return self.program.running and not self.program.stopped

    async def start(self) -> None:
        """Starts the server, several times if the database is away, and returns once it serves."""
        deadline = time.monotonic() + 60
        while True:
            self.starts += 1
            self.program.start()
            self._wire.names[self.program.pid] = self.name
            try:
                line = await self.program.until_line(_PRINTED)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                await self._gone()
                continue
            self.link.target = int(line.rpartition(":")[2])
            return

    async def kill(self) -> int:
        """Kills the server with SIGKILL. Returns its status."""
        status = await self.program.kill()
        await self._gone()
        return status

    async def drain(self, *, seconds: float = 30) -> int:
        """Drains the server with SIGTERM, or kills it after `seconds`. Returns its status."""
        status = await self.program.end(seconds=seconds)
        await self._gone()
        return status

    async def ended(self, *, seconds: float) -> int | None:
        """Waits for the server to end by itself. Returns its status, or None after `seconds`."""
        status = await self.program.ended(seconds=seconds)
        if status is not None:
            await self._gone()
        return status

    def freeze(self) -> None:
        self.program.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.program.send(signal.SIGCONT)

    async def wall_clock(self) -> float:
        """Returns the wall clock of the process, in seconds."""
        return float(await self._ask("clock"))

    async def arm(self, fault: str) -> bool:
        """Arms a named fault of `turnkeeper.faults`, such as `claim.after=kill@2`. Returns True if it is armed."""
        return await self._ask(f"arm {fault}") == fault.partition("=")[0]

    async def block(self, seconds: float) -> bool:
        """Blocks the server's event loop for `seconds`. Returns True if it is blocked; its other threads go on."""
        return await self._ask(f"block {seconds}") == "blocked"

    async def _ask(self, question: str) -> str:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_unix_connection(str(self._door))
            try:
                writer.write(question.encode() + b"\n")
                await writer.drain()
                return (await reader.readline()).decode().strip()
            finally:
                writer.close()

    async def _gone(self) -> None:
        self.link.target = None
        self._wire.names.pop(self.program.pid, None)
        clocks.forget(self.program.pid)


def environment(**more: str) -> dict[str, str]:
    """Returns the variables that a program needs, and none that would change its behaviour."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, **more}
