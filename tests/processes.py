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


async def until(condition: Callable[[], bool], *, timeout: float = 10) -> None:
    """Wait for what tells nobody that it happened. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
