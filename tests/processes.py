"""Looking at processes from outside."""

import asyncio
from collections.abc import Callable
from pathlib import Path


def alive(pid: int | None) -> bool:
    """Whether the process runs; one that ended and was not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that this one started and that still run."""
    found = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]
    return sorted(each for each in found if _parent(each) == pid)


def replicas(pid: int) -> list[int]:
    """The server processes that this supervisor started and that still run."""
    return [each for each in children(pid) if b"--lifeline" in _command(each)]


def accepted(pid: int, port: int) -> int:
    """How many connections to this port of loopback the process has."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    established = {f"socket:[{row[9]}]" for row in rows if row[3] == "01" and row[1].endswith(f":{port:04X}")}
    return len(established & {_link(each) for each in Path(f"/proc/{pid}/fd").iterdir()})


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
    """Wait for what tells nobody that it happened. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
