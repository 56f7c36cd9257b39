"""How a process is asked to stop."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def signals() -> Iterator[asyncio.Event]:
    """Set by SIGTERM and SIGINT from here on. After the block, the next one ends the process at once."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        yield asked
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)


async def until_signalled() -> None:
    """Until SIGTERM or SIGINT. A second one ends the process at once."""
    with signals() as asked:
        await asked.wait()
