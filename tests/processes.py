"""Looks at processes from outside."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path


def alive(pid: int | None) -> bool:
    """Returns True while one of the process's threads runs; only then are its ports and locks free."""
    try:
        states = [_state(thread) for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    return any(state not in ("", "Z", "X") for state in states)


def _state(thread: Path) -> str:
    """Returns the state of a thread; empty once it is gone."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """Returns the processes that this one has started and that still run."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return sorted(child for child in pids if _parent(child) == pid)


def replicas(pid: int) -> list[int]:
    """Returns the server processes that this supervisor has started and that still run."""
    return [child for child in children(pid) if b"--lifeline" in _command(child)]


def resident(pid: int) -> int:
    """Returns the bytes of memory that the process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def accepted(pid: int, port: int) -> int:
    """Returns the number of connections to this port of loopback that the process has."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    established = {f"socket:[{row[9]}]" for row in rows if row[3] == "01" and row[1].endswith(f":{port:04X}")}
    return len(established & {_link(handle) for handle in Path(f"/proc/{pid}/fd").iterdir()})


def _parent(pid: int) -> int:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _link(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:
        return ""


async def until(condition: Callable[[], bool], *, timeout: float = 10) -> None:
    """Polls a condition that sends no notification, until it holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_call(condition: Callable[[], Awaitable[bool]], *, timeout: float = 10) -> None:
    """Does the same for a condition that takes a call of its own."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
