"""How a process is asked to shut down: by SIGTERM or SIGINT."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def shutdown_requested() -> Iterator[asyncio.Event]:
    """Yields an event that SIGTERM and SIGINT set. After the block, either of them ends the process at once."""
    loop = asyncio.get_running_loop()
    requested = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, requested.set)
    try:
        yield requested
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)


async def until_shutdown_requested() -> None:
    """Waits for SIGTERM or SIGINT. A second one ends the process at once."""
    with shutdown_requested() as requested:
        await requested.wait()
