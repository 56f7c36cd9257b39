"""Starts programs that end with this process, whatever ends it."""

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
# Not SIGTERM: some programs are stopped, and a stopped process does not handle it.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program:
    """A process of the harness; its output goes to `log`. Start it on a thread that outlives it, such as the main."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = [str(word) for word in command]
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._start_of_output = 0

    def start(self) -> None:
        """Starts the program, for the first time or again after it has ended."""
        self._start_of_output = self.log.stat().st_size if self.log.exists() else 0
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                cwd=REPOSITORY,
                start_new_session=True,  # Ctrl-C ends the harness, which ends the program later
            )

    @property
    def pid(self) -> int:
        """The process id; 0 before the first start."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """The exit status: None while it runs, minus the signal that ended it."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def stopped(self) -> bool:
        """True if the process is stopped by SIGSTOP."""
        return state(self.pid) == "T"

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing if the process has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def output(self) -> str:
        """Returns the output since the last start."""
        with self.log.open("rb") as log:
            log.seek(self._start_of_output)
            return log.read().decode(errors="replace")

    async def until_line(self, words: str, *, seconds: float = 40) -> str:
        """Waits for a line with these words. Raises RuntimeError at the program's end or after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            alive = self.running
            matching = [line for line in self.output().splitlines() if words in line]
            if matching:
                return matching[0]
            if not alive:
                break
            await asyncio.sleep(0.03)
        raise RuntimeError(f"{self.name} printed no line with {words!r}; its output:\n{self.output()[-2000:]}")

    async def ended(self, *, seconds: float = 30) -> int | None:
        """Waits for the end. Returns the status, or None if the program still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:  # noqa: ASYNC110 - a process sends no notification
            await asyncio.sleep(0.01)
        return self.status

    async def kill(self) -> int:
        """Kills the process with SIGKILL. Returns its status, -9."""
        self.send(signal.SIGKILL)
        status = await self.ended()
        assert status is not None, f"{self.name} (pid {self.pid}) cannot be killed"
        return status

    async def kill_if_running(self) -> None:
        if self.running:
            await self.kill()

    async def end(self, *, seconds: float = 15) -> int:
        """Ends the process with SIGTERM, or with SIGKILL after `seconds`. Returns its status."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        status = await self.ended(seconds=seconds)
        return await self.kill() if status is None else status


def state(pid: int) -> str:
    """Returns the kernel's letter for the state of the process: T is stopped, Z has ended; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
