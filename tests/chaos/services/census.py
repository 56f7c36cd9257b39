"""Counts the processes of MCP servers over stdio: none outlives its replica by more than 5 s."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.programs import state
from tests.chaos.services.catalogue import OVER_STDIO

LONGEST: Final = 5.0
"""Seconds that a process may live once its replica is dead."""
EVERY: Final = 0.5
"""Seconds from one count to the next."""
_GUARD: Final = b"/turnkeeper/tools/mcp/guard.py"


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a server, or its guard. `replica`: the pid of the replica that started it, 0 if that is unknown."""

    pid: int
    replica: int
    is_guard: bool


class Census:
    """Counts, and remembers which processes outlived their replicas. `folder`: the effects', part of each command."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder).encode()
        self._orphaned: dict[int, float] = {}
        self._replicas: dict[int, int] = {}
        self.pids: set[int] = set()
        """The pids of all servers' processes so far; guards do not count."""
        self.bereaved: set[int] = set()
        """Those among them that were there when their replica was found dead."""
        self.outlived: dict[int, float] = {}
        """Seconds for which a process was seen to live longer than LONGEST after its replica, by pid."""

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Counts again and again during the block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def count(self, *, at: float) -> list[Process]:
        """Counts once, at this monotonic time. Returns what lives."""
        living = self._found()
        for process in living:
            if process.replica:
                self._replicas[process.pid] = process.replica
            replica = self._replicas.get(process.pid, 0)
            if not process.is_guard:
                self.pids.add(process.pid)
            if replica and state(replica) not in ("", "Z", "X"):
                continue
            since = self._orphaned.setdefault(process.pid, at)
            if not process.is_guard:
                self.bereaved.add(process.pid)
            if at - since > LONGEST:
                self.outlived[process.pid] = round(at - since, 1)
        return living

    async def at_the_end(self) -> int:
        """Counts what lives once all replicas have ended, LONGEST seconds later at most. Returns the number."""
        until = time.monotonic() + LONGEST
        while (living := self.count(at=time.monotonic())) and time.monotonic() < until:  # noqa: ASYNC110 - a process sends no notification
            await asyncio.sleep(EVERY)
        return len(living)

    async def _run(self) -> None:
        while True:
            await asyncio.to_thread(self.count, at=time.monotonic())
            await asyncio.sleep(EVERY)

    def _found(self) -> list[Process]:
        commands = dict(_commands())
        module = OVER_STDIO.encode()
        mine = {pid: words for pid, words in commands.items() if self._folder in words and module in words}
        guards = {
            pid: int(words[place + 1])
            for pid, words in mine.items()
            for place, word in enumerate(words)
            if word.endswith(_GUARD)
        }
        return [Process(pid, _replica(pid, guards), pid in guards) for pid in mine]


def _replica(pid: int, guards: Mapping[int, int]) -> int:
    """Returns the replica of a guard, or of the process that a guard started."""
    if pid in guards:
        return guards[pid]
    with contextlib.suppress(OSError, IndexError, ValueError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return guards.get(parent, 0)
    return 0


def _commands() -> list[tuple[int, list[bytes]]]:
    commands = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                commands.append((int(folder.name), (folder / "cmdline").read_bytes().split(b"\0")))
    return commands
