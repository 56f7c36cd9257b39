"""A server as a program: how it is started, watched and ended."""

import asyncio
import os
import shutil
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
        """kill -9, and wait until it is gone."""
        self.process.kill()
        await self.process.wait()

    async def drain(self) -> int:
        """SIGTERM, and wait until it has ended; the exit status."""
        self.process.terminate()
        return await self.process.wait()


def environment(**more: str) -> dict[str, str]:
    """Our variables, without those that would change what the server does; the model's may."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TURNKEEPER_")}
    return {**kept, **more}


def has_own_model() -> bool:
    """Whether the caller's variables name a model; then no local one is started."""
    return bool(os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"))


def ends_with_us() -> list[str]:
    """What to start a process with so that it ends when we do, even by kill -9; nothing where that is not possible."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv and sys.platform == "linux" else []


async def announced(process: asyncio.subprocess.Process) -> str:
    """The address that the server prints once it serves; "" when it ended without."""
    assert process.stdout is not None
    async with asyncio.timeout(START_TIME):
        async for line in process.stdout:
            if b"serving on" in line:
                return line.decode().rsplit(" ", 1)[1].strip()
    return ""


def children(pid: int) -> set[int]:
    """The processes that this one has started."""
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def tail(log: Path, *, lines: int = 8) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


async def end_process(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and wait; by force after 15 s. Does nothing when it has ended."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(15):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
