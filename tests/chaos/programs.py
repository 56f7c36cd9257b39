"""Programs that end when we do, whatever ends us."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]

# In the child, before it becomes the program: ask the kernel to kill it when its parent dies, however that happens.
# Not SIGTERM: some of ours are stopped, and a stopped process does not hear that.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program:
    """A process of ours; its output goes to `log`. Start it on a thread that outlives it, such as the main one."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = [str(word) for word in command]
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._heard_from = 0

    def start(self) -> None:
        """Again after it has ended is fine."""
        self._heard_from = self.log.stat().st_size if self.log.exists() else 0
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                cwd=REPOSITORY,
                start_new_session=True,  # Ctrl-C is for us; we end it when we are done with it
            )

    @property
    def pid(self) -> int:
        """0 before the first start."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """As a shell's: None while it runs, minus the signal that ended it."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether the kernel holds it, by SIGSTOP."""
        return state(self.pid) == "T"

    def send(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def said(self) -> str:
        """What it has printed since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._heard_from)
            return log.read().decode(errors="replace")

    async def until_says(self, words: str, *, seconds: float = 40) -> str:
        """The line with these words. Raises RuntimeError, with what it said, when it ends or nothing comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            alive = self.running
            found = [line for line in self.said().splitlines() if words in line]
            if found:
                return found[0]
            if not alive:
                break
            await asyncio.sleep(0.03)
        raise RuntimeError(f"{self.name} did not say {words!r}; it said:\n{self.said()[-2000:]}")

    async def ended(self, *, seconds: float = 30) -> int | None:
        """Its status once it has ended, None when it still runs then."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        return self.status

    async def kill(self) -> int:
        """kill -9; the status once it is gone, that is -9."""
        self.send(signal.SIGKILL)
        status = await self.ended()
        assert status is not None, f"{self.name} (pid {self.pid}) cannot be killed"
        return status

    async def kill_if_running(self) -> None:
        if self.running:
            await self.kill()

    async def end(self, *, seconds: float = 15) -> int:
        """SIGTERM, and kill -9 after that time; the status."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        status = await self.ended(seconds=seconds)
        return await self.kill() if status is None else status


def state(pid: int) -> str:
    """The kernel's letter for what the process does: T is stopped, Z has ended; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
