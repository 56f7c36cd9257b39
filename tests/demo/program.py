"""Starts, watches and ends a server process."""

import asyncio
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

START_TIME = 40.0


@dataclass(slots=True)
class Server:
    """One process of `turnkeeper serve`."""

    process: asyncio.subprocess.Process
    address: str
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    async def kill(self) -> None:
        """Kills the process with SIGKILL, and waits until it is gone."""
        self.process.kill()
        await self.process.wait()

    async def drain(self) -> int:
        """Drains the server with SIGTERM. Returns its exit status."""
        self.process.terminate()
        return await self.process.wait()


def environment(**more: str) -> dict[str, str]:
    """Returns this process's variables without the service's settings; the model's variables stay."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TURNKEEPER_")}
    return {**kept, **more}


def has_own_model() -> bool:
    """Returns True if the caller's variables name a model; then no local one is started."""
    return bool(os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"))


def ends_with_us() -> list[str]:
    """Returns the command that ends a process with this one, even after SIGKILL; empty if that is impossible."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv and sys.platform == "linux" else []


async def announced(process: asyncio.subprocess.Process) -> str:
    """Waits for the address that the server prints. Returns "" if the server ends without it."""
    assert process.stdout is not None
    async with asyncio.timeout(START_TIME):
        async for line in process.stdout:
            if b"serving on" in line:
                return line.decode().rsplit(" ", 1)[1].strip()
    return ""


def children(pid: int) -> set[int]:
    """Returns the processes that this one has started."""
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def tail(log: Path, *, lines: int = 8) -> str:
    """Returns the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


async def end_process(process: asyncio.subprocess.Process, *, by: signal.Signals = signal.SIGTERM) -> None:
    """Ends the process with this signal, or with SIGKILL after 15 s. Does nothing if it has ended."""
    if process.returncode is not None:
        return
    process.send_signal(by)
    try:
        async with asyncio.timeout(15):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
