"""`turnkeeper serve`, as often as it must be started again, behind an address that stays."""

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
    """One replica; its name and its clients' address stay, its process comes and goes."""

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
        """Whether there is any use in asking."""
        return self.program.running and not self.program.stopped

    async def start(self) -> None:
        """Return once it serves. It may need several starts while the database is not there."""
        deadline = time.monotonic() + 60
        while True:
            self.starts += 1
            self.program.start()
            self._wire.names[self.program.pid] = self.name
            try:
                said = await self.program.until_says(_PRINTED)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                await self._gone()
                continue
            self.link.target = int(said.rpartition(":")[2])
            return

    async def kill(self) -> int:
        """kill -9; its status once it is gone."""
        status = await self.program.kill()
        await self._gone()
        return status

    async def drain(self, *, seconds: float = 30) -> int:
        """SIGTERM; its status once it has drained, or was killed after that time."""
        status = await self.program.end(seconds=seconds)
        await self._gone()
        return status

    async def ended(self, *, seconds: float) -> int | None:
        """Its status, if it ends by itself within that time."""
        status = await self.program.ended(seconds=seconds)
        if status is not None:
            await self._gone()
        return status

    def freeze(self) -> None:
        self.program.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.program.send(signal.SIGCONT)

    async def wall_clock(self) -> float:
        """What the process takes the time to be, in seconds."""
        return float(await self._ask("clock"))

    async def arm(self, fault: str) -> bool:
        """Arm a named fault of `turnkeeper.faults`, such as `claim.after=kill@2`; whether it is."""
        return await self._ask(f"arm {fault}") == fault.partition("=")[0]

    async def block(self, seconds: float) -> bool:
        """Block its event loop for so long; whether it is blocked now. Its other threads go on."""
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
    """What a program of ours needs of our own variables, and nothing that would change what it does."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, **more}
